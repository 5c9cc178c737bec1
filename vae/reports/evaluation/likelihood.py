"""How likely the test images are: the ELBO, the exact log p of a linear model, bounds for others."""

import math
import re

import torch
from torch import Tensor

from vae.analysis.ais import ais
from vae.analysis.bounds import elbo_terms, iwae
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
    """ELBO, exact log p of a linear pair, L_K and AIS of test images: one value an image, and the
    effective sizes."""
    device, seed, pair = model.device, settings["seed"], affine_weights(model)
    values: Values = {}
    shape = (settings["elbo"]["samples"], len(images), model.latent_dim)
    # With one sample this is the noise of the training's own test.
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).split(
        settings["batch_size"], dim=1
    )
    terms = [
        elbo_terms(model, x, part.to(device))
        for x, part in zip(progress("ELBO")(batches(images, settings, device)), noise, strict=True)
    ]
    values["test/log_likelihood"] = torch.cat([t.log_likelihood for t in terms])
    values["test/kl"] = torch.cat([t.kl for t in terms]).sum(1)
    values["test/elbo"] = values["test/log_likelihood"] - values["test/kl"]
    chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    some, few = chosen[: settings["iwae"]["images"]], chosen[: settings["ais"]["images"]]
    if pair is not None:
        exact = [linear_log_likelihood(pair, x) for x in batches(images, settings, device)]
        elbo = [linear_elbo(model, pair, x) for x in batches(images, settings, device)]
        values["exact/log_p"], values["exact/elbo"] = torch.cat(exact), torch.cat(elbo)
        values["exact/gap"] = values["exact/log_p"] - values["exact/elbo"]

    metrics: Metrics = {"test/images": len(images), "test/samples": shape[0]}
    if len(some):
        x = images[some].to(device)
        Ks, rows = settings["iwae"]["K"], settings["iwae"]["rows"]
        bounds = iwae(
            model,
            x,
            Ks,
            seeded_generator(seed, device),
            rows,
            progress("importance-weighted bound"),
        )
        for K, bound in bounds.items():
            values[f"iwae/K={K}"] = bound.bound
            metrics[f"iwae/K={K}_ess"] = bound.ess.mean().item()
        metrics |= {"iwae/images": len(some), "iwae/K": Ks}
        if pair is not None:
            values["iwae/exact_log_p"] = values["exact/log_p"][some]
    if len(few):
        at_once = max(1, settings["ais"]["rows"] // settings["ais"]["chains"])
        options = {
            key: settings["ais"][key] for key in ("chains", "distributions", "leapfrog", "start")
        }
        generator = seeded_generator(seed, device)
        parts = [
            ais(model, x, generator=generator, progress=progress("AIS"), **options)
            for x in images[few].to(device).split(at_once)
        ]
        values["ais/log_p"] = torch.cat([part.log_p for part in parts])
        metrics["ais/mc_se"] = torch.cat(
            [part.se for part in parts]
        ).square().sum().sqrt().item() / len(few)
        metrics["ais/ess"] = torch.cat([part.ess for part in parts]).mean().item()
        metrics["ais/acceptance"] = sum(part.acceptance for part in parts) / len(parts)
        metrics |= {"ais/images": len(few)} | {
            f"ais/{key}": value for key, value in options.items()
        }
        if pair is not None:
            values["ais/exact_log_p"] = values["exact/log_p"][few]
        if len(few) <= len(some):
            best = settings["iwae"]["K"][-1]
            values["ais/iwae"] = values[f"iwae/K={best}"][: len(few)]
    return values, metrics


def bits_per_dimension(metrics: Metrics, dimensions: int) -> Metrics:
    """`bits/<key>` of every mean log density of pixels (x + u)/256: of the 256 grey levels
    themselves, from above.

    −log₂ p(x) / D + 8 with D `dimensions` (pixels times channels; Theis et al. 2016, arXiv:1511.01844, section 3.1).
    """
    keys = [key for key in metrics if re.fullmatch(r"test/elbo|(exact|ais)/log_p|iwae/K=\d+", key)]
    return {f"bits/{key}": 8 - metrics[key] / (784 * math.log(2)) for key in keys}
