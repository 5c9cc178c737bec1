"""history.csv of the run folder: one row a validation, whatever pictures and loggers are on."""

import csv
import io
import math
from pathlib import Path
from typing import Any

import lightning.pytorch as L

from vae.runs.errors import UserError
from vae.runs.files import atomic_write

HISTORY = "history.csv"
MAX_BYTES = 100_000_000
COLUMNS = (
    *("epoch", "step", "train/elbo", "train/log_likelihood", "train/kl", "train/objective"),
    *("val/elbo", "val/log_likelihood", "val/kl", "val/collapsed"),
)


class History(L.Callback):
    """Appends a row to `history.csv` after every validation of a fit.

    Its columns are `COLUMNS` and whatever else the module logged under `train/`, `val/` or
    `model/`; nats per image. `epoch` counts the epochs done, with a fraction for a validation
    within one. A resumed run drops the rows later than its checkpoint, so that each is there once.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.rows: list[dict[str, float]] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        try:
            rows = read_history(self.folder)
        except ValueError as error:
            raise UserError(f"{error}; take the file away to resume without its rows") from error
        self.rows = [row for row in rows if row["step"] <= trainer.global_step]

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn != "fit" or is_sanity_or_dev_run(trainer) or not trainer.is_global_zero:
            return
        row = {"epoch": epochs_done(trainer), "step": trainer.global_step, **logged(trainer)}
        self.rows = [r for r in self.rows if r["step"] < trainer.global_step] + [row]
        write_history(self.folder, self.rows)

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self.epoch_ended(trainer)  # what is resumed has the row that belongs to it

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.epoch_ended(trainer)  # without checkpoints

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.epoch_ended(trainer)

    def epoch_ended(self, trainer: L.Trainer) -> None:
        """Means over the epoch, and what callbacks log as it ends, are known after its validation
        alone."""
        if trainer.state.fn == "fit" and self.rows and self.rows[-1]["step"] == trainer.global_step:
            self.update_last(trainer)

    def validated_again(self, trainer: L.Trainer) -> None:
        """The last row's metrics are those of a validation after training, of averaged weights."""
        if self.rows:
            self.update_last(trainer)

    def update_last(self, trainer: L.Trainer) -> None:
        metrics = logged(trainer)  # on all processes, which may have to reduce them together
        if trainer.is_global_zero and not metrics.items() <= self.rows[-1].items():
            self.rows[-1] |= metrics
            write_history(self.folder, self.rows)


def logged(trainer: L.Trainer) -> dict[str, float]:
    """What the module has logged for a row of the history."""
    prefixes = ("train/", "val/", "model/")
    metrics = trainer.callback_metrics.items()
    return {name: float(value) for name, value in metrics if name.startswith(prefixes)}


def is_sanity_or_dev_run(trainer: L.Trainer) -> bool:
    """Whether this is a sanity check or a fast_dev_run, which leave nothing behind."""
    return trainer.sanity_checking or bool(trainer.fast_dev_run)  # type: ignore[attr-defined]


def epochs_done(trainer: L.Trainer) -> float:
    """Epochs trained so far, at a validation: 1 after the first, 0.25 at a quarter of it."""
    batches = trainer.num_training_batches
    done = trainer.fit_loop.epoch_loop.batch_idx + 1
    within = done / batches if batches and math.isfinite(batches) else 1.0
    return trainer.current_epoch + min(within, 1.0)


def write_history(folder: Path, rows: list[dict[str, float]]) -> None:
    """Write the rows atomically; a metric that a row lacks is an empty field."""
    others = sorted({name for row in rows for name in row} - {*COLUMNS})
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, [*COLUMNS, *others], restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: f"{value:.10g}" for name, value in row.items()} for row in rows)
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(folder / HISTORY, buffer.getvalue())


def read_history(folder: str | Path) -> list[dict[str, float]]:
    """The rows of `history.csv`, in order; NaN for an empty field, no rows without the file.

    Raises ValueError for a file that is not such a table.
    """
    path = Path(folder) / HISTORY
    if not path.is_file():
        return []
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path} is larger than {MAX_BYTES} bytes")
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            if not {"epoch", "step"} <= {*(reader.fieldnames or ())}:
                raise ValueError("it has no columns epoch and step")
            return [{name: float(text or "nan") for name, text in row.items()} for row in reader]
    except (OSError, TypeError, ValueError, csv.Error) as error:
        raise ValueError(f"{path}: {error}") from error
