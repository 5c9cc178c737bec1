"""A multirun: one job that fails does not stop the others, a finished one is not run again.

`job` runs one of them; `Sweep` is Hydra's callback around all of them (hydra.callbacks in
conf/train.yaml). Both use the run folders alone, so they work with every launcher and sweeper: the
same command with hydra.sweep.dir=<folder> resumes a sweep or a study that was killed.
"""

import atexit
import contextlib
import gc
import logging
import math
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict

from vae.runs.errors import RunError, UserError
from vae.runs.files import (
    SETTINGS,
    atomic_write,
    folder_lock,
    is_rank_zero,
    make_unique_folder,
    read_json,
    write_json,
)
from vae.runs.gpu import one_gpu
from vae.runs.identity import different_results
from vae.runs.keys import split_override

log = logging.getLogger(__name__)

FOLDER_LOCKS = contextlib.ExitStack()  # folders that this process holds until it ends
WAIT_FOREVER = -1

# conf/hydra has a file for a launcher or sweeper under the name that its plugin registers.
warnings.filterwarnings("ignore", r"\s*'hydra/\w+/\w+' is validated against ConfigStore schema")


def job(
    train: Callable[[DictConfig, Path], dict[str, float]], config: DictConfig, folder: Path
) -> float | None:
    """One job of a multirun: its validation ELBO for the sweeper, None where it failed or the ELBO
    is not finite (Optuna marks such a trial as failed and continues).

    Raises nothing but what ends the process: problems are in the folder's train.log and job.json,
    whose `state` is "running", "finished", "failed" or, after a signal, "stopped".
    """
    started = time.perf_counter()
    try:
        # 1. Settings.
        if config.get("threads") is None:
            config.threads = 1  # the result depends neither on the launcher nor on the cores
        refuse_several_devices(config)
        settings: Any = OmegaConf.to_container(config, resolve=True)
        with folder_lock(folder, timeout=WAIT_FOREVER):  # a worker may outlive a killed sweep
            # 2. A finished run is left alone.
            metrics = finished_metrics(folder, settings)
            if metrics:
                log.info("finished already: %s", folder)
                restore_settings(folder, settings)
                if read_json(folder / "job.json").get("state") != "finished":
                    write_job(folder, "finished", settings)
                return finite_elbo(metrics)

            # 3. Training, resumed where the folder has a checkpoint.
            write_job(folder, "running", settings)
            with one_gpu(config):
                metrics = train(config, folder)
            write_job(folder, "finished", settings, seconds=time.perf_counter() - started)
            return finite_elbo(metrics)
    except FinishedWithOtherSettings as error:
        failed(folder, error.problems, exit_code=2, refused=True)
    except UserError as error:
        failed(folder, error.problems, exit_code=2)
    except RunError as error:
        failed(folder, [str(error)], exit_code=1)
    except Exception as error:  # unforeseen: with its traceback
        failed(folder, [describe(error)], exit_code=1, bug=error)
    except BaseException:  # a signal: the run has saved what it had
        write_job(folder, "stopped", read_json(folder / "job.json").get("settings"))
        raise
    finally:
        gc.collect()  # a Trainer and its parts refer to one another and would outlive the job
    return None


def finite_elbo(metrics: dict[str, Any]) -> float | None:
    elbo = metrics.get("val/elbo")
    return elbo if elbo is not None and math.isfinite(elbo) else None


def write_job(folder: Path, state: str, settings: Any, **more: Any) -> None:
    write_json(folder / "job.json", {"state": state, **more, "settings": settings})


def describe(error: Exception) -> str:
    """An unforeseen error in a line; running out of memory by its name."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    if isinstance(error, MemoryError) or "outofmemory" in text.lower() or "allocate mem" in text:
        return f"out of memory ({text}); fewer runs at a time or a smaller data.batch_size"
    return text


def failed(
    folder: Path,
    problems: Any,
    exit_code: int,
    bug: Exception | None = None,
    refused: bool = False,
) -> None:
    """Write the problems to the job's log and to its job.json, which keeps the settings it had.

    `refused`: the folder's metrics belong to another run, so they do not make this job finished.
    """
    for problem in problems:
        log.error("error: %s", problem, exc_info=bug)
    settings = read_json(folder / "job.json").get("settings")
    more: dict[str, Any] = {"problems": list(problems), "exit_code": exit_code}
    write_job(folder, "failed", settings, **more | ({"refused": True} if refused else {}))


class FinishedWithOtherSettings(UserError):
    """The folder of a job holds a finished run of other settings."""


def finished_metrics(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The metrics of a finished run, nothing for an unfinished one.

    Raises FinishedWithOtherSettings where it was trained with other settings, and gives the folder
    those back: Hydra has written the new ones over them by now.
    """
    metrics = read_json(folder / "metrics.json")
    before = read_json(folder / "job.json").get("settings")
    if metrics and isinstance(before, dict):
        other = different_results(before, settings)
        if other:
            OmegaConf.save(OmegaConf.create(before), folder / SETTINGS)
            raise FinishedWithOtherSettings(
                f"hydra.sweep.dir: {folder} holds a finished run with other settings of "
                f"{', '.join(other)}; sweep into another folder"
            )
    return metrics


def restore_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Hydra has written a finished run's settings again, unresolved: keep them as the run had them.

    Else its folder would need this machine's environment, and a summary would not see that it
    repeats the training of a run that is resolved.
    """
    before = read_json(folder / "job.json").get("settings")
    settings = before if isinstance(before, dict) else settings
    if (folder / ".hydra").is_dir():
        text = OmegaConf.to_yaml(OmegaConf.create(settings | {"resume": None}))
        atomic_write(folder / SETTINGS, text)


def refuse_several_devices(config: DictConfig) -> None:
    """Raise UserError unless a job computes on one device, as jobs of a multirun must."""
    devices, nodes = config.trainer.get("devices", 1), config.trainer.get("num_nodes", 1)
    one = devices in (1, "1") or (OmegaConf.is_list(devices) and len(devices) == 1)
    if not one or nodes != 1:
        setting = f"trainer.devices={devices}" if not one else f"trainer.num_nodes={nodes}"
        raise UserError(
            f"{setting} in a multirun: the processes of a run over several devices would each "
            "start the whole sweep; use trainer.devices=1 with hydra/launcher=joblib, or start "
            "each such run by itself"
        )


class Sweep(Callback):
    """Hydra's callback around a run or a multirun, before it writes anything: refuses what cannot
    run and holds the folder against other processes. After a multirun: the summary and the exit
    code.
    """

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """A single run gets a folder that no other run has, or resumes in its own."""
        refuse_unswept(config)
        folder = Path(config.hydra.run.dir)
        resumes = config.get("resume") is not None
        if resumes and Path(config.resume).resolve() != folder.resolve():
            exit_with_usage_error(
                f"resume={config.resume}: call vae.train.cli(), which `python -m vae.train` does; "
                "main() alone works in another folder"
            )
        if resumes and not (folder / SETTINGS).is_file():
            exit_with_usage_error(f"resume={folder} is no run folder: it has no {SETTINGS}")
        if not resumes and is_rank_zero():
            if (folder / "metrics.json").exists():
                exit_with_usage_error(
                    f"hydra.run.dir={folder} holds a finished run; resume={folder} "
                    "trainer.max_epochs=N trains it longer, another folder keeps both"
                )
            if (folder / "checkpoints" / "last.ckpt").exists():
                exit_with_usage_error(
                    f"hydra.run.dir={folder} holds an unfinished run; resume={folder} resumes it"
                )
        setting = "resume" if resumes else "hydra.run.dir"
        with usage_errors(setting, folder):
            if not resumes and is_rank_zero() and is_stamped(config.hydra.run):
                folder = make_unique_folder(folder)
                with open_dict(config.hydra.run):
                    config.hydra.run.dir = str(folder)
            FOLDER_LOCKS.enter_context(folder_lock(folder, setting))

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """A sweep gets a folder that no other sweep has, or the one that was named."""
        if config.get("resume") is not None:
            exit_with_usage_error(
                "resume= is for a single run; the same multirun with hydra.sweep.dir=<its folder> "
                "resumes a sweep"
            )
        try:
            refuse_several_devices(config)
        except UserError as error:
            exit_with_usage_error(str(error))
        if str(sweeper(config).get("direction", "")).endswith("minimize"):
            exit_with_usage_error(
                "hydra.sweeper.direction=minimize looks for the worst validation ELBO; "
                "use hydra/sweeper=optuna_search, or hydra.sweeper.direction=maximize"
            )
        params = [f"{key}={value}" for key, value in swept_by_default(config).items()]
        given = OverridesParser.create().parse_overrides([*params, *overrides(config)])
        several = any(override.is_sweep_override() for override in given)
        if several and "${" not in raw(config.hydra.sweep)["subdir"]:
            exit_with_usage_error(
                f"hydra.sweep.subdir={config.hydra.sweep.subdir} is one folder for all jobs of a "
                "sweep; ${hydra.job.num} or ${hydra.job.override_dirname} in it tells them apart"
            )
        refuse_intervals(config, given)
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
    """Ends the process in a line where the folder cannot be made, written or held."""
    try:
        yield
    except UserError as error:
        exit_with_usage_error(str(error))
    except OSError as error:
        exit_with_usage_error(f"{setting}={folder}: {error.strerror or error}")


def refuse_unswept(config: DictConfig) -> None:
    """An experiment made for a multirun lists what it sweeps in hydra.sweeper.params."""
    given = {split_override(override)[0] for override in overrides(config)}
    swept = [f"{k}={v}" for k, v in swept_by_default(config).items() if k not in given]
    if swept:
        exit_with_usage_error(
            f"these settings are for a multirun over {' '.join(swept)}: add -m to the command"
        )


def refuse_intervals(config: DictConfig, given: list[Override]) -> None:
    """Hydra's own sweeper takes lists and ranges alone and would end in a traceback."""
    if not str(sweeper(config).get("_target_", "")).endswith("BasicSweeper"):
        return
    for override in given:
        if override.is_interval_sweep():
            exit_with_usage_error(
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


def exit_with_usage_error(line: str) -> NoReturn:
    print(f"error: {line}", file=sys.stderr)
    sys.exit(2)
