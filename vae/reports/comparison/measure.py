"""Several runs on the same inputs: the figures and pictures of a comparison, and whether runs
compare at all."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor

from vae.analysis.bounds import Estimate
from vae.analysis.chain import CHAINS, ChainTrace, prior_latents, simulate
from vae.analysis.latents import COLLAPSE_THRESHOLD, LAB_BATCH
from vae.data.datamodule import SPLITS, ImageDataModule
from vae.models.elbo import kl_to_prior
from vae.models.vae import count_parameters
from vae.reports.comparison.selection import IMAGES, SAMPLES, STEPS, names
from vae.runs.errors import UserError
from vae.runs.folder import LAST, Run, read_checkpoint
from vae.runs.validation import flatten
from vae.theory.linear import affine_weights
from vae.theory.ppca import PPCA, Spectrum, best_linear
from vae.training.metrics import ELBOMetric, FixedNoise

TERMS = ("elbo", "log_likelihood", "kl")


@dataclass(frozen=True)
class Compared:
    """A run as the page shows it. m latents, N images in a split."""

    name: str
    run: Run
    figures: dict[str, float]  # flat keys as in metrics.json, nats per image
    per_image: dict[
        str, Tensor
    ]  # "<split>/<term>" [N], float64, with the same noise per image for all runs
    kl: Tensor  # [m], mean over the first 256 test images, the lab's batch
    oracle: (
        PPCA | None
    )  # the best linear pair with this latent_dim and likelihood, where it is known
    linear: bool
    history: list[dict[str, float]]  # an epoch a row; empty where the run kept none
    evaluation: dict[str, Any]  # evaluation.json; empty where there is none
    notes: list[str]  # what is missing or does not fit, a line each
    reconstructions: Tensor  # [16, 1, 28, 28]
    samples: Tensor  # [64, 1, 28, 28]
    course: ChainTrace

    @property
    def latent_dim(self) -> int:
        return self.run.model.latent_dim

    @property
    def likelihood(self) -> str:
        return self.run.model.likelihood.label

    @property
    def active(self) -> int:
        return self.latent_dim - int(self.figures["test/collapsed"])


def paired(a: Compared, b: Compared, key: str) -> Estimate:
    """Mean of b − a over the images of `<split>/<term>`, and its standard error, in nats per
    image."""
    return Estimate.of(b.per_image[key] - a.per_image[key])


# --- their figures ---------------------------------------------------------------------------------------------


@torch.no_grad()
def compare_runs(runs: Sequence[Run], data: ImageDataModule) -> list[Compared]:
    """All figures and pictures of the runs on the images of `data`."""
    spectrum = data.spectrum()
    return [
        compare_run(run, name, data, spectrum) for run, name in zip(runs, names(runs), strict=True)
    ]


def compare_run(run: Run, name: str, data: ImageDataModule, spectrum: Spectrum) -> Compared:
    model, notes = run.model, []
    recomputed, per_image = elbo_figures(run, data)
    figures: dict[str, float] = {
        "model/encoder_parameters": count_parameters(model.encoder),
        "model/decoder_parameters": count_parameters(model.decoder),
        **recomputed,
    }
    if not run.metrics:
        notes.append("no metrics.json: its training was cut off; its figures were computed here")
    for key in recomputed:  # the run's own figures, where it has them
        kept = run.metrics.get(key)
        if kept is not None:
            figures[key] = kept
            if key.endswith("/elbo") and abs(kept - recomputed[key]) > 0.05:
                notes.append(
                    f"metrics.json has {key} {kept:.2f}, its kept checkpoint gives {recomputed[key]:.2f} here"
                )
    figures |= {f"{key}_se": Estimate.of(values).se for key, values in per_image.items()}

    oracle = best_linear(model.likelihood, spectrum, model.latent_dim)
    if oracle is not None:
        figures["oracle/train_elbo"] = oracle.train_elbo
        figures |= {
            f"oracle/{s}_elbo": oracle.elbo(data.images(s)).mean().item() for s in ("val", "test")
        }
    kl = kl_to_prior(model.encode(data.images("test", LAB_BATCH))).mean(0)
    figures["batch/collapsed"] = float((kl < COLLAPSE_THRESHOLD).sum())

    course = simulate(
        model, prior_latents(CHAINS, model.latent_dim), STEPS, torch.Generator().manual_seed(0)
    )
    figures |= course.metrics | {
        "chain/drift_at_start": course.drifts[0],
        "chain/finite_steps": course.finite_steps,
    }

    history, evaluation = kept_history(run.folder, notes), kept_evaluation(run.folder, notes)
    return Compared(
        name=name,
        run=run,
        figures=figures,
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
        course=course,
    )


def elbo_figures(run: Run, data: ImageDataModule) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Means as in metrics.json, with the noise of the run's own test, and the terms by image."""
    figures: dict[str, float] = {}
    per_image: dict[str, Tensor] = {}
    noise, metric = FixedNoise(run.model.latent_dim, 0), ELBOMetric(run.model.latent_dim)
    for split in SPLITS:
        parts = []
        for number, batch in enumerate(data.loader(split)):
            terms, q = run.model.elbo_terms(batch.images(), noise(batch, number))
            metric.update(terms, q.loc)
            parts.append(torch.stack([terms.elbo, terms.log_likelihood, terms.kl.sum(-1)]).double())
        figures |= metric.pop(split)
        per_image |= {
            f"{split}/{term}": row for term, row in zip(TERMS, torch.cat(parts, 1), strict=True)
        }
    return figures, per_image


def kept_history(folder: Path, notes: list[str]) -> list[dict[str, float]]:
    """The ELBO curves that the run's last checkpoint carries; where it has none, a note and no
    rows."""
    try:
        callbacks = read_checkpoint(folder / LAST).get("callbacks", {})
    except UserError as error:
        notes.append(f"no ELBO curves: {error}")
        return []
    history = [state["history"] for key, state in callbacks.items() if key.startswith("ELBOCurves")]
    if not history:
        notes.append("no ELBO curves: it was trained with callbacks.elbo_curves=null")
    return history[0] if history else []


def kept_evaluation(folder: Path, notes: list[str]) -> dict[str, Any]:
    """evaluation.json where `vae.evaluate` has left one."""
    path = folder / "evaluation.json"
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text())
        if not isinstance(found, dict):
            raise ValueError("it holds no figures by name")
    except ValueError as error:
        notes.append(f"evaluation.json cannot be read ({error})")
        return {}
    return dict(flatten(found))


def as_json(
    compared: Sequence[Compared], words: dict[str, list[str]], limits: list[str]
) -> dict[str, Any]:
    """Every figure of the page."""
    first = compared[0]
    return {
        "verdict": words,
        "not_to_be_concluded": limits,
        "reference": first.name,
        "runs": [
            {
                "name": each.name,
                "folder": str(each.run.folder),
                "settings": OmegaConf.to_container(each.run.config, resolve=False),
                "figures": each.figures,
                "difference_to_reference": {
                    key: paired(first, each, key)._asdict() for key in each.per_image
                },
                "kl_per_latent": each.kl.tolist(),
                "closed_form_kl_per_latent": each.oracle.kl.tolist()
                if each.linear and each.oracle
                else None,
                "chain_drift": each.course.drifts,
                "curves": each.history,
                "evaluation": each.evaluation,
                "notes": each.notes,
            }
            for each in compared
        ],
    }
