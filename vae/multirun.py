"""A multirun: one job that fails does not stop the others, one that is finished is not run again.

`job` runs one of them; `Sweep` is Hydra's callback around all of them (hydra.callbacks in
conf/train.yaml). Both work by the run folder alone, so they hold for every launcher: job.json there
says running, finished or failed.
"""

import contextlib
import gc
import itertools
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, read_write

from vae.runs.errors import RunError, UserError
from vae.runs.files import folder_lock, is_rank_zero, make_unique_folder, read_json, write_json

log = logging.getLogger(__name__)


FOLDER_LOCKS = contextlib.ExitStack()  # folders that this process holds until it ends


# Settings that a finished run may differ in and still be the same run.
IMMATERIAL = (
    "threads",
    "resume",
    "callbacks",
    "logger",
    "data.root",
    "trainer.accelerator",
    "trainer.devices",
)


def job(
    train: Callable[[DictConfig, Path], dict[str, float]], config: DictConfig, folder: Path
) -> float:
    """One job of a multirun: its validation ELBO for the sweeper, nan where it failed.

    Raises nothing but what ends the process: what went wrong is in the folder's train.log and
    job.json.
    """
    started = time.perf_counter()
    try:
        if config.get("threads") is None:
            config.threads = (
                1  # so that the figures depend neither on the launcher nor on the machine's cores
            )
        refuse_several_devices(config)
        settings = OmegaConf.to_container(config, resolve=True)
        metrics = finished(folder, settings)
        if metrics:
            log.info("finished already: %s", folder)
            return metrics["val/elbo"]
        write_json(folder / "job.json", {"state": "running", "settings": settings})
        with one_gpu(config):
            metrics = train(config, folder)
        seconds = time.perf_counter() - started
        write_json(
            folder / "job.json", {"state": "finished", "seconds": seconds, "settings": settings}
        )
        return metrics["val/elbo"]
    except UserError as error:
        return failed(folder, error.problems, exit_code=2)
    except RunError as error:
        return failed(folder, [str(error)], exit_code=1)
    except Exception as error:  # unforeseen: with its traceback
        return failed(folder, [f"{type(error).__name__}: {error}"], exit_code=1, bug=error)
    finally:
        gc.collect()  # a Trainer and its parts refer to one another: the model would outlive its job


def failed(folder: Path, problems: Any, exit_code: int, bug: Exception | None = None) -> float:
    """Say it in the job's log and in its job.json, which keeps the settings that it had."""
    for problem in problems:
        log.error("error: %s", problem, exc_info=bug)
    settings = read_json(folder / "job.json").get("settings")
    what = {
        "state": "failed",
        "problems": list(problems),
        "exit_code": exit_code,
        "settings": settings,
    }
    write_json(folder / "job.json", what)
    return float("nan")


def finished(folder: Path, settings: Any) -> dict[str, Any]:
    """The figures of a run that is finished, nothing for one that is not.

    Raises UserError where it was trained with other settings, and gives the folder those back:
    Hydra has written the new ones over them by now.
    """
    metrics = read_json(folder / "metrics.json")
    before = read_json(folder / "job.json").get("settings")
    if metrics and before is not None:
        other = [
            k
            for k in before
            if k not in IMMATERIAL and not same(material(before, k), material(settings, k))
        ]
        if other:
            OmegaConf.save(OmegaConf.create(before), folder / ".hydra" / "config.yaml")
            where = f"hydra.sweep.dir: {folder} holds a finished run with other settings of {', '.join(other)}"
            raise UserError(f"{where}; sweep into another folder")
    return metrics


def same(before: Any, now: Any) -> bool:
    """Equal, but for keys that a later version brought."""
    if isinstance(before, dict) and isinstance(now, dict):
        return all(same(value, now.get(key)) for key, value in before.items())
    return bool(before == now)


def material(settings: Any, key: str) -> Any:
    """The part of a group of settings that figures depend on."""
    group = settings.get(key)
    return (
        {k: v for k, v in group.items() if f"{key}.{k}" not in IMMATERIAL}
        if isinstance(group, dict)
        else group
    )


def refuse_several_devices(config: DictConfig) -> None:
    """Raise UserError unless a job computes on one device, as jobs of a multirun must."""
    devices, nodes = config.trainer.get("devices", 1), config.trainer.get("num_nodes", 1)
    one = devices in (1, "1") or (OmegaConf.is_list(devices) and len(devices) == 1)
    if not one or nodes != 1:
        setting = f"trainer.devices={devices}" if not one else f"trainer.num_nodes={nodes}"
        raise UserError(
            f"{setting} in a multirun: the processes of a run over several devices would each start the whole sweep; "
            "use trainer.devices=1 with hydra/launcher=joblib, or start each such run by itself"
        )


@contextlib.contextmanager
def one_gpu(config: DictConfig) -> Iterator[None]:
    """On a machine with several GPUs, one that no other job has, until the end of this one."""
    if config.trainer.accelerator not in ("auto", "gpu", "cuda") or config.trainer.devices not in (
        1,
        "1",
    ):
        yield
        return
    import torch

    count = torch.cuda.device_count()
    if count < 2:
        yield
        return
    with acquire_free_gpu(count) as index:
        config.trainer.devices = [index]
        yield


@contextlib.contextmanager
def acquire_free_gpu(count: int, seconds: float = 1.0) -> Iterator[int]:
    """The index of a free GPU, waiting for one. A lock file each: a job that is killed gives its
    GPU back."""
    from filelock import FileLock, Timeout

    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    names = visible.split(",") if visible else [str(i) for i in range(count)]
    for index in itertools.cycle(range(count)):
        lock = FileLock(Path(tempfile.gettempdir()) / f"vae-{os.getuid()}-gpu-{names[index]}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            time.sleep(seconds / count)
            continue
        try:
            yield index
        finally:
            lock.release()
        return


class Sweep(Callback):
    """Hydra's callback around a run or a multirun, before it writes anything: refuses what cannot
    run, holds the folder against other processes. After a multirun: the summary and the exit code.
    """

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """A single run gets a folder that no other run has, or goes on in its own."""
        folder = Path(config.hydra.run.dir)
        resumes = config.get("resume") is not None
        if resumes and not (folder / ".hydra" / "config.yaml").is_file():
            exit_with_usage_error(f"resume={folder} is no run folder: it has no .hydra/config.yaml")
        if not resumes and is_rank_zero():
            if (folder / "metrics.json").exists():
                longer = f"resume={folder} trainer.max_epochs=N trains it longer"
                exit_with_usage_error(
                    f"hydra.run.dir={folder} holds a finished run; {longer}, another folder keeps both"
                )
            if (folder / "checkpoints" / "last.ckpt").exists():
                exit_with_usage_error(
                    f"hydra.run.dir={folder} holds an unfinished run; resume={folder} goes on with it"
                )
            if not any(o.startswith("hydra.run.dir=") for o in config.hydra.overrides.hydra):
                folder = make_unique_folder(folder)  # two runs may start in one second
                with read_write(config.hydra.run):
                    config.hydra.run.dir = str(folder)
        self._hold(folder, "resume" if resumes else "hydra.run.dir")

    def _hold(self, folder: Path, setting: str) -> None:
        try:
            FOLDER_LOCKS.enter_context(folder_lock(folder, setting))
        except UserError as error:
            exit_with_usage_error(str(error))

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        if config.get("resume") is not None:
            exit_with_usage_error(
                "resume= goes with a single run; the same multirun with hydra.sweep.dir=<its folder> goes on"
            )
        try:
            refuse_several_devices(config)
        except UserError as error:
            exit_with_usage_error(str(error))
        self._hold(Path(config.hydra.sweep.dir), "hydra.sweep.dir")

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Raises SystemExit with the failed jobs' exit code: of Hydra's ways out this one is not
        swallowed."""
        from vae.reports.sweep.summary import summarise
        from vae.reports.sweep.table import table

        summary = summarise(Path(config.hydra.sweep.dir))
        print(table(summary))
        bad = summary.of_state("failed")
        if bad:
            codes = [
                read_json(summary.folder / run.folder / "job.json").get("exit_code", 1)
                for run in bad
            ]
            print(
                f"error: {len(bad)} of {len(summary.runs)} runs failed, see above", file=sys.stderr
            )
            sys.exit(min(codes))


def exit_with_usage_error(line: str) -> NoReturn:
    print(f"error: {line}", file=sys.stderr)
    sys.exit(2)
