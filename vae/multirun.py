"""Hydra's callback around a run or a multirun (hydra.callbacks in conf/train.yaml).

It uses the folders of the runs alone, so it works with every launcher and sweeper: the same command
with hydra.sweep.dir=<folder> resumes a sweep or a study that was killed.
"""

import atexit
import contextlib
import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict

from vae.jobs import check_single_device, describe
from vae.runs.errors import UserError, report_errors
from vae.runs.files import (
    SETTINGS,
    folder_lock,
    is_rank_zero,
    make_unique_folder,
    read_json,
)
from vae.runs.keys import split_override

FOLDER_LOCKS = contextlib.ExitStack()  # folders that this process holds until it ends

# conf/hydra has a file for a launcher or sweeper under the name that its plugin registers.
warnings.filterwarnings("ignore", r"\s*'hydra/\w+/\w+' is validated against ConfigStore schema")


class Sweep(Callback):
    """Hydra's callback around a run or a multirun, before it writes anything: refuses what cannot
    run and holds the folder against other processes. After a multirun: the summary and the exit
    code.
    """

    @report_errors
    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """A single run gets a folder that no other run has, or resumes in its own."""
        check_not_a_sweep(config)
        folder = Path(config.hydra.run.dir)
        resumes = config.get("resume") is not None
        if resumes and Path(config.resume).resolve() != folder.resolve():
            raise UserError(
                f"resume={config.resume}: call vae.train.cli(), which `python -m vae.train` does; "
                "main() alone works in another folder"
            )
        if resumes and not (folder / SETTINGS).is_file():
            raise UserError(f"resume={folder} is no run folder: it has no {SETTINGS}")
        if not resumes and is_rank_zero():
            if (folder / "metrics.json").exists():
                raise UserError(
                    f"hydra.run.dir={folder} holds a finished run; resume={folder} "
                    "trainer.max_epochs=N trains it longer, another folder keeps both"
                )
            if (folder / "checkpoints" / "last.ckpt").exists():
                raise UserError(
                    f"hydra.run.dir={folder} holds an unfinished run; resume={folder} resumes it"
                )
        setting = "resume" if resumes else "hydra.run.dir"
        with usage_errors(setting, folder):
            if not resumes and is_rank_zero() and is_stamped(config.hydra.run):
                folder = make_unique_folder(folder)
                with open_dict(config.hydra.run):
                    config.hydra.run.dir = str(folder)
            FOLDER_LOCKS.enter_context(folder_lock(folder, setting))

    @report_errors
    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """A sweep gets a folder that no other sweep has, or the one that was named."""
        if config.get("resume") is not None:
            raise UserError(
                "resume= is for a single run; the same multirun with hydra.sweep.dir=<its folder> "
                "resumes a sweep"
            )
        check_single_device(config)
        if str(sweeper(config).get("direction", "")).endswith("minimize"):
            raise UserError(
                "hydra.sweeper.direction=minimize looks for the worst validation ELBO; "
                "use hydra/sweeper=optuna_search, or hydra.sweeper.direction=maximize"
            )
        params = [f"{key}={value}" for key, value in swept_by_default(config).items()]
        given = OverridesParser.create().parse_overrides([*params, *overrides(config)])
        several = any(override.is_sweep_override() for override in given)
        if several and "${" not in raw(config.hydra.sweep)["subdir"]:
            raise UserError(
                f"hydra.sweep.subdir={config.hydra.sweep.subdir} is one folder for all jobs of a "
                "sweep; ${hydra.job.num} or ${hydra.job.override_dirname} in it tells them apart"
            )
        check_no_intervals(config, given)
        folder = Path(config.hydra.sweep.dir)
        with usage_errors("hydra.sweep.dir", folder):
            if is_stamped(config.hydra.sweep):
                folder = make_unique_folder(folder)
                with open_dict(config.hydra):
                    config.hydra.sweep.dir = str(folder)
                    config.hydra.overrides.hydra.append(f"hydra.sweep.dir={folder}")  # for the jobs
            FOLDER_LOCKS.enter_context(folder_lock(folder, "hydra.sweep.dir"))
        atexit.register(report_cut_short, folder)

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Ends with SystemExit where a job or the summary failed: Hydra turns any other exception
        of a callback into a warning."""
        atexit.unregister(report_cut_short)
        folder = Path(config.hydra.sweep.dir)
        problems, codes = [], []
        try:
            from vae.reports.sweep.summary import summarise
            from vae.reports.sweep.table import table

            summary = summarise(folder)
            print(table(summary))
        except Exception as error:
            problems += [f"the summary of {folder} failed: {describe(error)}"]
            codes += [1]
        jobs = [read_json(path) for path in sorted(folder.glob("*/**/job.json"))]
        bad = [record for record in jobs if record.get("state") == "failed"]
        if bad:
            codes += [record.get("exit_code", 1) for record in bad]
            problems += [f"{len(bad)} of {len(jobs)} runs failed, see above"]
        for problem in problems:
            print(f"error: {problem}", file=sys.stderr)
        if codes:
            sys.exit(min(codes))


@contextlib.contextmanager
def usage_errors(setting: str, folder: Path) -> Iterator[None]:
    """An OSError as a UserError that names the setting: the folder cannot be made or written."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{setting}={folder}: {error.strerror or error}") from error


def check_not_a_sweep(config: DictConfig) -> None:
    """An experiment made for a multirun lists what it sweeps in hydra.sweeper.params."""
    given = {split_override(override)[0] for override in overrides(config)}
    swept = [f"{k}={v}" for k, v in swept_by_default(config).items() if k not in given]
    if swept:
        raise UserError(
            f"these settings are for a multirun over {' '.join(swept)}: add -m to the command"
        )


def check_no_intervals(config: DictConfig, given: list[Override]) -> None:
    """Hydra's own sweeper takes lists and ranges alone and would end in a traceback."""
    if not str(sweeper(config).get("_target_", "")).endswith("BasicSweeper"):
        return
    for override in given:
        if override.is_interval_sweep():
            raise UserError(
                f"{override.input_line}: an interval is for a sweeper that searches; give values "
                "(a,b,c), or add hydra/sweeper=optuna_search"
            )


def sweeper(config: DictConfig) -> Mapping[Any, Any]:
    return config.hydra.get("sweeper") or {}


def swept_by_default(config: DictConfig) -> Mapping[Any, Any]:
    """What an experiment made for a multirun sweeps, by setting."""
    return sweeper(config).get("params") or {}


def overrides(config: DictConfig) -> list[str]:
    """What the command line sets of the task's config."""
    task = OmegaConf.select(config, "hydra.overrides.task")
    return [] if task is None else OmegaConf.to_container(task, resolve=False)  # type: ignore[return-value]


def is_stamped(node: DictConfig) -> bool:
    """Whether the folder is named by the time, to the second: two commands may start in one."""
    return "${now:" in raw(node)["dir"]


def raw(node: DictConfig) -> dict[str, str]:
    """Settings before their interpolations are resolved, as text."""
    settings: Any = OmegaConf.to_container(node, resolve=False)
    return {key: str(value) for key, value in settings.items()}


def report_cut_short(folder: Path) -> None:
    """When the process ends before the sweep did: which jobs were killed, and how to resume."""
    from vae.reports.sweep.runs import read_runs

    with contextlib.suppress(UserError):
        for run in read_runs(folder):
            if run.state == "killed":
                print(f"error: {run.folder}: {run.explanation}", file=sys.stderr)
    print(
        f"the sweep ended early; the same command with hydra.sweep.dir={folder} resumes it",
        file=sys.stderr,
    )
