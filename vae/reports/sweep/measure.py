"""A folder of runs as one table and one figure: every final figure against the value that was
swept.

Works on whatever lies below the folder: a multirun, or single runs side by side. It reads their
settings, metrics.json and job.json, never a checkpoint, and does not import torch.
"""

import math
import shlex
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vae.runs.errors import UserError
from vae.runs.files import read_json

SEED = "seed"


@dataclass(frozen=True)
class SweepRun:
    """One run: `state` is finished, failed, or unfinished (cut off, or still running)."""

    folder: str  # below the sweep's folder
    state: str
    overrides: list[str]
    problems: list[str]
    metrics: dict[str, float | None]  # None: not finite
    config: DictConfig
    threads: int | None = None

    @property
    def model(self) -> str:
        return str(select(self.config, "model.name") or "vae")

    @property
    def command(self) -> str:
        """Repeats this run, with the threads that it had."""
        threads = (
            [f"threads={self.threads}"] if self.threads and not self._overridden("threads") else []
        )
        return shlex.join(["python", "-m", "vae.train", *self.overrides, *threads])

    def value(self, key: str) -> Any:
        """Of a setting, or the choice of a group such as `model`."""
        value = select(self.config, key)
        if isinstance(value, DictConfig):
            return self._overridden(key) or value.get("name", "default")
        return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value

    def _overridden(self, key: str) -> str | None:
        return dict(split_override(o) for o in self.overrides).get(key)


@dataclass(frozen=True)
class Point:
    """The runs of one line at one swept value: mean and standard error of each figure."""

    line: str
    x: Any
    runs: int
    mean: dict[str, float | None]  # None where a run's figure was not finite
    error: dict[str, float | None]  # sd/√n over seeds; None for a single run


@dataclass(frozen=True)
class Summary:
    folder: Path
    runs: list[SweepRun]
    swept: list[str]  # every key that differs between runs
    x: str  # the one of them on the choose_x_axis axis
    points: list[Point] = field(default_factory=list)

    @property
    def best(self) -> SweepRun | None:
        """By the validation ELBO: the test set chooses nothing."""
        scored = [
            run
            for run in self.runs
            if run.state == "finished" and run.metrics.get("val/elbo") is not None
        ]
        return max(scored, key=lambda run: run.metrics["val/elbo"] or 0.0, default=None)

    def name(self, run: SweepRun) -> str:
        """What was swept, and the run's value of it."""
        return " ".join(f"{key}={run.value(key)}" for key in self.swept) or run.folder

    def of_state(self, state: str) -> list[SweepRun]:
        return [run for run in self.runs if run.state == state]


def read(folder: Path, x: str | None = None) -> Summary:
    runs = [read_run(folder, path) for path in run_folders(folder)]
    if not runs:
        raise UserError(f"sweep={folder}: no runs in it")
    keys = dict.fromkeys(split_override(o)[0] for run in runs for o in run.overrides)
    swept = [key for key in keys if len({str(run.value(key)) for run in runs}) > 1]
    if len({run.model for run in runs}) > 1 and "model" not in swept:
        swept.append("model")
    if x is not None and x not in swept:
        raise UserError(f"x={x} was not swept in {folder}; swept: {', '.join(swept) or 'nothing'}")
    x = x or choose_x_axis(swept, runs)
    return Summary(
        folder, runs, swept, x, points(runs, x, [key for key in swept if key not in (x, SEED)])
    )


def run_folders(folder: Path) -> list[Path]:
    """Every run below a folder, by name."""
    return sorted(path.parents[1] for path in folder.glob("**/.hydra/config.yaml"))


def select(config: DictConfig, key: str) -> Any:
    """A setting by its dotted key; None where there is none, as in a run that was refused for
    it."""
    try:
        return OmegaConf.select(config, key)
    except OmegaConfBaseException:
        return None


def read_run(sweep: Path, folder: Path) -> SweepRun:
    metrics, job = read_json(folder / "metrics.json"), read_json(folder / "job.json")
    state = "failed" if job.get("state") == "failed" else "finished" if metrics else "unfinished"
    config = OmegaConf.load(folder / ".hydra" / "config.yaml")
    assert isinstance(config, DictConfig)
    latents = select(config, "model.latent_dim")
    for name, collapsed in (("active", "test/collapsed"), ("oracle/active", "oracle/collapsed")):
        if metrics.get(collapsed) is not None:
            metrics[name] = latents - metrics[collapsed]
    overrides = folder / ".hydra" / "overrides.yaml"
    return SweepRun(
        str(folder.relative_to(sweep)),
        state,
        list(OmegaConf.load(overrides)) if overrides.exists() else [],
        job.get("problems", []),
        metrics if state == "finished" else {},
        config,
        read_json(folder / "environment.json").get("threads"),
    )


def split_override(override: str) -> tuple[str, str]:
    key, _, value = override.lstrip("+~").partition("=")
    return key, value


def choose_x_axis(swept: list[str], runs: list[SweepRun]) -> str:
    """The key that the figure runs along."""

    def numeric(key: str) -> bool:
        return all(isinstance(run.value(key), int | float) for run in runs)

    candidates = [key for key in swept if key != SEED]
    numbers = [key for key in candidates if numeric(key)]
    preferred = [key for key in numbers if key == "model.latent_dim"]
    return next(iter([*preferred, *numbers, *candidates]), "model.latent_dim")


def points(runs: list[SweepRun], x: str, keys: list[str]) -> list[Point]:
    """Finished runs gathered by everything swept but the seed; a line is named by its model and
    other values."""
    groups: dict[tuple[str, str], list[SweepRun]] = {}
    for run in runs:
        if run.state == "finished":
            rest = [
                f"{key.split('.')[-1]}={run.value(key)}"
                for key in keys
                if key not in ("model", "model.name")
            ]
            name = (
                [str(run.value("model"))]
                if "model" in keys
                else []
                if x == "model"
                else [run.model]
            )
            groups.setdefault((" ".join([*name, *rest]), str(run.value(x))), []).append(run)
    found = []
    for (line, _), members in groups.items():
        stats = {
            name: mean_and_error([run.metrics.get(name) for run in members])
            for name in members[0].metrics
        }
        mean, error = ({name: pair[i] for name, pair in stats.items()} for i in (0, 1))
        found.append(Point(line, members[0].value(x), len(members), mean, error))
    return sorted(found, key=lambda p: (p.line, p.x if isinstance(p.x, int | float) else str(p.x)))


def mean_and_error(values: list[float | None]) -> tuple[float | None, float | None]:
    """Mean and its standard error; no mean where a value is not finite, no error of a single
    value."""
    finite = [v for v in values if v is not None]
    if len(finite) < len(values):
        return None, None
    error = statistics.stdev(finite) / math.sqrt(len(finite)) if len(finite) > 1 else None
    return statistics.fmean(finite), error
