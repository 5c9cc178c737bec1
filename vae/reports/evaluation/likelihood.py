"""How likely the test images are: ELBO, exact log p of a linear model, bounds for all others."""

import math
import re
from typing import NamedTuple

import torch
from torch import Tensor

from vae.analysis.ais import ais
from vae.analysis.bounds import Estimate, control_variate, elbo_terms, iwae, regression_slope
from vae.models.vae import VAE
from vae.reports.evaluation.metrics import (
    Metrics,
    Settings,
    Values,
    batches,
    progress,
    seeded_generator,
)
from vae.theory.linear import affine_weights, linear_elbo, linear_log_likelihood


def likelihoods(model: VAE, images: Tensor, settings: Settings) -> tuple[Values, Metrics]:
    """ELBO, exact log p of a linear model, L_K and AIS of test images: one value per image, and the
    effective sample sizes."""
    values, metrics = elbo_values(model, images, settings)
    values |= exact_values(model, images, settings)
    for part in (importance_values, ais_values):
        found, more = part(model, images, settings)
        values |= found
        metrics |= more
    for name, key in (("iwae", f"iwae/K={settings['iwae']['K'][-1]}"), ("ais", "ais/log_p")):
        if key in values and "exact/log_p" in values:
            some = subset(images, len(values[key]))
            values[f"{name}/exact_log_p"] = values["exact/log_p"][some]
    best = values.get(f"iwae/K={settings['iwae']['K'][-1]}")
    if best is not None and 0 < len(values.get("ais/log_p", ())) <= len(best):
        values["ais/iwae"] = best[: len(values["ais/log_p"])]
    return values, metrics


def subset(images: Tensor, n: int) -> Tensor:
    """Indices of the n images that the costly estimators see, [≤ n]: the first of one fixed
    order."""
    return torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:n]


def elbo_values(model: VAE, images: Tensor, settings: Settings) -> tuple[Values, Metrics]:
    """The ELBO and its terms. With one sample its noise is that of the test after training."""
    samples = settings["elbo"]["samples"]
    generator = torch.Generator().manual_seed(settings["seed"])
    noise = torch.randn((samples, len(images), model.latent_dim), generator=generator)
    parts = noise.split(settings["batch_size"], dim=1)
    terms = [
        elbo_terms(model, x, part.to(model.device))
        for x, part in zip(
            progress("ELBO")(batches(images, settings, model.device)), parts, strict=True
        )
    ]
    log_likelihood = torch.cat([t.log_likelihood for t in terms])
    kl = torch.cat([t.kl for t in terms]).sum(1)
    values = {
        "test/log_likelihood": log_likelihood,
        "test/kl": kl,
        "test/elbo": log_likelihood - kl,
    }
    return values, {"test/images": len(images), "test/samples": samples}


def exact_values(model: VAE, images: Tensor, settings: Settings) -> Values:
    """log p(x) and the ELBO without sampling noise, of a linear model; nothing for others."""
    weights = affine_weights(model)
    if weights is None:
        return {}
    parts = [
        (linear_log_likelihood(weights, x), linear_elbo(model, weights, x))
        for x in batches(images, settings, model.device)
    ]
    log_p, elbo = (torch.cat(part) for part in zip(*parts, strict=True))
    return {"exact/log_p": log_p, "exact/elbo": elbo, "exact/gap": log_p - elbo}


def importance_values(model: VAE, images: Tensor, settings: Settings) -> tuple[Values, Metrics]:
    """L_K with the encoder's q as proposal; `iwae/elbo` is the ELBO of the same images."""
    chosen, Ks = subset(images, settings["iwae"]["images"]), settings["iwae"]["K"]
    if not len(chosen):
        return {}, {}
    bounds = iwae(
        model,
        images[chosen].to(model.device),
        sorted({1, *Ks}),
        seeded_generator(settings["seed"], model.device),
        settings["iwae"]["rows"],
        progress("importance-weighted bound"),
    )
    values = {f"iwae/K={K}": bounds[K].bound for K in Ks} | {"iwae/elbo": bounds[1].bound}
    ess = {f"iwae/K={K}_ess": bounds[K].ess.mean().item() for K in Ks}
    return values, ess | {"iwae/images": len(chosen), "iwae/K": Ks}


def ais_values(model: VAE, images: Tensor, settings: Settings) -> tuple[Values, Metrics]:
    """Annealed importance sampling, of the first of the images that L_K has."""
    options = settings["ais"]
    chosen = subset(images, options["images"])
    if not len(chosen):
        return {}, {}
    path = {key: options[key] for key in ("chains", "distributions", "leapfrog", "start")}
    at_once = max(1, options["rows"] // options["chains"])
    generator = seeded_generator(settings["seed"], model.device)
    parts = [
        ais(model, x, generator=generator, progress=progress("AIS"), **path)
        for x in images[chosen].to(model.device).split(at_once)
    ]
    variance = torch.cat([part.se for part in parts]).square().sum()
    metrics: Metrics = {
        "ais/mc_se": variance.sqrt().item() / len(chosen),
        "ais/ess": torch.cat([part.ess for part in parts]).mean().item(),
        "ais/acceptance": sum(part.acceptance for part in parts) / len(parts),
        "ais/images": len(chosen),
    }
    metrics |= {f"ais/{key}": value for key, value in path.items()}
    return {"ais/log_p": torch.cat([part.log_p for part in parts])}, metrics


class Candidate(NamedTuple):
    """A bound on log p of the first images of the fixed order."""

    method: str
    bound: Tensor  # [n]
    elbo: Tensor  # [n], of the same images
    ess: float | None


def all_images(values: Values, metrics: Metrics, images: Tensor) -> Metrics:
    """Estimates for all test images from those on some, and the tightest of them, `bound/log_p`.

    Each is regressed on the ELBO, which all images have, over those it was made for; where L_K was
    estimated for more of them, in two levels, over L_K. The slope goes along: it says what the
    estimates of two models share through their ELBOs. On single images all are bounds from below in
    expectation, so the highest on the images that they share is the tightest.
    """
    whole = values.get("exact/elbo", values["test/elbo"])
    order = subset(images, len(images))
    found = candidates(values, metrics, images)
    many = found.get("iwae")
    result: Metrics = {}

    def estimate(key: str, one: Candidate) -> Metrics:
        levels = [(one.elbo, one.bound)]
        if many is not None and one is not many and len(one.bound) < len(many.bound):
            levels = [(many.elbo, many.bound), (many.bound[: len(one.bound)], one.bound)]
        mean, se, subset_se, slope = control_variate(whole, order, *levels)
        errors = {f"{key}_se": se, f"{key}_subset_se": subset_se}
        return {key: mean, **errors, f"{key}_slope": slope}

    for name in ("iwae", "ais"):
        if name in found:
            result |= estimate(f"{name}/log_p_all", found[name])
    if "exact/log_p" in values:
        log_p = values["exact/log_p"].cpu().double()
        exact, slope = Estimate.from_values(log_p), regression_slope(whole.cpu().double(), log_p)
        result |= {"bound/log_p": exact.mean, "bound/log_p_se": exact.se}
        result |= {"bound/log_p_subset_se": 0.0, "bound/log_p_slope": slope}
        result |= {"bound/method": "exact"}
        return result | {"bound/images": len(whole), "bound/ess": None}
    shared = min((len(one.bound) for one in found.values()), default=0)
    best = Candidate("ELBO", whole, whole, None)
    if found:
        best = max(found.values(), key=lambda one: one.bound[:shared].mean().item())
    result |= estimate("bound/log_p", best)
    return result | {
        "bound/method": best.method,
        "bound/images": len(best.bound),
        "bound/ess": best.ess,
    }


def candidates(values: Values, metrics: Metrics, images: Tensor) -> dict[str, Candidate]:
    """The bounds that were measured, by the part of the evaluation that they come from."""

    def elbo_of(n: int) -> Tensor:  # with as little sampling noise as there is
        if "exact/elbo" in values:
            return values["exact/elbo"][subset(images, n)]
        if len(values.get("iwae/elbo", ())) >= n:
            return values["iwae/elbo"][:n]
        return values["test/elbo"].cpu()[subset(images, n)]

    found: dict[str, Candidate] = {}
    if "iwae/K" in metrics:
        K = metrics["iwae/K"][-1]
        bound = values[f"iwae/K={K}"]
        ess = metrics[f"iwae/K={K}_ess"]
        found["iwae"] = Candidate(f"L_{K}, encoder's q", bound, elbo_of(len(bound)), ess)
    if metrics.get("gap/method") == "optimised":
        bound, method = values["gap/log_p"], f"L_{metrics['gap/K']}, optimised q"
        found["gap"] = Candidate(method, bound, values["gap/elbo"], metrics["gap/ess"])
    if "ais/log_p" in values:
        bound = values["ais/log_p"]
        method = f"AIS, {metrics['ais/distributions']} distributions"
        found["ais"] = Candidate(method, bound, elbo_of(len(bound)), metrics["ais/ess"])
    return found


def bits_per_dimension(metrics: Metrics, dimensions: int) -> Metrics:
    """`bits/<key>` of every mean log density of pixels (x + u)/256: of the 256 grey levels
    themselves, from above.

    −log₂ p(x) / D + 8 with D `dimensions` (pixels times channels; Theis et al. 2016,
    arXiv:1511.01844, section 3.1).
    """
    pattern = r"test/elbo|(exact|ais|bound)/log_p|iwae/K=\d+"
    keys = [key for key in metrics if re.fullmatch(pattern, key)]
    return {f"bits/{key}": 8 - metrics[key] / (dimensions * math.log(2)) for key in keys}
