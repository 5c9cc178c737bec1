"""The runs below a folder: their settings, metrics and states, as records and as a DataFrame.

Reads a run's settings, metrics.json and job.json, never a checkpoint, and does not import torch.
"""

import math
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vae.runs.errors import UserError
from vae.runs.files import SETTINGS, is_locked, read_json, read_metrics, runs_below
from vae.runs.identity import affects_result
from vae.runs.keys import select, split_override
from vae.runs.untrusted import as_texts, check_links, read_yaml

if TYPE_CHECKING:
    import pandas as pd

SEED = "seed"
STATES = ("finished", "failed", "killed", "running", "unfinished")


@dataclass(frozen=True)
class SweepRun:
    """One run below a sweep's folder.

    `state`: "finished" (it has metrics), "failed" (with `problems`), "running" (a process holds the
    folder), "killed" (its job began and its process is gone), "unfinished" (any other run without
    metrics).
    """

    folder: str  # below the sweep's folder
    state: str
    overrides: list[str]
    choices: dict[str, str]  # the option chosen of each config group
    problems: list[str]
    metrics: dict[str, float | None]  # None: not finite
    settings: dict[str, Any]
    threads: int | None = None
    config_flags: tuple[str, ...] = ()  # Hydra's --config-dir and --config-name

    @property
    def model(self) -> str:
        return str(select(self.settings, "model.name") or "vae")

    @property
    def explanation(self) -> str:
        """Why it has no metrics."""
        if self.state == "killed":
            return (
                "killed by the system, as when it is out of memory, or by a user; the same command "
                "with hydra.sweep.dir=<the sweep's folder> resumes it"
            )
        return "; ".join(self.problems)

    @property
    def command(self) -> str:
        """The command that repeats this run, with the number of threads it had, its config and
        where that was looked for."""
        given = self.threads and self.overridden("threads") is None
        threads = [f"threads={self.threads}"] if given else []
        return shlex.join(
            ["python", "-m", "vae.train", *self.config_flags, *self.overrides, *threads]
        )

    def value(self, key: str) -> Any:
        """The value of a setting, or the option chosen of a config group such as `model`."""
        value = select(self.settings, key)
        if isinstance(value, dict) or value is None:
            name = value.get("name") if isinstance(value, dict) else None
            return self.choices.get(key) or self.overridden(key) or name
        return value

    def overridden(self, key: str) -> str | None:
        """The text that an override gave to `key`, or None."""
        return dict(split_override(override) for override in self.overrides).get(key)


def read_sweep(folder: str | Path) -> "pd.DataFrame":
    """A row for each run below `folder`: its folder and state, the settings that differ between
    runs, its metrics, and the problems of a failed run.

    The columns of settings are in `frame.attrs["swept"]`. Raises UserError where there are no runs.
    """
    runs = read_runs(Path(folder))
    return to_frame(runs, swept_keys(runs))


def to_frame(runs: list[SweepRun], swept: list[str]) -> "pd.DataFrame":
    import pandas as pd  # not for records, which a sweep that is cut short lists as Python ends

    names = list(dict.fromkeys(name for run in runs for name in run.metrics))
    rows = [
        {"run": run.folder, "state": run.state}
        | {key: plain(run.value(key)) for key in swept}
        | {name: run.metrics.get(name) for name in names}
        | {"problems": "; ".join(run.problems)}
        for run in runs
    ]
    frame = pd.DataFrame(rows, columns=["run", "state", *swept, *names, "problems"])
    frame[names] = frame[names].astype(float)
    frame.attrs["swept"] = swept
    return frame


def read_runs(sweep: Path) -> list[SweepRun]:
    """Every run below the folder, by name; UserError where there is none."""
    folders = runs_below(sweep)
    if not folders:
        raise UserError(f"sweep={sweep}: no runs in it")
    return [read_run(sweep, folder) for folder in folders]


def read_run(sweep: Path, folder: Path) -> SweepRun:
    check_links(folder)
    metrics: dict[str, Any] = {**read_metrics(folder / "metrics.json")}
    job = read_json(folder / "job.json")
    settings = read_yaml(folder / SETTINGS)
    if not isinstance(settings, dict):
        raise UserError(f"{folder / SETTINGS} is not the settings of a run")
    state = run_state(folder, metrics, job)
    latents = select(settings, "model.latent_dim")
    for name, collapsed in (("active", "test/collapsed"), ("oracle/active", "oracle/collapsed")):
        if isinstance(latents, int) and isinstance(metrics.get(collapsed), int | float):
            metrics[name] = latents - metrics[collapsed]
    metrics |= squared_errors(metrics, settings)
    overrides = read_yaml(folder / ".hydra" / "overrides.yaml")
    hydra = select(read_yaml(folder / ".hydra" / "hydra.yaml"), "hydra")
    choices = select(hydra, "runtime.choices")
    threads = read_json(folder / "environment.json").get("threads")
    return SweepRun(
        folder=str(folder.relative_to(sweep)),
        state=state,
        overrides=as_texts(overrides),
        choices={str(k): str(v) for k, v in choices.items()} if isinstance(choices, dict) else {},
        problems=as_texts(job.get("problems")) if state == "failed" else [],
        metrics=metrics if state == "finished" else {},
        settings=settings,
        threads=threads if isinstance(threads, int) else None,
        config_flags=tuple(config_flags(hydra)),
    )


def config_flags(hydra: Any) -> Iterator[str]:
    """Of the command, where its config was another than this project's own."""
    sources = select(hydra, "runtime.config_sources")
    for source in sources if isinstance(sources, list) else ():
        if select(source, "provider") == "command-line" and select(source, "path"):
            yield f"--config-dir={select(source, 'path')}"
    name = select(hydra, "job.config_name")
    if isinstance(name, str) and name != "train":
        yield f"--config-name={name}"


def squared_errors(metrics: dict[str, Any], settings: dict[str, Any]) -> dict[str, float]:
    """E‖x − f(z)‖² of an image on each split, from the log-likelihood; of Gaussian runs alone."""
    likelihood = str(select(settings, "model.likelihood._target_") or "Gaussian")
    shape, sigma = select(settings, "model.image_shape"), metrics.get("model/sigma")
    if (
        not likelihood.endswith("Gaussian")
        or not isinstance(sigma, int | float)
        or not 0 < sigma < 1e100
        or not (isinstance(shape, list) and all(isinstance(side, int) for side in shape))
    ):
        return {}
    keys = {split: f"{split}/log_likelihood" for split in ("train", "val", "test")}
    return {
        f"{split}/squared_error": squared_error(metrics[key], sigma, math.prod(shape))
        for split, key in keys.items()
        if isinstance(metrics.get(key), int | float)
    }


def squared_error(log_likelihood: float, sigma: float, pixels: int) -> float:
    """E‖x − f(z)‖² of an image, from its log N(x; f(z), sigma² I) over that many pixels."""
    return -2 * sigma**2 * (log_likelihood + pixels / 2 * math.log(2 * math.pi * sigma**2))


def run_state(folder: Path, metrics: dict[str, Any], job: dict[str, Any]) -> str:
    """One of STATES. A job that failed and was finished later by resume= is finished."""
    if metrics and not job.get("refused"):
        return "finished"
    if job.get("state") == "failed":
        return "failed"
    if is_locked(folder):
        return "running"
    return "killed" if job.get("state") == "running" else "unfinished"


def swept_keys(runs: list[SweepRun]) -> list[str]:
    """The overridden settings and groups that a result depends on and whose value differs between
    runs, in command-line order; the model where it differs without an override."""
    keys = dict.fromkeys(split_override(o)[0] for run in runs for o in run.overrides)
    swept = [
        key
        for key in keys
        if affects_result(key) and len({str(run.value(key)) for run in runs}) > 1
    ]
    if len({run.model for run in runs}) > 1 and not {"model", "model.name"} & {*swept}:
        swept.append("model.name")
    return swept


def as_text(value: Any) -> str:
    """A setting's value as an override writes it."""
    if isinstance(value, list):
        return "[" + ",".join(as_text(child) for child in value) + "]"
    return "null" if value is None else str(value)


def plain(value: Any) -> Any:
    """A value that fits a column of a table: a list as its text."""
    return as_text(value) if isinstance(value, list) else value
