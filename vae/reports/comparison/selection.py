"""Which runs a comparison shows, how they are named, and whether they compare."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from vae.data.datamodule import ImageDataModule
from vae.runs.errors import UserError
from vae.runs.folder import Run, load_data, load_run
from vae.runs.validation import flatten

IMAGES, SAMPLES, STEPS, MAX_RUNS = 16, 64, 100, 24


# settings of the data that leave the images as they are
PACE = ("root", "batch_size", "batches_per_block", "eval_batch_size")


# settings that name no run, as they leave alone what it learns (or, the model's name, come first
# anyway) …
UNNAMED = (
    "callbacks.",
    "logger.",
    "resume",
    "model.name",
    "data.root",
    "data.eval_batch_size",
    "trainer.",
)


LEARNT = (
    "trainer.max_",
    "trainer.precision",
    "trainer.gradient_",
    "trainer.accumulate_",
)  # … but for these


# --- which runs ------------------------------------------------------------------------------------------------


def open_runs(named: Sequence[str] | str, allow: tuple[str, ...] = ()) -> list[Run]:
    """The runs of these folders; a folder of run folders (a sweep) stands for those in it that kept
    a checkpoint.

    Raises UserError with a line for each folder that is no run, and where fewer than two or too
    many are left.
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
    if not problems and not 2 <= len(opened) <= MAX_RUNS:
        problems.append(
            f"runs={named} makes {len(opened)} runs, and must make 2 to {MAX_RUNS}: runs=[<folder>,<folder>]"
        )
    if problems:
        raise UserError(*problems)
    return list(opened.values())


def run_folders(folder: Path) -> list[Path]:
    """The folder itself, or the finished runs below one that is no run, 8 before 32."""
    if (folder / ".hydra" / "config.yaml").is_file():
        return [folder]
    below = (
        [path.parents[1] for path in folder.rglob("checkpoints/best.ckpt")]
        if folder.is_dir()
        else []
    )
    return sorted(below, key=lambda path: re.sub(r"\d+", lambda n: n[0].zfill(12), str(path))) or [
        folder
    ]


def common_data(runs: Sequence[Run], allow: tuple[str, ...] = ()) -> ImageDataModule:
    """The images that all runs share, all three splits open. Raises UserError, by name, for runs
    without any."""
    problems = []
    first, *others = (described_data(run) for run in runs)
    for run, other in zip(runs[1:], others, strict=True):
        for key in sorted(first.keys() | other.keys()):
            a, b = first.get(key), other.get(key)
            if a != b:
                problems.append(
                    f"runs do not compare: {key} is {a} in {runs[0].folder} and {b} in {run.folder}"
                )
    if problems:
        raise UserError(*problems)
    try:
        return load_data(runs[0].config, allow=allow)
    except UserError as error:
        raise UserError(*(f"runs: {runs[0].folder}: {line}" for line in error.problems)) from error


@torch.no_grad()
def described_data(run: Run) -> dict[str, Any]:
    """What must be alike between runs: the data set, its split, the image size that the decoder
    makes."""
    node = OmegaConf.to_container(run.config.data, resolve=True)
    assert isinstance(node, dict)
    described = {"data.pixels": "grey"} | {
        f"data.{key!s}": value for key, value in node.items() if key not in PACE
    }
    shape = run.model.mean_image(torch.zeros(1, run.model.latent_dim)).shape[1:]
    kind = "a density" if run.model.likelihood.density else "a probability"
    return described | {"image size": "×".join(map(str, shape)), "the likelihood": kind}


def names(runs: Sequence[Run]) -> list[str]:
    """The model's name and the settings that differ between runs: `baseline`, `deep`, `deep,
    latent_dim=8`.

    What only says over again that two models differ (their layers) is left out; runs with equal
    settings are told apart by their folders.
    """
    settings = [dict(flatten(OmegaConf.to_container(run.config, resolve=False))) for run in runs]
    models = [run.model.name for run in runs]
    shown = []
    for key in dict.fromkeys(key for each in settings for key in each):
        if key.startswith(UNNAMED) and not key.startswith(LEARNT):
            continue
        values = [repr(each.get(key)) for each in settings]
        given = (
            set(zip(models, values, strict=True))
            if key.startswith(("model.encoder.", "model.decoder."))
            else None
        )
        if len(set(values)) > 1 if given is None else len(given) > len(set(models)):
            shown.append(key)
    short = {key: key.rsplit(".", 1)[-1] for key in shown}
    short = {
        key: name if list(short.values()).count(name) == 1 else key for key, name in short.items()
    }
    found = []
    for run, each in zip(runs, settings, strict=True):
        parts = [
            f"{short[k]}={each[k]}"
            for k in shown
            if k in each and not str(each[k]).startswith("${")
        ]
        found.append(", ".join([run.model.name, *parts]))
    return [
        f"{name} ({run.folder.name or run.folder.resolve().name})"
        if found.count(name) > 1
        else name
        for name, run in zip(found, runs, strict=True)
    ]
