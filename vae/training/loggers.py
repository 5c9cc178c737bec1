"""A run's logger: TensorBoard, CSV, W&B or MLflow take figures and pictures alike, and no run ends
by its logger."""

import contextlib
import csv
import logging
import os
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
from tensorboard.compat.proto.summary_pb2 import Summary
from torch import Tensor

from vae.runs.errors import RunError, UserError, first_line
from vae.runs.files import is_rank_zero, read_json, write_json
from vae.runs.folder import read_checkpoint
from vae.runs.validation import flatten

log = logging.getLogger(__name__)


RUN_IDS_FILE = "logger.json"  # of the run folder: the name that W&B or MLflow has given the run


def logger_lock() -> FileLock:
    """Runs side by side would each make MLflow's database and experiment, and break both."""
    return FileLock(Path(tempfile.gettempdir()) / f"vae-{os.getuid()}-logger.lock")


def arguments(config: dict[str, Any], folder: Path, resume: Path | None) -> dict[str, Any]:
    """What a logger is given beside its settings: a folder, a name, and on resuming where it goes
    on."""
    node = config.get("logger") or {}
    kind = str(node.get("_target_", "")).rpartition(".")[2]
    kept = read_json(folder / RUN_IDS_FILE).get(kind) if resume else None
    given: dict[str, Any] = {"save_dir": str(folder)}
    if kind == "TensorBoardLogger" and resume:
        # points that a killed run logged after the checkpoint are not to be shown twice
        given["purge_step"] = read_checkpoint(resume)["global_step"] + 1
    elif kind == "WandbLogger":
        given |= {"name": folder.name, "id": kept}
    elif kind == "MLFlowLogger":
        given |= {"run_name": folder.name, "run_id": kept}
        uri = str(node.get("tracking_uri"))
        if uri.startswith("sqlite:///"):  # pictures beside the database, not in ./mlruns
            given["artifact_location"] = uri.removeprefix("sqlite:///").removesuffix(".db")
    return {key: value for key, value in given.items() if node.get(key) is None}


class FaultTolerantLogger(Logger):
    """One of Lightning's loggers, or none. As a context it is open; the first failure within warns
    and closes it."""

    def __init__(
        self, logger: Logger | None, config: dict[str, Any], folder: Path, resume: Path | None
    ) -> None:
        super().__init__()
        self._logger, self._folder, self._resume = logger, folder, resume
        known = (int, float, str)
        self._settings = {
            k: v
            for k, v in flatten(config)
            if isinstance(v, known) and not k.startswith("callbacks.")
        }

    def __enter__(self) -> "FaultTolerantLogger":
        """Raises UserError or RunError with one line where the logger cannot begin."""
        self._excepthook, threading.excepthook = threading.excepthook, self._in_thread
        try:
            if self._logger is not None:
                with (
                    logger_lock()
                    if isinstance(self._logger, MLFlowLogger)
                    else contextlib.nullcontext()
                ):
                    self._open(self._logger)
        except Exception as error:
            threading.excepthook = self._excepthook
            kind = RunError if isinstance(error, OSError) else UserError
            raise kind(f"logger: {first_line(error)}; logger=none trains without one") from error
        return self

    def __exit__(self, exception: type[BaseException] | None, *_: object) -> None:
        threading.excepthook = self._excepthook
        if isinstance(self._logger, WandbLogger):  # the next run of this process would go on in it
            self._try(lambda logger: logger.experiment.finish(exit_code=int(exception is not None)))

    def _open(self, logger: Any) -> None:
        earlier = Path(logger.log_dir) / "metrics.csv" if isinstance(logger, CSVLogger) else None
        rows = rows_until(earlier, self._resume) if earlier and self._resume else []
        begun = logger.experiment  # a CSVLogger takes the earlier file away here
        if rows:
            begun.metrics = rows
            logger.save()
        named = isinstance(logger, WandbLogger | MLFlowLogger) and logger.version is not None
        if named and is_rank_zero():
            write_json(self._folder / RUN_IDS_FILE, {type(logger).__name__: logger.version})
        # TensorBoard gets the settings with the final figures, and MLflow lets none be changed.
        if not isinstance(logger, TensorBoardLogger) and not (
            isinstance(logger, MLFlowLogger) and self._resume
        ):
            logger.log_hyperparams(self._settings)

    @property
    def name(self) -> str | None:
        return None if self._logger is None else self._logger.name

    @property
    def version(self) -> int | str | None:
        return None if self._logger is None else self._logger.version

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """The settings of the run are logged, not what a module keeps as its own."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self._try(lambda logger: logger.log_metrics(metrics, step))

    def log_picture(self, name: str, path: Path, step: int) -> None:
        """An encoded PNG or GIF of the run folder."""
        self._try(lambda logger: log_picture(logger, name, path, step))

    def log_histogram(self, name: str, values: Tensor, step: int) -> None:
        self._try(lambda logger: log_histogram(logger, name, values, step))

    def log_final(self, metrics: dict[str, float], step: int) -> None:
        """Final figures; in TensorBoard beside the settings, for its HPARAMS tab.

        Final train and val figures belong to the kept checkpoint, so they get the prefix `final/`:
        under their own names they would add a point to the curves.
        """
        final = {
            f"final/{k}" if k.startswith(("train/", "val/", "model/sigma")) else k: v
            for k, v in metrics.items()
        }
        if isinstance(self._logger, TensorBoardLogger):
            self._try(lambda logger: logger.log_hyperparams(self._settings, final, step))
        else:
            self.log_metrics(final, step)
        self.save()
        self.finalize("success")  # closes the event file and ends the thread that writes it

    def save(self) -> None:
        self._try(lambda logger: logger.save())

    def finalize(self, status: str) -> None:
        self._try(lambda logger: logger.finalize(status))

    def _try(self, call: Callable[[Any], None]) -> None:
        if self._logger is None:
            return
        try:
            call(self._logger)
        except Exception as error:
            log.warning(
                "logger: %s (%s); the run goes on without it",
                first_line(error),
                type(error).__name__,
            )
            self._logger = None

    def _in_thread(self, args: threading.ExceptHookArgs) -> None:
        """What fails in TensorBoard's thread is raised again where it is logged, and told there."""
        if type(args.thread).__name__ != "_AsyncWriterThread":
            self._excepthook(args)


def log_picture(logger: Any, name: str, path: Path, step: int) -> None:
    if isinstance(logger, TensorBoardLogger):
        # add_image would decode and encode again, and cannot take an animation
        value = Summary.Value(tag=name, image=Summary.Image(encoded_image_string=path.read_bytes()))
        logger.experiment._get_file_writer().add_summary(Summary(value=[value]), step)
    elif isinstance(logger, WandbLogger):
        (logger.log_video if path.suffix == ".gif" else logger.log_image)(name, [str(path)], step)
    elif isinstance(logger, MLFlowLogger):
        logger.experiment.log_artifact(logger.run_id, str(path), f"{name}/{step:08}")


def log_histogram(logger: Any, name: str, values: Tensor, step: int) -> None:
    if isinstance(logger, TensorBoardLogger):
        logger.experiment.add_histogram(name, values, step)
    elif isinstance(logger, WandbLogger):
        import wandb

        histogram: Any = wandb.Histogram(values.tolist())
        logger.log_metrics({name: histogram}, step)


def rows_until(path: Path, resume: Path) -> list[dict[str, Any]]:
    """The rows of a CSV file that a run had when it saved the checkpoint `resume`."""
    step = read_checkpoint(resume)["global_step"]
    if not path.exists():
        return []
    with path.open(newline="") as file:
        rows = [
            row for row in csv.DictReader(file) if None not in row.values()
        ]  # one that was cut off
    return [row for row in rows if int(row["step"]) <= step]
