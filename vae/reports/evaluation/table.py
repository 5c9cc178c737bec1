"""evaluation.json for the screen."""

import math
from collections.abc import Iterator
from typing import Any

Metrics = dict[str, Any]


def table(f: Metrics) -> str:
    """The metrics, fresh or read back, part by part; likelihoods in nats per image with their
    standard errors."""
    f = with_nan(f)
    parts = [likelihood_rows(f), collapse_rows(f)]
    parts += [chain_rows(f)] if "chain/finite" in f else []
    parts += [sample_rows(f)] if "samples/fid" in f else []
    parts += [against_rows(f)] if "against" in f else []
    head = f"{f['model']}: {f['latent_dim']} latents, {f['likelihood']}, test split of {f['data']}, seed {f['seed']}"
    return "\n".join(["", head, *(line for part in parts for line in ("", *part))])


def with_nan(value: Any) -> Any:
    """JSON's null stands for a number that is not finite."""
    if isinstance(value, dict):
        return {k: with_nan(v) for k, v in value.items()}
    if isinstance(value, list):
        return [with_nan(v) for v in value]
    return math.nan if value is None else value


def row(name: str, f: Metrics, key: str, note: str = "", digits: int = 2) -> str:
    value, error = f[key], f.get(f"{key}_se")
    spread = "" if error is None else f" ± {error:.{digits}f}"
    return f"{name:<40}{value:>10.{digits}f}{spread:<11}{note}".rstrip()


def likelihood_rows(f: Metrics) -> Iterator[str]:
    yield f"nats per image, {f['test/images']:,} images, {f['test/samples']} latent sample(s) each"
    yield row("ELBO", f, "test/elbo")
    yield row("  log-likelihood", f, "test/log_likelihood")
    yield row("  KL", f, "test/kl")
    if "exact/log_p" in f:
        yield row("ELBO, expectation over q exact", f, "exact/elbo")
        yield row("log p(x), exact", f, "exact/log_p")
        yield row("  log p − ELBO = KL(q‖posterior)", f, "exact/gap")
        yield row("best linear ELBO (pPCA)", f, "oracle/test_elbo")
    if "iwae/K" in f:
        yield f"of {f['iwae/images']:,} images"
        loose = []
        for K in f["iwae/K"]:
            ess = f[f"iwae/K={K}_ess"]
            if K > 1 and ess < min(50, K / 4):
                loose.append(K)
            yield row(f"L_{K}", f, f"iwae/K={K}", f"effective sample size {ess:.1f}")
        if "iwae/exact_log_p" in f:
            yield row("log p(x), exact", f, "iwae/exact_log_p")
        if loose:
            names = ", ".join(f"L_{K}" for K in loose)
            yield f"WARNING: a few samples carry all the weight in {names}: the bound is loose, log p(x) is higher"
    if "ais/log_p" in f:
        yield f"of {f['ais/images']:,} images"
        note = f"Monte Carlo error {f['ais/mc_se']:.2f}, acceptance {f['ais/acceptance']:.2f}, "
        note += f"effective chains {f['ais/ess']:.1f} of {f['ais/chains']}"
        yield row(f"AIS, {f['ais/distributions']} distributions", f, "ais/log_p", note)
        if "ais/iwae" in f:
            yield row(f"L_{f['iwae/K'][-1]}", f, "ais/iwae")
        if "ais/exact_log_p" in f:
            yield row("log p(x), exact", f, "ais/exact_log_p")
    for key in f:
        if key.startswith("bits/"):
            yield row("bits per dimension, at most", f, key, f"from {key.removeprefix('bits/')}", 4)


def collapse_rows(f: Metrics) -> Iterator[str]:
    yield f"latents of {f['collapse/latents']}, by threshold" + "".join(
        f"{t:>9g}" for t in f["collapse/thresholds"]
    )
    yield f"{'  collapsed: mean KL below (nats)':<32}" + "".join(
        f"{n:>9}" for n in f["collapse/collapsed_at"]
    )
    yield f"{'  inactive: Var(E[z|x]) below':<32}" + "".join(
        f"{n:>9}" for n in f["collapse/inactive_at"]
    )
    yield f"KL by latent, test      {spectrum(f['collapse/kl'])}"
    if "collapse/predicted_kl" in f:
        yield f"KL by latent, train     {spectrum(f['collapse/train_kl'])}"
        yield f"  predicted, ½log(λ/s²) {spectrum(f['collapse/predicted_kl'])}"
    yield row(
        "aggregated posterior from prior, nats",
        f,
        "collapse/aggregated_kl",
        "(KL of its mean and covariance)",
    )


def spectrum(kl: list[float], shown: int = 10) -> str:
    """The largest, descending."""
    ordered = sorted(kl, reverse=True)
    return " ".join(f"{v:.2f}" for v in ordered[:shown]) + (" …" if len(ordered) > shown else "")


def chain_rows(f: Metrics) -> Iterator[str]:
    kept = (
        "stayed finite" if f["chain/finite"] else f"NOT finite after step {f['chain/finite_steps']}"
    )
    yield f"chain: {f['chain/chains']} chains of {f['chain/steps']} steps, {kept}"
    note = f"median, {f['chain/local_gain_max']:.3f} at most, at {f['chain/local_gain_states']} states visited"
    yield row("local gain", f, "chain/local_gain", note, 3)
    if "chain/spectral_radius" in f:
        yield row("spectral radius ρ(VW), exact", f, "chain/spectral_radius", digits=4)
    yield from limit_rows(f)
    note = f"p = {f['chain/one_step_p']:.3g} for a prior that is stationary, {f['chain/one_step_chains']:,} chains"
    yield row("prior moved by one step, nats", f, "chain/one_step_kl", note, 4)
    yield f"{'step':<34}" + "".join(f"{t:>8}" for t in f["chain/t"])
    yield f"{'  drift from the prior, nats':<34}" + "".join(
        f"{d:>8.2f}" for d in f["chain/drift_t"]
    )
    for label, shares in enumerate(zip(*f["chain/classes_t"], strict=True)):
        yield f"{f'  share of class {label}':<34}" + "".join(f"{share:>8.2f}" for share in shares)
    yield row("class changes per step", f, "chain/class_changes", digits=3)
    yield row("classes a chain visits in 100 steps", f, "chain/classes_visited", digits=1)
    yield mixing_sentence(f)


def limit_rows(f: Metrics) -> Iterator[str]:
    """Where the chain settles, in nats of mean and covariance from the prior."""
    if f["chain/has_limit"] == 0:
        yield "no limit: the trained weights make the chain run away"
        return
    if f["chain/limit_method"] == "exact":
        yield row("limit from prior, exact, nats", f, "chain/limit_kl")
    else:
        note = f"p = {f['chain/limit_p']:.3g} for the prior as the limit, "
        note += f"{f['chain/limit_chains']:,} chains, {f['chain/limit_steps']:,} steps"
        yield row("limit from prior, simulated, nats", f, "chain/limit_kl", note)
    if "chain/agreement_p" in f:
        note = f"p = {f['chain/agreement_p']:.3f}, {f['chain/agreement_chains']:,} chains, "
        note += f"{f['chain/agreement_steps']} steps"
        yield row("  simulated law from the exact one, nats", f, "chain/agreement_kl", note, 4)


def mixing_sentence(f: Metrics) -> str:
    """How much of the start 100 steps leave, where that is known."""
    if f["chain/has_limit"] == 0:
        return "a chain that runs away has no limit"
    if f["chain/mixing_method"] == "not resolved":
        return f"mixing time not resolved by {f['chain/steps']:,} steps"
    how, left = f["chain/mixing_method"], f["chain/memory_at_100"]
    near = "near" if left < 0.05 else "NOT near"
    text = f"mixing time {f['chain/mixing_steps']:.0f} steps ({how}): 100 steps are {near} the limit"
    return f"{text}, {left:.0%} of the start is left"


def sample_rows(f: Metrics) -> Iterator[str]:
    kinds = {"mean": "f(z)", "clipped": "f(z) clipped to [0, 1]", "noisy": "draws of p(x|z)"}
    kind = kinds[f["samples/kind"]]
    yield f"samples: {f['samples/n']:,} of {kind} against as many test images; floor: train against test"
    yield f"(features of a classifier with {f['classifier/test_accuracy']:.2%} on test, k = {f['samples/k']})"
    yield f"{'':<34}{'samples':>20}{'floor':>20}"
    names = {
        "fid": "Fréchet distance",
        "kid": "KID",
        "precision": "precision",
        "recall": "recall",
        "density": "density",
        "coverage": f"coverage ({f['samples/expected_coverage']:.3f} expected)",
        "nn_real": "1-NN accuracy, real side (½)",
        "nn_fake": "1-NN accuracy, sample side (½)",
    }
    for key, name in names.items():
        cells = [
            f"{f[f'samples/{key}{s}']:.3f} ± {f[f'samples/{key}{s}_se']:.3f}"
            for s in ("", "_floor")
        ]
        yield f"{name:<34}" + "".join(f"{cell:>20}" for cell in cells)


def against_rows(f: Metrics) -> Iterator[str]:
    yield f"less {f['against']}, paired over images"
    for key in f:
        if key.startswith("against/") and not key.endswith("_se"):
            yield row(key.removeprefix("against/"), f, key)
