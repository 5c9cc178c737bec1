"""Several runs on the same inputs: the figures and pictures of a comparison, and whether runs compare at all."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor

from vae.callbacks.chain_video import CHAINS
from vae.callbacks.posterior_collapse import PosteriorCollapse
from vae.callbacks.prior_samples import prior_codes
from vae.chain import Course, follow
from vae.collapse import COLLAPSED
from vae.data import SPLITS, ImageDataModule
from vae.elbo import kl_to_prior, noise_per_image
from vae.errors import UserError
from vae.estimators import Estimate
from vae.module import SplitSums
from vae.networks import count_parameters, linear_pair
from vae.ppca import PPCA, Spectrum
from vae.runs import LAST, Run, load_data, load_run, read_checkpoint
from vae.settings import leaves

IMAGES, SAMPLES, STEPS, MOST = 16, 64, 100, 24
TERMS = ("elbo", "log_likelihood", "kl")
# settings of the data that leave the images as they are
PACE = ("root", "batch_size", "batches_per_block", "eval_batch_size")
# settings that name no run, as they leave alone what it learns (or, the model's name, come first anyway) …
UNNAMED = ("callbacks.", "logger.", "resume", "model.name", "data.root", "data.eval_batch_size", "trainer.")
LEARNT = ("trainer.max_", "trainer.precision", "trainer.gradient_", "trainer.accumulate_")  # … but for these


@dataclass(frozen=True)
class Compared:
    """A run as the page shows it. m latents, N images in a split."""

    name: str
    run: Run
    figures: dict[str, float]  # flat keys as in metrics.json, nats per image
    per_image: dict[str, Tensor]  # "<split>/<term>" [N], float64, with the same noise per image for all runs
    kl: Tensor  # [m], mean over the first 256 test images, the lab's batch
    oracle: PPCA | None  # the best linear pair with this latent_dim and likelihood, where it is known
    linear: bool
    history: list[dict[str, float]]  # an epoch a row; empty where the run kept none
    evaluation: dict[str, Any]  # evaluation.json; empty where there is none
    notes: list[str]  # what is missing or does not fit, a line each
    reconstructions: Tensor  # [16, 1, 28, 28]
    samples: Tensor  # [64, 1, 28, 28]
    course: Course

    @property
    def latent_dim(self) -> int:
        return self.run.model.latent_dim

    @property
    def likelihood(self) -> str:
        return self.run.model.likelihood.label

    @property
    def in_use(self) -> int:
        return self.latent_dim - int(self.figures["test/collapsed"])


def paired(a: Compared, b: Compared, key: str) -> Estimate:
    """Mean of b − a over the images of `<split>/<term>`, and its standard error, in nats per image."""
    return Estimate.of(b.per_image[key] - a.per_image[key])


# --- which runs ------------------------------------------------------------------------------------------------


def open_runs(named: Sequence[str] | str, allow: tuple[str, ...] = ()) -> list[Run]:
    """The runs of these folders; a folder of run folders (a sweep) stands for those in it that kept a checkpoint.

    Raises UserError with a line for each folder that is no run, and where fewer than two or too many are left.
    """
    problems: list[str] = []
    opened: dict[Path, Run] = {}
    for name in [named] if isinstance(named, str) else named:
        for folder in run_folders(Path(name)):
            try:
                if folder.resolve() in opened:
                    raise UserError(f"{folder} is named twice")
                opened[folder.resolve()] = load_run(folder, allow=allow)
            except UserError as error:
                problems += [f"runs: {problem}" for problem in error.problems]
    if not problems and not 2 <= len(opened) <= MOST:
        problems.append(f"runs={named} makes {len(opened)} runs, and must make 2 to {MOST}: runs=[<folder>,<folder>]")
    if problems:
        raise UserError(*problems)
    return list(opened.values())


def run_folders(folder: Path) -> list[Path]:
    """The folder itself, or the finished runs below one that is no run, 8 before 32."""
    if (folder / ".hydra" / "config.yaml").is_file():
        return [folder]
    below = [path.parents[1] for path in folder.rglob("checkpoints/best.ckpt")] if folder.is_dir() else []
    return sorted(below, key=lambda path: re.sub(r"\d+", lambda n: n[0].zfill(12), str(path))) or [folder]


def common_data(runs: Sequence[Run], allow: tuple[str, ...] = ()) -> ImageDataModule:
    """The images that all runs share, all three splits open. Raises UserError, by name, for runs without any."""
    problems = []
    first, *others = (described_data(run) for run in runs)
    for run, other in zip(runs[1:], others, strict=True):
        for key in sorted(first.keys() | other.keys()):
            a, b = first.get(key), other.get(key)
            if a != b:
                problems.append(f"runs do not compare: {key} is {a} in {runs[0].folder} and {b} in {run.folder}")
    if problems:
        raise UserError(*problems)
    try:
        return load_data(runs[0].config, allow=allow)
    except UserError as error:
        raise UserError(*(f"runs: {runs[0].folder}: {line}" for line in error.problems)) from error


@torch.no_grad()
def described_data(run: Run) -> dict[str, Any]:
    """What must be alike between runs: the data set, its split, the image size that the decoder makes."""
    node = OmegaConf.to_container(run.config.data, resolve=True)
    assert isinstance(node, dict)
    described = {"data.pixels": "grey"} | {f"data.{key!s}": value for key, value in node.items() if key not in PACE}
    shape = run.model.mean_image(torch.zeros(1, run.model.latent_dim)).shape[1:]
    kind = "a density" if run.model.likelihood.density else "a probability"
    return described | {"image size": "×".join(map(str, shape)), "the likelihood": kind}


def names(runs: Sequence[Run]) -> list[str]:
    """The model's name and the settings that differ between runs: `baseline`, `deep`, `deep, latent_dim=8`.

    What only says over again that two models differ (their layers) is left out; runs with equal settings are told
    apart by their folders.
    """
    settings = [dict(leaves(OmegaConf.to_container(run.config, resolve=False))) for run in runs]
    models = [run.model.name for run in runs]
    shown = []
    for key in dict.fromkeys(key for each in settings for key in each):
        if key.startswith(UNNAMED) and not key.startswith(LEARNT):
            continue
        values = [repr(each.get(key)) for each in settings]
        given = set(zip(models, values, strict=True)) if key.startswith(("model.encoder.", "model.decoder.")) else None
        if len(set(values)) > 1 if given is None else len(given) > len(set(models)):
            shown.append(key)
    short = {key: key.rsplit(".", 1)[-1] for key in shown}
    short = {key: name if list(short.values()).count(name) == 1 else key for key, name in short.items()}
    found = []
    for run, each in zip(runs, settings, strict=True):
        parts = [f"{short[k]}={each[k]}" for k in shown if k in each and not str(each[k]).startswith("${")]
        found.append(", ".join([run.model.name, *parts]))
    return [
        f"{name} ({run.folder.name or run.folder.resolve().name})" if found.count(name) > 1 else name
        for name, run in zip(found, runs, strict=True)
    ]


# --- their figures ---------------------------------------------------------------------------------------------


@torch.no_grad()
def compare_runs(runs: Sequence[Run], data: ImageDataModule) -> list[Compared]:
    """All figures and pictures of the runs on the images of `data`."""
    spectrum = data.spectrum()
    return [compare_run(run, name, data, spectrum) for run, name in zip(runs, names(runs), strict=True)]


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
                notes.append(f"metrics.json has {key} {kept:.2f}, its kept checkpoint gives {recomputed[key]:.2f} here")
    figures |= {f"{key}_se": Estimate.of(values).se for key, values in per_image.items()}

    oracle = model.likelihood.best_linear(spectrum, model.latent_dim)
    if oracle is not None:
        figures["oracle/train_elbo"] = oracle.train_elbo
        figures |= {f"oracle/{s}_elbo": oracle.elbo(data.images(s)).mean().item() for s in ("val", "test")}
    kl = kl_to_prior(model.encode(data.images("test", PosteriorCollapse.batch))).mean(0)
    figures["batch/collapsed"] = float((kl < COLLAPSED).sum())

    course = follow(model, prior_codes(CHAINS, model.latent_dim), STEPS, torch.Generator().manual_seed(0))
    figures |= course.figures | {"chain/drift_at_start": course.drifts[0], "chain/finite_steps": course.finite_steps}

    history, evaluation = kept_history(run.folder, notes), kept_evaluation(run.folder, notes)
    return Compared(
        name=name,
        run=run,
        figures=figures,
        per_image=per_image,
        kl=kl,
        oracle=oracle,
        linear=linear_pair(model) is not None,
        history=history,
        evaluation=evaluation,
        notes=notes,
        reconstructions=model.reconstruct(data.images("test", IMAGES), torch.Generator().manual_seed(0)),
        samples=model.mean_image(prior_codes(SAMPLES, model.latent_dim)),
        course=course,
    )


def elbo_figures(run: Run, data: ImageDataModule) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Means as in metrics.json (with the noise of the run's own test), and the terms image by image."""
    figures: dict[str, float] = {}
    per_image: dict[str, Tensor] = {}
    for split in SPLITS:
        noise = noise_per_image(len(data.pixels[split]), run.model.latent_dim)
        sums, parts = SplitSums(run.model.latent_dim, torch.device("cpu")), []
        for pixels, index in data.loader(split):
            images = data.fixed_images(split, pixels, index)
            terms, posterior = run.model.elbo_terms(images, noise[index])
            sums.add(terms, posterior.loc)
            parts.append(torch.stack([terms.elbo, terms.log_likelihood, terms.kl.sum(-1)]).double())
        figures |= {f"{split}/{key}": value for key, value in sums.figures(lambda total: total).items()}
        per_image |= {f"{split}/{term}": row for term, row in zip(TERMS, torch.cat(parts, 1), strict=True)}
    return figures, per_image


def kept_history(folder: Path, notes: list[str]) -> list[dict[str, float]]:
    """The ELBO curves that the run's last checkpoint carries; where it has none, a note and no rows."""
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
    return dict(leaves(found))


def as_json(compared: Sequence[Compared], words: dict[str, list[str]], limits: list[str]) -> dict[str, Any]:
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
                "difference_to_reference": {key: paired(first, each, key)._asdict() for key in each.per_image},
                "kl_per_latent": each.kl.tolist(),
                "closed_form_kl_per_latent": each.oracle.kl.tolist() if each.linear and each.oracle else None,
                "chain_drift": each.course.drifts,
                "curves": each.history,
                "evaluation": each.evaluation,
                "notes": each.notes,
            }
            for each in compared
        ],
    }
