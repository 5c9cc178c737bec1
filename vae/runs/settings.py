"""The settings of the commands: a field for each key of their YAML, with its type and bounds.

Groups whose `_target_` names a class are checked against that class. A new key of a command is one
line here, one in its YAML, and its use.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt, doc

from vae.runs.errors import UserError, resolved
from vae.runs.signatures import argument_problems, signature_of
from vae.runs.types import Count, Folder, Modules, RunFolder, Seed, Text


@dataclass
class TrainSettings:
    """conf/train.yaml, besides its groups."""

    seed: Seed
    threads: Annotated[int, Ge(1), Le(1024)] | None
    skip_bad_steps: bool
    save_every_n_steps: Count
    resume: RunFolder | None


@dataclass
class DataSettings:
    """Of evaluate and compare."""

    root: Annotated[Folder | None, doc("a folder, or null for the one that the run has")]


@dataclass
class CompareSettings:
    """conf/compare.yaml."""

    runs: Annotated[RunFolder | list[RunFolder], doc("[<run folder>,<run folder>]")]
    page: Literal["comparison", "study"]
    data: DataSettings
    allow: Modules
    out: Folder


@dataclass
class ExportSettings:
    """conf/export.yaml."""

    run: RunFolder
    out: Annotated[Folder | None, doc("a folder, or null for export/ in the run's own")]
    format: Literal["torch", "onnx"]
    tolerance: Annotated[float, Gt(0), Lt(1)]
    allow: Modules


@dataclass
class SummarySettings:
    """conf/summary.yaml."""

    sweep: Annotated[Folder, doc("a folder of runs, such as outputs/sweeps/<date>/<time>")]
    x: Annotated[Text | None, doc("a key that was swept, or null")]


def settings_problems(settings: dict[str, Any], model: type) -> list[str]:
    """What is wrong with a command's settings, a line each."""
    return [*argument_problems("", settings, signature_of(model))]


def validated(config: Any, model: type) -> dict[str, Any]:
    """The settings as plain values; UserError with every problem at once."""
    settings = resolved(config)
    if problems := settings_problems(settings, model):
        raise UserError(*problems)
    return settings
