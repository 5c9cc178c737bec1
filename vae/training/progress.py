"""What the screen and train.log show while a run trains: a line per epoch, and on a terminal a bar
within it."""

import logging
import sys
import time
import warnings
from typing import Any

import lightning.pytorch as L
from lightning.pytorch.callbacks import ProgressBar
from tqdm import tqdm

log = logging.getLogger(__name__)


# Lightning's loggers that only remark on the machine and on other ways of working. Its reports
# (profiler, model summary, finders) stay.
REMARKS = ("utilities.rank_zero", "accelerators", "callbacks.model_checkpoint", "tuner")


def silence_lightning() -> None:
    """Keep Lightning's remarks off the screen, and what was asked for on it."""
    if logging.root.handlers:  # Hydra's: what Lightning says goes to the screen and train.log, once
        for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
            logging.getLogger(name).handlers.clear()
            logging.getLogger(name).propagate = True
    for name in REMARKS:
        logging.getLogger(f"lightning.pytorch.{name}").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    for remark in (
        ".*does not have many workers.*",
        ".*is smaller than the logging interval.*",
        ".*treespec.*",
        ".*sync_dist=True.*",  # LitVAE adds up over processes by itself
        "Checkpoint directory",  # a resumed run's is not empty
        "The lr scheduler dict contains",  # many steps per call: vae.training.blocks steps it
        "Experiment logs directory",  # vae.training.loggers puts its rows back
        ".*resuming from a checkpoint that ended before the epoch ended.*",  # exactly, here
    ):
        warnings.filterwarnings("ignore", message=remark)


class Progress(ProgressBar):
    """A line at each validation, and a bar within an epoch on a terminal.

    `refresh_rate` is the number of batches between two updates of the bar; 0: lines only.
    """

    def __init__(self, refresh_rate: int = 1) -> None:
        super().__init__()
        self.refresh_rate = self._chosen_rate = refresh_rate
        self._bar: tqdm[Any] | None = None
        self._since = 0.0

    def disable(self) -> None:  # the Trainer calls this on all ranks but the first
        self.refresh_rate = 0

    def enable(self) -> None:
        self.refresh_rate = self._chosen_rate

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._begin()  # an epoch that is resumed within has no start of its own

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._begin()

    def _begin(self) -> None:
        self._since = time.perf_counter()
        if self._bar is not None:
            self._bar.close()
        if self.refresh_rate and sys.stderr.isatty():
            self._bar = tqdm(total=int(self.total_train_batches), leave=False, unit="batch")

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if self._bar is not None and (batch_idx + 1) % self.refresh_rate == 0:
            self._bar.update(batch_idx + 1 - self._bar.n)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn != "fit" or trainer.sanity_checking or not trainer.is_global_zero:
            return
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        logged = {
            split: trainer.callback_metrics.get(f"{split}/elbo") for split in ("train", "val")
        }
        elbos = [f"{split} {value:8.2f}" for split, value in logged.items() if value is not None]
        last = trainer.max_epochs if (trainer.max_epochs or -1) > 0 else None  # else without an end
        log.info(
            "epoch %*d%s  ELBO %s  (%.1f s)",
            len(str(last or "")),
            trainer.current_epoch + 1,
            f"/{last}" if last else "",
            "  ".join(elbos),
            time.perf_counter() - self._since,
        )
