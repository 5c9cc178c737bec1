"""The architectures of a study, by the depth and width of their networks, and their trainings.

Only settings, metrics.json and evaluation.json of the runs are read, never a checkpoint.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from vae.reports.comparison.selection import run_folders
from vae.reports.comparison.statistics import Measured
from vae.reports.sweep.runs import SweepRun, read_run
from vae.runs.errors import UserError
from vae.runs.files import read_json
from vae.runs.keys import select

# What all runs of a study have in common, but for their networks.
ALIKE = (
    *("data.name", "data.pixels", "data.val_size", "data.val_seed", "data.batch_size"),
    *("model.latent_dim", "model.sigma", "objective", "optimizer", "trainer.max_epochs"),
)
LINEAR, ENCODER_ALONE, DECODER_ALONE = "linear", "encoder alone", "decoder alone"


class Layers(NamedTuple):
    """Hidden layers of a fully connected network; depth 0 is a linear one."""

    depth: int
    width: int  # of the widest; 0 at depth 0


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
        """Whether encoder and decoder are fully connected and of one size."""
        return self.encoder is not None and self.encoder == self.decoder

    def measured(self, key: str) -> Measured | None:
        """Mean over trainings, with both errors; None where a training lacks the metric."""
        values = [number(metrics.get(key)) for metrics in self.metrics]
        known = [value for value in values if value is not None]
        if len(known) < len(values):
            return None
        errors = [number(metrics.get(f"{key}_se")) for metrics in self.metrics]
        given = [error for error in errors if error is not None]
        return Measured.from_values(
            known, sum(given) / len(given) if len(given) == len(errors) else None
        )


def number(value: Any) -> float | None:
    usable = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if usable and math.isfinite(value) else None


def read_architectures(named: Sequence[str] | str) -> list[Architecture]:
    """The architectures of run folders and sweep folders, by their number of parameters.

    Two runs of one architecture and one seed are one training, whatever they are called. Raises
    UserError for runs without metrics and for runs that differ in more than their networks.
    """
    folders = [
        folder
        for name in ([named] if isinstance(named, str) else named)
        for folder in run_folders(Path(name))
    ]
    unfinished = [folder for folder in folders if not (folder / "metrics.json").is_file()]
    if unfinished:
        raise UserError(*(f"runs: {folder} has no metrics.json" for folder in unfinished))
    runs = {folder: read_run(folder.parent, folder) for folder in folders}
    require_alike(list(runs.values()))
    groups: dict[tuple[str, str], dict[Any, Path]] = {}
    for folder, run in runs.items():
        key = name_and_ladder(run.settings)
        groups.setdefault(key, {}).setdefault(run.settings.get("seed"), folder)
    architectures = []
    for (name, ladder), seeds in groups.items():
        chosen = [seeds[seed] for seed in sorted(seeds, key=str)]
        require_one_kind(name, [runs[folder].settings for folder in chosen])
        encoder, decoder = sizes(runs[chosen[0]].settings)
        metrics = [
            {**runs[folder].metrics, **evaluation_metrics(folder, runs[folder])}
            for folder in chosen
        ]
        architectures.append(Architecture(name, ladder, encoder, decoder, chosen, metrics))
    if len(architectures) < 2:
        raise UserError("runs: a study needs runs of at least two architectures")
    return sorted(architectures, key=lambda each: each.parameters)


def require_alike(runs: Sequence[SweepRun]) -> None:
    problems = []
    for key in ALIKE:
        values = {str(select(run.settings, key)) for run in runs}
        if len(values) > 1:
            problems.append(f"runs: {key} differs: {', '.join(sorted(values))[:200]}")
    if problems:
        raise UserError(*problems)


def require_one_kind(name: str, settings: Sequence[Mapping[str, Any]]) -> None:
    """Networks of one depth and width are one architecture where the rest of them is alike too."""
    for key in ("encoder.activation", "encoder.log_sd_range", "decoder.activation"):
        values = {str(select(each, f"model.{key}")) for each in settings}
        if len(values) > 1 and name != LINEAR:
            raise UserError(f"runs: model.{key} differs at {name}: {', '.join(sorted(values))}")


def evaluation_metrics(folder: Path, run: SweepRun) -> dict[str, Any]:
    """What evaluation.json adds, and what follows from both files."""
    evaluation = read_json(folder / "evaluation.json")
    found = {key: value for key, value in evaluation.items() if number(value) is not None}
    metrics = {**run.metrics, **found}
    parts = [number(metrics.get(f"gap/{part}")) for part in ("approximation", "amortisation")]
    if None not in parts:
        found["gap/total"] = sum(part or 0.0 for part in parts)
        found["gap/total_se"] = math.hypot(
            *(found.get(f"gap/{part}_se", 0.0) for part in ("approximation", "amortisation"))
        )
    keys = ("train/elbo", "test/elbo", "oracle/train_elbo", "oracle/test_elbo")
    train, test, best_train, best_test = (number(metrics.get(key)) for key in keys)
    if None not in (train, test):
        # The two splits are not equally easy: the closed form says by how much.
        found["overfit/train"] = (train or 0.0) - (best_train or 0.0)
        found["overfit/test"] = (test or 0.0) - (best_test or 0.0)
        found["overfit"] = found["overfit/train"] - found["overfit/test"]
        error = number(metrics.get("test/elbo_se"))
        n, n_test = (number(metrics.get(f"{split}/images")) for split in ("train", "test"))
        if error and n and n_test:
            # Both splits, as if training images differed as test images do: a bound, since nothing
            # is taken off for what architectures share.
            found["overfit_se"] = error * math.sqrt(1 + n_test / n)
    sigma, shape = metrics.get("model/sigma"), select(run.settings, "model.image_shape")
    if sigma and isinstance(shape, list) and select(run.settings, "data.pixels") == "grey":
        found["cap/elbo"] = -math.prod(shape) / 2 * math.log(2 * math.pi * sigma**2)
    return found | {"active": metrics.get("active")}


def sizes(settings: Mapping[str, Any]) -> tuple[Layers | None, Layers | None]:
    return layers(select(settings, "model.encoder")), layers(select(settings, "model.decoder"))


def layers(network: Any) -> Layers | None:
    """Depth and width of this project's fully connected networks."""
    known = ("vae.models.Encoder", "vae.models.Decoder")
    if not isinstance(network, Mapping) or network.get("_target_") not in known:
        return None
    hidden = network.get("hidden")
    if isinstance(hidden, list) and hidden:
        return Layers(len(hidden), max(hidden))
    depth = network.get("depth") or 0
    return Layers(depth, network["width"]) if depth else Layers(0, 0)


def name_and_ladder(settings: Mapping[str, Any]) -> tuple[str, str]:
    """What an architecture is called, and the line of the charts that it is on."""
    model = str(select(settings, "model.name"))
    encoder, decoder = sizes(settings)
    if encoder is None or decoder is None:
        return model, model
    if encoder == decoder:
        if not encoder.depth:
            return LINEAR, LINEAR
        plural = "s" if encoder.depth > 1 else ""
        return f"{encoder.depth} × {encoder.width}", f"{encoder.depth} hidden layer{plural}"
    if not decoder.depth:
        return f"encoder {encoder.depth} × {encoder.width}", ENCODER_ALONE
    if not encoder.depth:
        return f"decoder {decoder.depth} × {decoder.width}", DECODER_ALONE
    shown = f"{encoder.depth} × {encoder.width} / {decoder.depth} × {decoder.width}"
    return shown, "unequal sizes"
