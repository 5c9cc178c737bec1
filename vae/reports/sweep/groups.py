"""Trainings that differ in the seed alone make a group: mean, standard deviation, standard error.

The standard deviation is that of one training around the mean; the standard error is that of the
mean itself, the standard deviation divided by √n. Neither says anything about the finite number of
test images.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from vae.reports.sweep.runs import SEED, STATES, SweepRun, as_text, plain, read_runs, swept_keys
from vae.runs.errors import UserError
from vae.runs.identity import group_trainings, name_runs

MAX_SINGLE_POINTS = 7  # groups of settings that make no lines


@dataclass(frozen=True)
class Group:
    """The finished trainings of one setting: statistics of each metric over them."""

    line: str  # the values of every swept setting but x and the seed
    x: Any
    runs: list[str]  # their folders
    mean: dict[str, float | None]  # None where a training's metric was not finite
    standard_deviation: dict[str, float | None]  # over trainings; None for a single one
    standard_error: dict[str, float | None]  # of the mean; None for a single one


@dataclass(frozen=True)
class Summary:
    folder: Path
    runs: list[SweepRun]
    swept: list[str]  # every overridden key whose value differs between runs
    x: str  # the one of them on the horizontal axis
    groups: list[Group]

    @property
    def scattered(self) -> bool:
        """Whether the settings make no lines over x, as the trials of a search do."""
        lines = {group.line for group in self.groups}
        return len(self.groups) > MAX_SINGLE_POINTS and len(self.groups) < 2 * len(lines)

    @property
    def best(self) -> SweepRun | None:
        """By the validation ELBO: the test set chooses nothing."""
        scored = [r for r in self.of_state("finished") if r.metrics.get("val/elbo") is not None]
        return max(scored, key=lambda run: run.metrics["val/elbo"] or 0.0, default=None)

    def name(self, run: SweepRun) -> str:
        """What was swept, and the run's value of it."""
        return " ".join(f"{key}={run.value(key)}" for key in self.swept) or run.folder

    def of_state(self, state: str) -> list[SweepRun]:
        return [run for run in self.runs if run.state == state]

    def count_states(self) -> str:
        counts = {state: len(self.of_state(state)) for state in STATES}
        return ", ".join(f"{n} {state}" for state, n in counts.items() if n or state == "finished")


def read(folder: Path, x: str | None = None) -> Summary:
    """Raises UserError for a folder without runs and for an `x` that was not swept."""
    runs = read_runs(folder)
    swept = swept_keys(runs)
    if x is not None and x not in swept:
        raise UserError(f"x={x} was not swept in {folder}; swept: {', '.join(swept) or 'nothing'}")
    chosen = x or choose_x_axis(swept, runs)
    summary = Summary(folder, runs, swept, chosen, group(runs, chosen, swept))
    if summary.scattered and x is None:
        numbers = [key for key in swept if key != SEED and is_numeric(key, runs)]
        counts = {key: len({run.value(key) for run in runs}) for key in numbers or [chosen]}
        x = max(counts, key=lambda key: counts[key])
        best_first = sorted(group(runs, x, swept), key=lambda g: -(g.mean.get("val/elbo") or -1e9))
        return replace(summary, x=x, groups=best_first)
    return summary


def choose_x_axis(swept: list[str], runs: list[SweepRun]) -> str:
    """The key on the horizontal axis: model.latent_dim, else the first number, else the first."""
    candidates = [key for key in swept if key != SEED]
    numbers = [key for key in candidates if is_numeric(key, runs)]
    preferred = [key for key in numbers if key == "model.latent_dim"]
    return next(iter([*preferred, *numbers, *candidates]), "model.latent_dim")


def group(runs: list[SweepRun], x: str, swept: list[str]) -> list[Group]:
    """The finished runs, grouped by every setting that a result depends on but the seed."""
    finished = [run for run in runs if run.state == "finished"]
    if not finished:
        return []
    indices = group_trainings([run.settings for run in finished])
    if x == SEED:  # its own axis: no training is averaged with another
        indices = [[i] for members in indices for i in members]
    members = [[finished[i] for i in group] for group in indices]
    lines = name_lines(members, x, swept)
    found = []
    for line, trainings in zip(lines, members, strict=True):
        mean, deviation, error = statistics([run.metrics for run in trainings])
        folders = [run.folder for run in trainings]
        found.append(Group(line, plain(trainings[0].value(x)), folders, mean, deviation, error))
    return sorted(found, key=lambda g: (g.line, g.x if is_real(g.x) else 0.0, str(g.x)))


def name_lines(members: list[list[SweepRun]], x: str, swept: list[str]) -> list[str]:
    """What each group is called next to its x: the model and the other swept settings, or all
    settings that differ where those do not tell two groups apart."""
    keys = [key for key in swept if key not in (x, SEED, "model", "model.name")]

    def line(run: SweepRun) -> str:
        model = [] if x in ("model", "model.name") else [str(run.value("model") or run.model)]
        settings = [f"{key.split('.')[-1]}={as_text(run.value(key))}" for key in keys]
        return " ".join([*model, *settings])

    lines = [line(trainings[0]) for trainings in members]
    places = [
        (name, as_text(group[0].value(x))) for name, group in zip(lines, members, strict=True)
    ]
    if len({*places}) < len(places):
        return name_runs([trainings[0].settings for trainings in members])
    return lines


def is_numeric(key: str, runs: list[SweepRun]) -> bool:
    return all(is_real(run.value(key)) for run in runs)


def is_real(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def statistics(
    metrics: Sequence[dict[str, float | None]],
) -> tuple[dict[str, float | None], dict[str, float | None], dict[str, float | None]]:
    """Mean, standard deviation (n − 1 in its denominator) and standard error of each metric.

    None where the metric of a training is missing or not finite; no spread of a single training.
    """
    frame = pd.DataFrame(list(metrics)).astype(float)
    mean, deviation = frame.mean(skipna=False), frame.std(skipna=False, ddof=1)
    error = frame.sem(skipna=False, ddof=1)
    return as_floats(mean), as_floats(deviation), as_floats(error)


def as_floats(values: "pd.Series[float]") -> dict[str, float | None]:
    return {str(k): float(v) if math.isfinite(v) else None for k, v in values.items()}
