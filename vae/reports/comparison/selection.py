"""Which runs a comparison shows, which of them repeat one training, and whether they compare."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from vae.data.datamodule import ImageDataModule
from vae.runs.checkpoints import BEST
from vae.runs.errors import UserError
from vae.runs.files import SETTINGS
from vae.runs.folder import Run, load_data, open_runs
from vae.runs.identity import comparability, group_trainings, incomparable, name_runs

MAX_ENTRIES, MAX_RUNS = 24, 120


def runs_to_compare(
    named: Sequence[str] | str, allow: tuple[str, ...] = (), max_runs: int = MAX_RUNS
) -> list[Run]:
    """The runs of these folders; a folder of run folders (a sweep) stands for the trained ones.

    Raises UserError with a line for each folder that is no run, and where fewer than two or too
    many are left.
    """
    names = [named] if isinstance(named, str) else named
    folders = [folder for name in names for folder in run_folders(Path(name))]
    places = [folder.resolve() for folder in folders]
    twice = [folder for i, folder in enumerate(folders) if places[i] in places[:i]]
    problems = [f"runs: {folder} is named twice" for folder in twice]
    runs = open_runs("runs", folders, allow, problems)
    if not problems and not 2 <= len(runs) <= max_runs:
        problems.append(
            f"runs={named} names {count(len(runs))}; a comparison takes 2 to {max_runs}: "
            "runs=[<folder>,<folder>]"
        )
    if problems:
        raise UserError(*problems)
    return runs


def count(runs: int) -> str:
    return "1 run" if runs == 1 else f"{runs} runs"


def run_folders(folder: Path) -> list[Path]:
    """The folder itself, or the trained runs below one that is no run, 8 before 32."""
    if (folder / SETTINGS).is_file():
        return [folder]
    below = folder.rglob(BEST) if folder.is_dir() else []
    found = [path.parents[1] for path in below]
    return sorted(found, key=natural_order) or [folder]


def natural_order(path: Path) -> str:
    return re.sub(r"\d+", lambda number: number[0].zfill(12), str(path))


def settings_of(run: Run) -> dict[str, Any]:
    """A run's settings as plain nested dictionaries, resolved."""
    plain = OmegaConf.to_container(run.config, resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def group_runs(runs: Sequence[Run]) -> tuple[list[str], list[list[Run]]]:
    """The entries of a comparison: their names, and the trainings of each, by seed.

    Runs that differ in nothing but the seed are trainings of one entry. A second run with a seed
    that an entry has already is no further training of it, and makes an entry of its own. Raises
    UserError for more than MAX_ENTRIES entries.
    """
    settings = [settings_of(run) for run in runs]
    groups: list[list[int]] = []
    for indices in group_trainings(settings):
        layers: list[dict[Any, int]] = []
        for index in indices:
            seed = settings[index].get("seed")
            layer = next((each for each in layers if seed not in each), None)
            if layer is None:
                layers.append(layer := {})
            layer[seed] = index
        groups += [[layer[seed] for seed in sorted(layer, key=str)] for layer in layers]
    if len(groups) > MAX_ENTRIES:
        raise UserError(
            f"runs: they make {len(groups)} entries, and at most {MAX_ENTRIES} fit on a page "
            "(runs that differ in the seed alone are one entry)"
        )
    if len(groups) < 2 <= len(runs):
        raise UserError(
            f"runs: all {len(runs)} are trainings of one setting, their seed aside; "
            "name runs of two settings, or give the means over seeds by vae.summary"
        )
    first = [indices[0] for indices in groups]
    folders = [runs[i].folder.name or runs[i].folder.resolve().name for i in first]
    names = name_runs([settings[i] for i in first], folders=folders)
    return names, [[runs[i] for i in indices] for indices in groups]


def page_problem(setting: str, out: Path) -> str | None:
    """Why a page cannot be written into a folder, as far as can be said beforehand."""
    if (out / SETTINGS).is_file():
        return f"{setting}={out} is a run's folder; name another one for the page"
    if out.exists() and not out.is_dir():
        return f"{setting}={out} is a file, and must be a folder"
    return None


def check_comparable(runs: Sequence[Run]) -> None:
    """Raise UserError, by name, for runs that were not trained on the same images."""
    problems = []
    first, *others = (
        comparability(settings_of(run), run.model.image_shape, run.model.likelihood.density)
        for run in runs
    )
    for run, other in zip(runs[1:], others, strict=True):
        for line in incomparable(first, other):
            problems.append(f"runs do not compare: {line}, in {runs[0].folder} and in {run.folder}")
    if problems:
        raise UserError(*problems)


def common_data(
    runs: Sequence[Run], allow: tuple[str, ...] = (), root: str | None = None
) -> ImageDataModule:
    """The images that all runs share, all three splits open; from `root` if they have moved.

    Raises UserError, by name, for runs without any.
    """
    check_comparable(runs)
    try:
        return load_data(runs[0].config, root, allow)
    except UserError as error:
        raise UserError(*(f"runs: {runs[0].folder}: {line}" for line in error.problems)) from error
