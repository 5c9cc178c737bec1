"""One job of a multirun: one that fails does not stop the others, a finished one is not run again.

It uses its run folder alone, so it works with every launcher and sweeper.
"""

import gc
import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from vae.runs.errors import RunError, UserError
from vae.runs.files import SETTINGS, atomic_write, folder_lock, read_json, write_json
from vae.runs.gpu import one_gpu
from vae.runs.identity import different_results

log = logging.getLogger(__name__)

WAIT_FOREVER = -1


def run_job(
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
        check_single_device(config)
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
        record_failure(folder, error.problems, exit_code=2, refused=True)
    except UserError as error:
        record_failure(folder, error.problems, exit_code=2)
    except RunError as error:
        record_failure(folder, [str(error)], exit_code=1)
    except Exception as error:  # unforeseen: with its traceback
        record_failure(folder, [describe(error)], exit_code=1, bug=error)
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


def record_failure(
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


def check_single_device(config: DictConfig) -> None:
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
