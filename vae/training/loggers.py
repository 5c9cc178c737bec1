"""A run's loggers: TensorBoard, CSV, W&B and MLflow take metrics and pictures alike.

One or several at a time, and none of them can end a run.
"""

import contextlib
import csv
import getpass
import logging
import tempfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock
from lightning.pytorch.loggers import (
    CSVLogger,
    Logger,
    MLFlowLogger,
    TensorBoardLogger,
    WandbLogger,
)
from torch import Tensor

from vae.runs.checkpoints import read_checkpoint
from vae.runs.errors import RunError, UserError, first_line
from vae.runs.files import is_rank_zero, read_json, write_json
from vae.runs.identity import flatten
from vae.runs.untrusted import as_texts, read_yaml
from vae.training.tensorboard import LAYOUT, compared_settings, log_hparams, log_image

log = logging.getLogger(__name__)

RUN_IDS_FILE = "logger.json"  # of the run folder: the names that W&B and MLflow have given the run


def logger_lock() -> FileLock:
    """Runs side by side would each make MLflow's database and experiment, and break both."""
    try:
        user = "".join(c for c in getpass.getuser() if c.isalnum())
    except (KeyError, OSError):  # a container's user without a name
        user = "user"
    return FileLock(Path(tempfile.gettempdir()) / f"vae-{user}-logger.lock")


# --- from the settings ------------------------------------------------------------------------


def logger_nodes(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The nodes of `logger` by key: one with a `_target_`, or several by a name each."""
    node = config.get("logger") or {}
    if "_target_" in node:
        return {"logger": node}
    return {f"logger.{name}": child for name, child in node.items() if isinstance(child, dict)}


def build_loggers(build: Any, folder: Path, resume: Path | None) -> list[Logger]:
    """The loggers of the settings that `build` (a Builder) holds; its problems are collected there.

    Each is given the run folder, a name, and on resuming what it needs to append to its own run.
    """
    with logger_lock():
        made = [
            build(key, **arguments(node, folder, resume))
            for key, node in logger_nodes(build.config).items()
        ]
    return [logger for logger in made if logger is not None]


def arguments(node: Mapping[str, Any], folder: Path, resume: Path | None) -> dict[str, Any]:
    """What a logger is given next to its settings."""
    kind = str(node.get("_target_", "")).rpartition(".")[2]
    run_id = read_json(folder / RUN_IDS_FILE).get(kind) if resume else None
    given: dict[str, Any] = {"save_dir": str(folder)}
    if kind == "TensorBoardLogger" and resume:
        # What a killed run logged after the checkpoint is not to be shown twice; Lightning logs the
        # metrics of optimiser step n at n − 1.
        given["purge_step"] = read_checkpoint(resume)["global_step"]
    elif kind == "WandbLogger":
        given |= {"name": folder.name, "id": run_id}
    elif kind == "MLFlowLogger":
        given |= {"run_name": folder.name, "run_id": run_id}
        uri = str(node.get("tracking_uri"))
        if uri.startswith("sqlite:///"):  # pictures next to the database, not in ./mlruns
            given["artifact_location"] = uri.removeprefix("sqlite:///").removesuffix(".db")
    elif kind == "CometLogger":
        given = {}
    return {key: value for key, value in given.items() if node.get(key) is None}


# --- in a run ---------------------------------------------------------------------------------


def logger_context(logger: Any) -> contextlib.AbstractContextManager[Any]:
    """A run's logger as a context; in a fast_dev_run Lightning has put a dummy into its place."""
    return logger if isinstance(logger, FaultTolerantLogger) else contextlib.nullcontext()


class FaultTolerantLogger(Logger):
    """Lightning's loggers, any number of them, as one.

    As a context it is open. The first failure of a logger within warns and takes that logger out;
    the run and the other loggers continue. `loggers` are those that are left.
    """

    def __init__(
        self, loggers: list[Logger], config: dict[str, Any], folder: Path, resume: Path | None
    ) -> None:
        super().__init__()
        self.loggers, self._folder, self._resume = list(loggers), folder, resume
        self._config = config
        self._settings = {
            key: value if isinstance(value, int | float | str) else str(value)
            for key, value in flatten(config)
            if value is not None and not key.startswith(("callbacks.", "logger."))
        }
        self._tested: dict[str, float] = {}

    def __enter__(self) -> "FaultTolerantLogger":
        """Raises UserError or RunError with one line where a logger cannot begin."""
        self._excepthook, threading.excepthook = threading.excepthook, self._in_thread
        try:
            for logger in self.loggers:
                lock = isinstance(logger, MLFlowLogger)
                with logger_lock() if lock else contextlib.nullcontext():
                    self._open(logger)
        except Exception as error:
            threading.excepthook = self._excepthook
            kind = RunError if isinstance(error, OSError) else UserError
            raise kind(f"logger: {first_line(error)}; logger=none trains without one") from error
        return self

    def __exit__(self, exception: type[BaseException] | None, *_: object) -> None:
        threading.excepthook = self._excepthook
        # otherwise the next run of this process would log into the same one
        code = int(exception is not None)
        self._each(lambda logger: logger.experiment.finish(exit_code=code), WandbLogger)

    def _open(self, logger: Any) -> None:
        earlier = Path(logger.log_dir) / "metrics.csv" if isinstance(logger, CSVLogger) else None
        rows = rows_until(earlier, self._resume) if earlier and self._resume else []
        begun = logger.experiment  # a CSVLogger takes the earlier file away here
        if rows:
            begun.metrics = rows
            logger.save()
        named = isinstance(logger, WandbLogger | MLFlowLogger) and logger.version is not None
        if named and is_rank_zero():
            ids = read_json(self._folder / RUN_IDS_FILE)
            write_json(self._folder / RUN_IDS_FILE, ids | {type(logger).__name__: logger.version})
        if isinstance(logger, TensorBoardLogger):  # gets the settings with the final metrics
            if is_rank_zero():
                begun.add_custom_scalars(LAYOUT)
        elif not (isinstance(logger, MLFlowLogger) and self._resume):  # lets none be changed
            logger.log_hyperparams(self._settings)

    @property
    def name(self) -> str | None:
        return self.loggers[0].name if self.loggers else None

    @property
    def version(self) -> int | str | None:
        return None  # the run folder tells runs apart

    @property
    def save_dir(self) -> str:
        return str(self._folder)

    @property
    def experiment(self) -> Any:
        """The first logger's own object, such as TensorBoard's SummaryWriter; None without one."""
        return getattr(self.loggers[0], "experiment", None) if self.loggers else None

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """The settings of the run are logged, not what a module keeps as its own."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """A test's metrics wait for `log_final`: its train and val would add to the curves."""
        tested = {name: value for name, value in metrics.items() if name.startswith("test/")}
        self._tested |= tested
        if not tested:
            self._each(lambda logger: logger.log_metrics(metrics, step))

    def log_picture(self, name: str, path: Path, step: int) -> None:
        """An encoded PNG or GIF of the run folder."""
        self._each(lambda logger: log_picture(logger, name, path, step))

    def log_histogram(self, name: str, values: Tensor, step: int) -> None:
        """A histogram of values [n]."""
        self._each(lambda logger: log_histogram(logger, name, values, step))

    def log_final(self, metrics: dict[str, float], step: int) -> None:
        """Final metrics; in TensorBoard next to the settings, for its HPARAMS tab.

        Those of train and val belong to the tested weights, so they get the prefix `final/`: under
        their own names they would add a point to the curves.
        """
        final = self._tested | {
            f"final/{k}" if k.startswith(("train/", "val/", "model/sigma")) else k: v
            for k, v in metrics.items()
        }
        collapsed, latents = metrics.get("test/collapsed"), self._settings.get("model.latent_dim")
        if collapsed is not None and isinstance(latents, int):
            final["test/active"] = latents - collapsed
        self._each(lambda logger: logger.log_metrics(final, step))
        hparams = compared_settings(self._config, task_overrides(self._folder))
        self._each(lambda logger: log_hparams(logger, hparams), TensorBoardLogger)
        self.save()
        self.finalize("success")  # closes the event file and ends the thread that writes it

    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        self._each(lambda logger: logger.after_save_checkpoint(checkpoint_callback))

    def save(self) -> None:
        self._each(lambda logger: logger.save())

    def finalize(self, status: str) -> None:
        self._each(lambda logger: logger.finalize(status))

    def _each(self, call: Callable[[Any], None], kind: type = Logger) -> None:
        for logger in [logger for logger in self.loggers if isinstance(logger, kind)]:
            try:
                call(logger)
            except Exception as raised:
                # Lightning wraps whatever TensorBoard's thread raised into a ValueError of its own.
                error: BaseException = raised
                while error.__cause__ is not None:
                    error = error.__cause__
                what = f"{first_line(error)} ({type(error).__name__})"
                log.warning("logger: %s; the run continues without it", what)
                self.loggers.remove(logger)

    def _in_thread(self, args: threading.ExceptHookArgs) -> None:
        """What fails in TensorBoard's thread is raised again, and reported, where it is logged."""
        if type(args.thread).__name__ != "_AsyncWriterThread":
            self._excepthook(args)


def log_picture(logger: Any, name: str, path: Path, step: int) -> None:
    """An encoded PNG or GIF, in the way of the logger; one that takes none is passed by."""
    if isinstance(logger, TensorBoardLogger):
        log_image(logger, name, path, step)
    elif isinstance(logger, WandbLogger):
        (logger.log_video if path.suffix == ".gif" else logger.log_image)(name, [str(path)], step)
    elif isinstance(logger, MLFlowLogger):
        logger.experiment.log_artifact(logger.run_id, str(path), f"{name}/{step:08}")


def log_histogram(logger: Any, name: str, values: Tensor, step: int) -> None:
    """A histogram, where the logger takes one."""
    if isinstance(logger, TensorBoardLogger):
        logger.experiment.add_histogram(name, values, step)
    elif isinstance(logger, WandbLogger):
        import wandb

        histogram: Any = wandb.Histogram(values.tolist())
        logger.log_metrics({name: histogram}, step)


def rows_until(path: Path, resume: Path) -> list[dict[str, Any]]:
    """The rows of a CSV file that a run had when it saved the checkpoint `resume`, without the
    final one of a run that had ended there."""
    step = read_checkpoint(resume)["global_step"]
    if not path.exists():
        return []
    with path.open(newline="") as file:
        complete = [row for row in csv.DictReader(file) if None not in row.values()]
    return [row for row in complete if int(row["step"]) <= step and not row.get("test/elbo")]


def task_overrides(folder: Path) -> list[str]:
    """The overrides of the command line that a run was started with; empty where unknown."""
    return as_texts(read_yaml(folder / ".hydra" / "overrides.yaml"))
