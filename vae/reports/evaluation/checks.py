"""What the likelihood leaves open: sigma, the encoder's share, how far AIS is off, the model's own
images."""

import math

import torch
from torch import Tensor

from vae.analysis.ais import bidirectional, draw_images
from vae.analysis.bounds import control_variate
from vae.analysis.inference_gap import (
    InferenceGap,
    inference_gap,
    linear_inference_gap,
    tight_log_p,
)
from vae.analysis.refit import reconstruction_errors, refit_sigma, with_sigma
from vae.data.datamodule import ImageDataModule
from vae.models.vae import VAE
from vae.reports.evaluation.likelihood import subset
from vae.reports.evaluation.metrics import (
    Metrics,
    Settings,
    Values,
    batches,
    means,
    progress,
    seeded_generator,
)
from vae.theory.linear import affine_weights, linear_log_likelihood
from vae.theory.ppca import PPCA, has_ml_sigma

RESIDUAL_IMAGES = 1000  # of the model's own images, for their residual variance


def refit(model: VAE, data: ImageDataModule, settings: Settings) -> Metrics:
    """The ELBO at the sigma refitted on validation images, next to the best linear model with a
    free sigma; nothing for a likelihood without a sigma."""
    val, test = (batches(data.images(split), settings, model.device) for split in ("val", "test"))
    found = refit_sigma(model, val, test, settings["elbo"]["samples"], settings["seed"])
    if found is None:
        return {}
    metrics = {"refit/sigma": found.sigma} | means(
        {"refit/val_elbo": found.val_elbo, "refit/test_elbo": found.test_elbo}
    )
    metrics |= refitted_log_p(with_sigma(model, found.sigma), found.test_elbo, data, settings)
    spectrum = data.spectrum()
    if has_ml_sigma(spectrum, model.latent_dim):
        oracle = PPCA.with_ml_sigma(spectrum, model.latent_dim)
        metrics["refit/oracle_sigma"] = oracle.sigma
        metrics |= means({"refit/oracle_test_elbo": oracle.elbo(data.images("test"))})
    return metrics


def refitted_log_p(
    model: VAE, test_elbo: Tensor, data: ImageDataModule, settings: Settings
) -> Metrics:
    """log p of test images at the refitted sigma, whose encoder was trained for another: exact for
    a linear model, else by a control variate from as many images as the inference gap has."""
    images, weights = data.images("test"), affine_weights(model)
    if weights is not None:
        parts = [linear_log_likelihood(weights, x) for x in batches(images, settings, model.device)]
        return means({"refit/log_p": torch.cat(parts)})
    chosen = subset(images, settings["gap"]["images"])
    if not len(chosen):
        return {}
    found = optimised_gap(model, images[chosen], settings, "log p at the refitted sigma")
    log_p = control_variate(test_elbo, chosen, (found.elbo, found.log_p))
    errors = {"refit/log_p_se": log_p.se, "refit/log_p_subset_se": log_p.subset_se}
    return {"refit/log_p": log_p.mean} | errors


def optimised_gap(model: VAE, images: Tensor, settings: Settings, what: str) -> InferenceGap:
    """The inference gap of images by the settings under `gap`."""
    options = settings["gap"]
    return inference_gap(
        model,
        images.to(model.device),
        options["K"],
        options["steps"],
        options["samples"],
        seeded_generator(settings["seed"], model.device),
        settings["iwae"]["rows"],
        progress(what),
    )


def gap(model: VAE, images: Tensor, settings: Settings) -> tuple[Values, Metrics]:
    """log p − ELBO as approximation gap + amortisation gap: exact for a linear model, of all test
    images."""
    options, weights = settings["gap"], affine_weights(model)
    chosen = subset(images, options["images"])
    if not len(chosen):
        return {}, {}
    metrics: Metrics = {}
    if weights is not None:
        parts = [
            linear_inference_gap(model, weights, x) for x in batches(images, settings, model.device)
        ]
        log_p, best, elbo = (
            torch.cat([part[i] for part in parts])  # type: ignore[misc]
            for i in range(3)
        )
        found = InferenceGap(log_p, best, elbo, None)
        metrics |= {"gap/method": "exact"}
    else:
        found = optimised_gap(model, images[chosen], settings, "inference gap")
        assert found.ess is not None
        metrics |= {"gap/method": "optimised", "gap/K": options["K"]}
        metrics |= {"gap/steps": options["steps"], "gap/ess": found.ess.mean().item()}
    values = {
        "gap/log_p": found.log_p,
        "gap/elbo": found.elbo,
        "gap/approximation": found.approximation,
        "gap/amortisation": found.amortisation,
        "gap/total": found.log_p - found.elbo,
    }
    return values, metrics | {"gap/images": len(found.log_p)}


def bdmc(model: VAE, settings: Settings) -> Metrics:
    """Bounds from both sides on log p of images drawn from the model: how far AIS can be off."""
    options = settings["bdmc"]
    if not options["images"]:
        return {}
    generator = seeded_generator(settings["seed"], model.device)
    images, z = draw_images(model, options["images"], generator)
    path = {key: settings["ais"][key] for key in ("leapfrog", "start")}
    at_once = max(1, settings["ais"]["rows"] // options["chains"])
    parts = [
        bidirectional(
            model,
            x,
            latents,
            options["chains"],
            options["distributions"],
            generator=generator,
            progress=progress("bidirectional Monte Carlo"),
            **path,
        )
        for x, latents in zip(images.split(at_once), z.split(at_once), strict=True)
    ]
    lower, upper = (torch.cat(one) for one in list(zip(*parts, strict=True))[:2])
    values = {"bdmc/lower": lower, "bdmc/upper": upper, "bdmc/gap": upper - lower}
    weights = affine_weights(model)
    if weights is not None:
        values["bdmc/exact_log_p"] = tight_log_p(model, images)
    metrics = means(values) | {
        "bdmc/images": len(images),
        "bdmc/chains": options["chains"],
        "bdmc/distributions": options["distributions"],
        "bdmc/acceptance": sum(part.acceptance for part in parts) / len(parts),
    }
    return metrics | {f"bdmc/{key}": value for key, value in path.items()}


def predictive_check(model: VAE, images: Tensor, values: Values, settings: Settings) -> Metrics:
    """Posterior predictive check (Gelman, Meng & Stern 1996): log p and residual variance of the
    model's own images against those of test images.

    A sigma above the size of the real residuals shows here: the model's own images are then noisier
    than any digit. log p is exact for a linear model, and otherwise L_K with proposals optimised
    for each image, on both sides.
    """
    n = settings["ppc"]["images"]
    if not n:
        return {}
    generator = seeded_generator(settings["seed"], model.device)
    drawn, _ = draw_images(model, max(n, RESIDUAL_IMAGES), generator)
    options = {key: settings["gap"][key] for key in ("K", "steps", "samples")}
    options |= {"generator": generator, "rows": settings["iwae"]["rows"]}
    # 1. log p of both
    exact = affine_weights(model) is not None
    some = drawn if exact else drawn[:n]
    of_samples = tight_log_p(model, some, progress=progress("own images"), **options)
    of_test = values.get("exact/log_p", values.get("gap/log_p"))
    if of_test is None:
        x = images[subset(images, n)].to(model.device)
        of_test = tight_log_p(model, x, progress=progress("test images"), **options)
    # 2. Residual variance per dimension, z ~ q(z|x)
    D = images[0].numel()
    residuals = [
        reconstruction_errors(model, batches(x, settings, model.device)).squared / D
        for x in (drawn, images)
    ]
    metrics = means(
        {
            "ppc/log_p_samples": of_samples,
            "ppc/log_p_test": of_test,
            "ppc/residual_variance_samples": residuals[0],
            "ppc/residual_variance_test": residuals[1],
        }
    )
    for key, value in (("samples", of_samples), ("test", of_test)):
        metrics[f"ppc/log_p_{key}_sd"] = spread(value)
    sigma = model.sigma
    return metrics | {
        "ppc/sigma2": None if sigma is None else sigma**2,
        "ppc/images": len(of_samples),
        "ppc/test_images": len(of_test),
        "ppc/residual_images": len(drawn),
    }


def spread(values: Tensor) -> float:
    """Standard deviation over images; NaN for a single one."""
    return values.cpu().double().std().item() if len(values) > 1 else math.nan
