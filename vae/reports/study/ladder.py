"""The architectures of a study, by the depth and width of their networks, and their trainings.

Only settings, metrics.json and evaluation.json of the runs are read, never a checkpoint.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vae.models.elbo import upper_bound
from vae.reports.comparison.selection import run_folders
from vae.reports.comparison.statistics import Measured
from vae.reports.study.sizes import (
    LINEAR,
    Layers,
    canonical,
    name_and_ladder,
    name_architectures,
    require_alike,
    require_sizes_alone,
    sizes,
)
from vae.reports.sweep.runs import SweepRun, read_run
from vae.runs.errors import UserError
from vae.runs.files import finite_number, read_json
from vae.runs.identity import group_trainings
from vae.runs.keys import select


@dataclass(frozen=True)
class Architecture:
    """The trainings of one architecture: they differ in their seed alone."""

    name: str
    ladder: str  # the line of the charts that it belongs to
    encoder: Layers | None  # None for other networks than fully connected ones
    decoder: Layers | None
    folders: list[Path]
    metrics: list[dict[str, Any]]  # of each training

    @property
    def parameters(self) -> int:
        first = self.metrics[0]
        return int(first["model/encoder_parameters"] + first["model/decoder_parameters"])

    @property
    def alike(self) -> bool:
        """Whether encoder and decoder are fully connected and of one size: linear, or with hidden
        layers."""
        same = self.encoder is not None and self.encoder == self.decoder
        return same and (self.ladder == LINEAR or bool(self.encoder and self.encoder.depth))

    def measured(self, key: str) -> Measured | None:
        """Mean over trainings, with both errors; None where a training lacks the metric."""
        values = [finite_number(metrics.get(key)) for metrics in self.metrics]
        known = [value for value in values if value is not None]
        if len(known) < len(values):
            return None
        errors = [finite_number(metrics.get(f"{key}_se")) for metrics in self.metrics]
        given = [error for error in errors if error is not None]
        return Measured.from_values(
            known, sum(given) / len(given) if len(given) == len(errors) else None
        )


def read_architectures(named: Sequence[str] | str) -> list[Architecture]:
    """The architectures of run folders and sweep folders, by their number of parameters.

    Runs that differ in the seed alone are trainings of one architecture, whatever they are called;
    of two with the same seed the first counts. Raises UserError for runs without metrics and for
    runs that differ in more than their networks.
    """
    # 1. The runs, and whether they make a study.
    folders = [
        folder
        for name in ([named] if isinstance(named, str) else named)
        for folder in run_folders(Path(name))
    ]
    unfinished = [folder for folder in folders if not (folder / "metrics.json").is_file()]
    if unfinished:
        raise UserError(*(f"runs: {folder} has no metrics.json" for folder in unfinished))
    runs = {folder: read_run(folder.parent, folder) for folder in folders}
    settings = {folder: canonical(run.settings) for folder, run in runs.items()}
    require_alike(list(settings.values()))
    # 2. The trainings of each architecture, by seed.
    groups = [
        first_of_each_seed([list(runs)[i] for i in indices], settings)
        for indices in group_trainings(list(settings.values()))
    ]
    firsts = [settings[group[0]] for group in groups]
    require_sizes_alone(firsts)
    if len(groups) < 2:
        raise UserError("runs: a study needs runs of at least two architectures")
    # 3. Their names, sizes and metrics.
    found = []
    names = name_architectures(firsts, [str(group[0]) for group in groups])
    for name, first, group in zip(names, firsts, groups, strict=True):
        metrics = [{**runs[each].metrics, **evaluation_metrics(each, runs[each])} for each in group]
        found.append(Architecture(name, name_and_ladder(first)[1], *sizes(first), group, metrics))
    return sorted(found, key=lambda each: each.parameters)


def first_of_each_seed(
    folders: Sequence[Path], settings: Mapping[Path, Mapping[str, Any]]
) -> list[Path]:
    """Folders by their seed; two runs with one seed are one training, which is said."""
    seeds: dict[Any, Path] = {}
    for folder in folders:
        kept = seeds.setdefault(settings[folder].get("seed"), folder)
        if kept is not folder:
            print(f"left out: {folder} is the same training as {kept}")
    return [seeds[seed] for seed in sorted(seeds, key=str)]


def evaluation_metrics(folder: Path, run: SweepRun) -> dict[str, Any]:
    """What evaluation.json adds, and what follows from both files."""
    evaluation = read_json(folder / "evaluation.json")
    found = {key: value for key, value in evaluation.items() if finite_number(value) is not None}
    metrics = {**run.metrics, **found}
    found = {**gap_metrics(metrics), **overfit_metrics(metrics), **found}
    sigma, shape = metrics.get("model/sigma"), select(run.settings, "model.image_shape")
    if sigma and isinstance(shape, list) and select(run.settings, "data.pixels") == "grey":
        found["cap/elbo"] = upper_bound(math.prod(shape), sigma)
    return found | {"active": metrics.get("active")}


def gap_metrics(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The inference gap of an evaluation that keeps its two parts alone.

    They belong to the same images, so that the error of their sum is at most the sum of theirs, and
    is unknown where one of them is.
    """
    keys = ("gap/approximation", "gap/amortisation")
    parts, errors = (
        [value for key in keys if (value := finite_number(metrics.get(f"{key}{end}"))) is not None]
        for end in ("", "_se")
    )
    if len(parts) < len(keys):
        return {}
    error = {"gap/total_se": sum(errors)} if len(errors) == len(keys) else {}
    return {"gap/total": sum(parts), **error}


def overfit_metrics(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The ELBO of both splits above that of the linear optimum, and the difference.

    The two splits are not equally easy: the closed form says by how much.
    """
    keys = ("train/elbo", "test/elbo", "oracle/train_elbo", "oracle/test_elbo")
    train, test, best_train, best_test = (finite_number(metrics.get(key)) for key in keys)
    if train is None or test is None:
        return {}
    above = train - (best_train or 0.0), test - (best_test or 0.0)
    found = {"overfit/train": above[0], "overfit/test": above[1], "overfit": above[0] - above[1]}
    error = finite_number(metrics.get("test/elbo_se"))
    n, n_test = (finite_number(metrics.get(f"{split}/images")) for split in ("train", "test"))
    if error and n and n_test:
        # Both splits, as if training images differed as test images do: a bound, since nothing is
        # taken off for what architectures share.
        found["overfit_se"] = error * math.sqrt(1 + n_test / n)
    return found
