"""Opens what an evaluation needs: its settings, the runs, their data; all problems at once."""

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig

from vae.data.datamodule import ImageDataModule
from vae.reports.comparison.selection import (
    check_comparable,
    group_runs,
    page_problem,
    runs_to_compare,
)
from vae.reports.evaluation.metrics import Settings
from vae.reports.evaluation.settings import EvaluateSettings
from vae.runs.checkpoints import weights_digest
from vae.runs.devices import accelerator_problem, accelerators
from vae.runs.errors import UserError, resolved
from vae.runs.files import SETTINGS, read_json, runs_below
from vae.runs.folder import Run, divergence_problem, load_data, load_run
from vae.runs.settings import settings_problems

# Settings that no metric depends on, beyond rounding: where things lie, what computes them.
WITHOUT_EFFECT = {"run", "runs", "compare", "accelerator", "allow", "data", "classifier.folder"}


class Job(NamedTuple):
    """The runs of one call of the command."""

    settings: Settings
    folders: list[Path]
    left_out: list[str]  # runs of a sweep's folder that cannot be evaluated, a line each
    against: Path | None


def load_and_validate(config: DictConfig) -> Job:
    """The settings and the folders of the runs, each opened once to see that it can be evaluated.

    Raises UserError with all problems at once. In a sweep's folder runs that have no checkpoint, or
    diverged, are left out; a run that is named must be there.
    """
    settings = resolved(config)
    problems = settings_problems(settings, EvaluateSettings) + accelerator_problem(
        "accelerator", settings.get("accelerator")
    )
    run, runs = settings.get("run"), settings.get("runs")
    if run is None and runs is None:
        problems.append("run: name a run folder, such as outputs/2030-01-31/12-00-00-deep")
    elif run is not None and runs is not None:
        problems.append("run and runs: give one of them")
    named = [run] if isinstance(run, str) and run else as_list(runs)
    folders, left_out = [], []
    for name in named:
        inside = runs_of_sweep(Path(name)) if run is None else []
        for folder in inside or [Path(name)]:
            found = run_problems(folder, settings, writes=True)
            if not found:
                folders.append(folder)
            elif inside:
                left_out += found
            else:
                problems += [f"{'run' if run else 'runs'}: {problem}" for problem in found]
    problems += sample_problems(settings.get("samples"))
    folders = list(dict.fromkeys(folders))
    if not problems and not folders:
        problems += left_out or [f"runs={runs}: no runs in it"]
    against = settings.get("against")
    if isinstance(against, str) and against:
        found = run_problems(Path(against), settings, writes=False)
        problems += [f"against: {problem}" for problem in found]
        problems += [] if found else unlike_problems(folders, Path(against), settings)
    if not problems and settings["compare"] is not None:
        problems += comparison_problems(settings, folders)
    if problems:
        raise UserError(*problems)
    return Job(settings, folders, left_out, Path(against) if against else None)


def comparison_problems(settings: Settings, folders: list[Path]) -> list[str]:
    """Why there could be no page of the runs afterwards; better said before the work."""
    if settings["run"] is not None:
        return [f"compare={settings['compare']} takes runs=[<folder>,<folder>], not run="]
    out = Path(settings["compare"])
    try:
        if problem := page_problem("compare", out):
            return [problem]
        runs = runs_to_compare([*map(str, folders)], allowed(settings))
        check_comparable(runs)
        group_runs(runs)
        out.mkdir(parents=True, exist_ok=True)
    except UserError as error:
        return [f"compare: {problem}" for problem in error.problems]
    except OSError as error:
        return [f"compare={out}: {error.strerror or error}"]
    return []


def as_list(value: Any) -> list[str]:
    """A folder or a list of folders."""
    values = value if isinstance(value, list) else [value]
    return [one for one in values if isinstance(one, str) and one]


def runs_of_sweep(folder: Path) -> list[Path]:
    """The runs below a sweep's folder, by name; none where the folder is a run itself."""
    if (folder / SETTINGS).is_file():
        return []
    return runs_below(folder)


def sample_problems(samples: Any) -> list[str]:
    n, k = (samples.get(key) if isinstance(samples, dict) else None for key in ("n", "k"))
    if isinstance(n, int) and isinstance(k, int) and 0 < n <= max(k, 3):
        return [f"samples.n={n} must be more than samples.k={k} and than 3, or 0 to do without"]
    return []


def allowed(settings: Settings) -> tuple[str, ...]:
    return tuple(as_list(settings.get("allow")))


def open_run(folder: Path, settings: Settings) -> Run:
    """A run on the device of the settings, its weights fixed."""
    device = accelerators().get(str(settings.get("accelerator")), "cpu")
    run = load_run(folder, device=device, allow=allowed(settings))
    run.model.requires_grad_(False)
    return run


def run_problems(folder: Path, settings: Settings, writes: bool) -> list[str]:
    """Why a run cannot be evaluated; better said before the work than after it."""
    try:
        run = open_run(folder, settings)
    except UserError as error:
        return list(error.problems)
    if problem := divergence_problem(run):
        return [problem]
    if writes and not os.access(folder, os.W_OK):
        return [f"{folder} cannot be written, and evaluation.json goes there; copy the run"]
    return []


def unlike_problems(folders: list[Path], against: Path, settings: Settings) -> list[str]:
    """Runs on other data than `against`: they have no images in common."""
    other = images_of(open_run(against, settings))
    return [
        f"against={against} was trained on {other}, run={folder} on {seen}"
        for folder in folders
        if (seen := images_of(open_run(folder, settings))) != other
    ]


def images_of(run: Run) -> str:
    """What its metrics are about: the data set, its pixels, and whether they are nats of a
    density."""
    data = run.config.get("data", {})
    kind = "density" if run.model.likelihood.density else "probability"
    return f"{data.get('name')}, {data.get('pixels', 'grey')} pixels, by {kind}"


class DataCache:
    """The data of runs, opened once for all runs that were trained on the same."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.key = ""
        self.data: ImageDataModule | None = None

    def load(self, run: Run) -> ImageDataModule:
        """Raises UserError or RunError where the data cannot be had."""
        key = json.dumps(resolved(run.config)["data"], sort_keys=True, default=str)
        if self.data is None or key != self.key:
            try:
                root, allow = self.settings["data"]["root"], allowed(self.settings)
                data: ImageDataModule = load_data(run.config, root, allow)
            except UserError as error:
                lines = (f"run: {run.folder}: {line}" for line in error.problems)
                raise UserError(*lines) from error
            self.key, self.data = key, data
        return self.data


def identity(folder: Path, settings: Settings) -> dict[str, Any]:
    """What an evaluation belongs to: the settings that its metrics depend on, and the weights."""
    kept = {key: value for key, value in settings.items() if key not in WITHOUT_EFFECT}
    kept["classifier"] = {"epochs": settings["classifier"]["epochs"]}
    return {"settings": json.loads(json.dumps(kept)), "checkpoint": weights_digest(folder)}


def earlier_metrics(folder: Path, settings: Settings) -> dict[str, Any]:
    """The metrics of an earlier evaluation of these weights with these settings, or nothing."""
    found = read_json(folder / "evaluation.json")
    wanted = identity(folder, settings)
    return found if all(found.get(key) == value for key, value in wanted.items()) else {}
