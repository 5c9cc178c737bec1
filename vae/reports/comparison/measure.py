"""The trainings of a comparison on the same images, latents and noise."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vae.analysis.chain import CHAINS, ChainTrace, prior_latents, simulate
from vae.analysis.latents import COLLAPSE_BATCH, COLLAPSE_THRESHOLD
from vae.analysis.limit import Limit, Mixing
from vae.analysis.refit import ReconstructionErrors
from vae.data.datamodule import SPLITS, ImageDataModule
from vae.models.elbo import kl_to_prior, noise_per_image
from vae.models.likelihoods import Gaussian
from vae.models.vae import count_parameters
from vae.reports.comparison.limit import best_limit, best_mixing
from vae.reports.comparison.statistics import standard_error
from vae.runs.checkpoints import weights_digest
from vae.runs.files import MAX_JSON_BYTES
from vae.runs.folder import Run
from vae.runs.identity import flatten
from vae.theory.linear import affine_weights, linear_elbo, linear_log_likelihood
from vae.theory.ppca import PPCA, Spectrum, best_linear
from vae.training.history import read_history
from vae.training.metrics import ELBOMetric

TERMS = ("elbo", "log_likelihood", "kl")
IMAGES, SAMPLES, STEPS = 16, 64, 100  # reconstructed, sampled, steps of the chain
METRICS_TOLERANCE = 0.05  # nats by which metrics.json may differ from its checkpoint's metrics
BATCH = 1000


@dataclass(frozen=True)
class Training:
    """One trained run as a comparison measures it. m latents, N images in a split."""

    run: Run
    metrics: dict[str, float]  # flat keys as in metrics.json, nats per image
    # "<split>/<term>" [N], float64, with the same noise per image for all runs. Besides the terms:
    # "refit_elbo" (val, test), and "over_linear", the ELBO less that of the best linear encoder
    # and decoder on the same image (of a linear model on train with its expectation done exactly).
    per_image: dict[str, Tensor]
    kl: Tensor  # [m], mean over the first 256 test images
    oracle: PPCA | None  # the best linear encoder and decoder of this size, where it is known
    linear: bool
    history: list[dict[str, float]]  # a row per validation; empty where the run has none
    evaluation: dict[str, Any]  # evaluation.json; empty where there is none
    notes: list[str]  # what is missing or does not fit, a line each
    reconstructions: Tensor  # [16, C, H, W]
    samples: Tensor  # [64, C, H, W]
    trace: ChainTrace
    limit: Limit  # of the chain: the best that is known
    mixing: Mixing  # likewise

    @property
    def latent_dim(self) -> int:
        return self.run.model.latent_dim

    @property
    def likelihood(self) -> str:
        return self.run.model.likelihood.label

    @property
    def seed(self) -> Any:
        return self.run.config.get("seed")


@torch.no_grad()
def measure(runs: Sequence[Run], data: ImageDataModule, spectrum: Spectrum) -> list[Training]:
    """Everything that the page shows of these runs, on the images of `data`."""
    # 1. The ELBO's terms image by image; each split is opened once for all runs.
    metrics: list[dict[str, float]] = [{} for _ in runs]
    per_image: list[dict[str, Tensor]] = [{} for _ in runs]
    oracles = [best_linear(r.model.likelihood, spectrum, r.model.latent_dim) for r in runs]
    optima: dict[tuple[str, int, float], Tensor] = {}  # equal for runs of one size and sigma
    for split in SPLITS:
        images, index = data.images(split), data.index[split]
        for i, (run, oracle) in enumerate(zip(runs, oracles, strict=True)):
            noise = noise_per_image(len(data.pixels[split]), run.model.latent_dim)[index]
            means, terms = elbo_terms(run, images, noise)
            metrics[i] |= {f"{split}/{key}": value for key, value in means.items()}
            per_image[i] |= {f"{split}/{key}": value for key, value in terms.items()}
            if split == "test" and (weights := affine_weights(run.model)) is not None:
                per_image[i]["exact/log_p"] = linear_log_likelihood(weights, images)
            if oracle is None:
                continue
            key = (split, oracle.latent_dim, oracle.sigma)
            optima.setdefault(key, oracle.elbo(images))
            per_image[i][f"{split}/over_linear"] = over_linear(
                run, images, terms["elbo"], optima[key], exact=split == "train"
            )
            metrics[i][f"oracle/{split}_elbo"] = optima[key].mean().item()
            if split == "test":
                metrics[i] |= free_sigma_optimum(spectrum, run.model.latent_dim, images, optima)
        del images
    # 2. The rest, run by run.
    return [
        measure_run(*each, data) for each in zip(runs, metrics, per_image, oracles, strict=True)
    ]


def elbo_terms(
    run: Run, images: Tensor, noise: Tensor
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Means of the ELBO's terms as in metrics.json, and each term image by image, float64 [N]."""
    metric = ELBOMetric(run.model.latent_dim)
    parts = []
    for x, z_noise in zip(images.split(BATCH), noise.split(BATCH), strict=True):
        terms, posterior = run.model.elbo_terms(x, z_noise)
        metric.update(terms, posterior.loc)
        parts.append(torch.stack([terms.elbo, terms.log_likelihood, terms.kl.sum(-1)]).double())
    means = {key: float(value) for key, value in metric.compute().items()}
    return means, dict(zip(TERMS, torch.cat(parts, 1), strict=True))


def free_sigma_optimum(
    spectrum: Spectrum, m: int, images: Tensor, optima: dict[tuple[str, int, float], Tensor]
) -> dict[str, float]:
    """sigma and test ELBO of the best linear encoder and decoder whose sigma is free too."""
    likelihood = Gaussian(1.0, learned=True)
    oracle = best_linear(likelihood, spectrum, m)
    if oracle is None:
        return {}
    key = ("test", m, oracle.sigma)
    optima.setdefault(key, oracle.elbo(images))
    elbo = optima[key].mean().item()
    return {"refit/oracle_sigma": oracle.sigma, "refit/oracle_test_elbo": elbo}


def over_linear(run: Run, images: Tensor, elbo: Tensor, optimum: Tensor, exact: bool) -> Tensor:
    """A run's ELBO less the best linear one, image by image, [N]; `exact` in z where it can be."""
    weights = affine_weights(run.model) if exact else None
    if weights is None:
        return elbo - optimum
    parts = [linear_elbo(run.model, weights, x) for x in images.split(BATCH)]
    return torch.cat(parts) - optimum


def measure_run(
    run: Run,
    recomputed: dict[str, float],
    per_image: dict[str, Tensor],
    oracle: PPCA | None,
    data: ImageDataModule,
) -> Training:
    model = run.model
    # 1. metrics.json, and what is recomputed here where it has nothing.
    metrics: dict[str, float] = {
        "model/encoder_parameters": count_parameters(model.encoder),
        "model/decoder_parameters": count_parameters(model.decoder),
        **recomputed,
    }
    notes = []
    expected = [key for key in recomputed if not key.startswith("refit/")]  # of a training
    if missing := [key for key in expected if run.metrics.get(key) is None]:
        which = "numbers" if missing == expected else ", ".join(missing)
        notes.append(f"no {which} in a metrics.json: computed here")
    for key in recomputed:
        value = run.metrics.get(key)
        if value is None:
            continue
        metrics[key] = value
        if key.endswith("/elbo") and abs(value - recomputed[key]) > METRICS_TOLERANCE:
            notes.append(
                f"metrics.json has {key} {value:.2f}, "
                f"its best checkpoint gives {recomputed[key]:.2f} here"
            )
    # 2. sigma refitted on validation images, the networks unchanged.
    if model.sigma is not None and model.likelihood.density:
        errors = {
            split: ReconstructionErrors.from_log_likelihood(
                per_image[f"{split}/log_likelihood"],
                per_image[f"{split}/kl"],
                math.prod(model.image_shape),
                model.sigma,
            )
            for split in ("val", "test")
        }
        metrics["refit/sigma"] = sigma = max(errors["val"].sigma, 1e-6)
        per_image |= {f"{split}/refit_elbo": each.elbo(sigma) for split, each in errors.items()}
    for key, values in per_image.items():
        metrics.setdefault(key, values.mean().item())
        metrics[f"{key}_se"] = standard_error(values)
    # 3. Latents, the chain, pictures.
    kl = kl_to_prior(model.encode(data.images("test", COLLAPSE_BATCH))).mean(0)
    metrics["batch/collapsed"] = float((kl < COLLAPSE_THRESHOLD).sum())
    trace = simulate(model, prior_latents(CHAINS, model.latent_dim), STEPS)
    metrics |= trace.metrics | {
        "chain/drift_at_start": trace.drifts[0],
        "chain/finite_steps": trace.finite_steps,
    }
    history, evaluation = read_curves(run.folder, notes), read_evaluation(run.folder, notes)
    return Training(
        run=run,
        metrics=metrics,
        per_image=per_image,
        kl=kl,
        oracle=oracle,
        linear=affine_weights(model) is not None,
        history=history,
        evaluation=evaluation,
        notes=notes,
        reconstructions=model.reconstruct(
            data.images("test", IMAGES), torch.Generator().manual_seed(0)
        ),
        samples=model.mean_image(prior_latents(SAMPLES, model.latent_dim)),
        trace=trace,
        limit=best_limit(trace, evaluation),
        mixing=best_mixing(trace, evaluation),
    )


def read_curves(folder: Path, notes: list[str]) -> list[dict[str, float]]:
    """history.csv; where there is none, a note and no rows."""
    try:
        history = read_history(folder)
    except (ValueError, OSError) as error:
        notes.append(f"no curves: {error}")
        return []
    if not history:
        notes.append("no curves: it has no history.csv")
    return history


def read_evaluation(folder: Path, notes: list[str]) -> dict[str, Any]:
    """evaluation.json where `vae.evaluate` has left one, by flat key."""
    path = folder / "evaluation.json"
    if not path.is_file():
        return {}
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise ValueError(f"it is larger than {MAX_JSON_BYTES} bytes")
        found = json.loads(path.read_text())
        if not isinstance(found, dict):
            raise ValueError("it holds no metrics by name")
    except (OSError, ValueError, RecursionError) as error:
        notes.append(f"evaluation.json cannot be read ({error})")
        return {}
    digest = found.get("checkpoint")
    if digest is not None and digest != weights_digest(folder):
        notes.append("evaluation.json is of other weights than the checkpoint, and left out")
        return {}
    return dict(flatten(found))
