"""The table's lines about how likely images are."""

import math
from collections.abc import Iterator

from vae.reports.evaluation.rows import Metrics, known, number, row


def likelihood_rows(f: Metrics) -> Iterator[str]:
    samples = f["test/samples"]
    yield (
        f"nats per image, {f['test/images']:,} test images, "
        f"{samples} latent sample{'s' * (samples > 1)} each"
    )
    yield row("ELBO", f, "test/elbo")
    yield row("  log-likelihood log p(x|z)", f, "test/log_likelihood")
    yield row("  KL(q(z|x)‖prior)", f, "test/kl")
    if "exact/log_p" in f:
        yield row("ELBO, expectation over q exact", f, "exact/elbo")
        yield row("log p(x), exact", f, "exact/log_p")
        yield row("  log p − ELBO = KL(q‖posterior)", f, "exact/gap")
    if "oracle/test_elbo" in f:
        note = "the linear optimum of the training split, on test images"
        yield row("best linear ELBO at this sigma", f, "oracle/test_elbo", note)
    yield from importance_rows(f)
    yield from ais_rows(f)
    yield from bound_rows(f)
    for key in f:
        if key.startswith("bits/"):
            yield row("bits per dimension, at most", f, key, f"from {key.removeprefix('bits/')}", 4)


def importance_rows(f: Metrics) -> Iterator[str]:
    """L_K, with a warning where a few samples carry all the weight."""
    if "iwae/K" not in f:
        return
    yield (
        "importance-weighted bound L_K ≤ log p, samples from the encoder, "
        f"{f['iwae/images']:,} images"
    )
    loose = []
    for K in f["iwae/K"]:
        ess = f[f"iwae/K={K}_ess"]
        if K > 1 and not (known(ess) and ess >= min(50, K / 4)):
            loose.append(f"L_{K}")
        note = f"effective sample size {number(ess, 1)} of {K:,}"
        yield row(f"L_{K}", f, f"iwae/K={K}", note)
    if "iwae/exact_log_p" in f:
        yield row("log p(x) of the same images, exact", f, "iwae/exact_log_p")
    if loose:
        yield (
            f"WARNING: a few samples carry all the weight in {', '.join(loose)}: the bound is "
            "loose, log p(x) is higher"
        )


def ais_rows(f: Metrics) -> Iterator[str]:
    if "ais/log_p" not in f:
        return
    yield f"annealed importance sampling, from below in expectation, {f['ais/images']:,} images"
    note = f"Monte Carlo error {number(f['ais/mc_se'])}, acceptance {number(f['ais/acceptance'])}, "
    note += f"effective chains {number(f['ais/ess'], 1)} of {f['ais/chains']}"
    yield row(f"AIS, {f['ais/distributions']} distributions", f, "ais/log_p", note)
    if "ais/iwae" in f:
        yield row(f"L_{f['iwae/K'][-1]} of the same images", f, "ais/iwae")
    if "ais/exact_log_p" in f:
        yield row("log p(x) of the same images, exact", f, "ais/exact_log_p")


def bound_rows(f: Metrics) -> Iterator[str]:
    """The estimates for all test images from those for some."""
    names = {"iwae/log_p_all": "L_K", "ais/log_p_all": "AIS"}
    shown = [key for key in names if key in f]
    if shown or f.get("bound/method", "ELBO") not in ("ELBO", "exact"):
        yield (
            "for all test images, by regression on the ELBO: mean(estimate) + slope · (mean ELBO "
            "of all − mean ELBO of the images that have one)"
        )
    for key in shown:
        note = f"± {number(f.get(f'{key}_subset_se'))} of it as only some images have an estimate"
        yield row(f"log p at least, by {names[key]}", f, key, note)
    if "bound/log_p" not in f:
        return
    if f["bound/method"] == "exact":
        yield row("log p, exact", f, "bound/log_p")
        return
    note = f"the tightest: {f['bound/method']}, {f['bound/images']:,} images"
    if known(f.get("bound/ess")):
        note += f", effective samples {number(f['bound/ess'], 1)}"
    yield row("log p at least", f, "bound/log_p", note)


def gap_rows(f: Metrics) -> Iterator[str]:
    exact = f["gap/method"] == "exact"
    how = "exact" if exact else f"Gaussians optimised for each image, {f['gap/steps']} steps"
    yield f"inference gap, {f['gap/images']:,} images, {how} (Cremer et al. 2018)"
    note = "" if exact else f"L_{f['gap/K']} with a correlated Gaussian fitted to each image, "
    note += "" if exact else f"effective samples {number(f['gap/ess'], 1)}"
    yield row("log p" + ("" if exact else ", at least"), f, "gap/log_p", note)
    yield row("ELBO of the encoder, same images", f, "gap/elbo")
    note = "no Gaussian with independent latents does better" + ("" if exact else "; at least this")
    yield row("  approximation gap", f, "gap/approximation", note)
    yield row("  amortisation gap", f, "gap/amortisation", "a better encoder could close this")


def refit_rows(f: Metrics) -> Iterator[str]:
    yield (
        "the same networks at the sigma that validation images ask for; a gap in nats belongs to "
        "its sigma"
    )
    yield row("refitted sigma", f, "refit/sigma", digits=4)
    yield row("ELBO there, test", f, "refit/test_elbo")
    yield row(
        "ELBO there, validation", f, "refit/val_elbo", "fitted to these images, so a little high"
    )
    if "refit/log_p" in f:
        bound = "" if f.get("bound/method") == "exact" else ", at least"
        note = "the encoder is one for the sigma of the training; this is without its loss"
        yield row(f"log p there, test{bound}", f, "refit/log_p", note)
    if "refit/oracle_sigma" in f:
        note = f"at its own sigma {number(f['refit/oracle_sigma'], 4)}, of the training split"
        yield row("best linear ELBO, free sigma, test", f, "refit/oracle_test_elbo", note)


def bdmc_rows(f: Metrics) -> Iterator[str]:
    yield (
        f"bidirectional Monte Carlo, {f['bdmc/images']} images drawn from the model, "
        f"{f['bdmc/distributions']} distributions, {f['bdmc/chains']} chains (Grosse et al. 2015)"
    )
    yield row("log p from below, AIS forwards", f, "bdmc/lower")
    if "bdmc/exact_log_p" in f:
        yield row("log p, exact", f, "bdmc/exact_log_p")
    yield row("log p from above, AIS backwards", f, "bdmc/upper")
    yield row("  upper − lower", f, "bdmc/gap")
    if not known(f["bdmc/gap"]):
        yield "no number on images drawn from the model: nothing is known of the error of AIS"
        return
    error = f.get("bdmc/gap_se")
    most = max(0.0, f["bdmc/gap"] + 2 * (error if known(error) else math.inf))
    yield (
        f"on such images AIS is too low by at most {number(most)} nats (gap + 2 standard errors); "
        "test images are other images, so for them this is evidence, not a bound"
    )


def ppc_rows(f: Metrics) -> Iterator[str]:
    yield (
        f"does the model expect such images? {f['ppc/images']:,} drawn from it (with pixel noise) "
        f"against {f['ppc/test_images']:,} test images"
    )
    for key, name in (("samples", "log p of its own images"), ("test", "log p of test images")):
        note = f"spread over images {number(f[f'ppc/log_p_{key}_sd'])}"
        yield row(name, f, f"ppc/log_p_{key}", note)
    yield row("residual variance, its own images", f, "ppc/residual_variance_samples", digits=5)
    yield row("residual variance, test images", f, "ppc/residual_variance_test", digits=5)
    sigma2, residual = f.get("ppc/sigma2"), f["ppc/residual_variance_test"]
    if known(sigma2) and known(residual) and residual > 0:
        yield row("sigma²", f, "ppc/sigma2", f"{sigma2 / residual:.2f} × that of test images", 5)
