"""What an exact resume needs beyond Lightning's own checkpoint, and a run's totals."""

import logging
import time
from functools import partial
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder
from torch import Tensor

from vae.data.batches import as_batch
from vae.runs.devices import device_name, restore_rng, rng_state
from vae.runs.printable import printable
from vae.training.module import LitVAE
from vae.training.schedules import replay

log = logging.getLogger(__name__)


class ExactResume(L.Callback):
    """A resumed run ends bit for bit (on a CPU) as if it had never been interrupted.

    Saves and restores torch's generators, the sums behind the `train/*` metrics and the totals over
    all interruptions. Where the run has become longer, its learning rate continues along the longer
    schedule. Without a checkpoint, training starts from the generators as they were when this was
    made: DDP seeds them once more in between.
    """

    def __init__(self) -> None:
        self.rng = rng_state(torch.device("cpu"))
        self.saved: dict[str, Any] = {}
        self.images_seen, self.seconds = 0, 0.0  # of all processes, over all interruptions
        self._clock = 0.0
        self._within_epoch = False  # the checkpoint is of an epoch that ended before its batches

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Resume runs with trainer.max_steps as those without: Lightning would run the epoch that
        the checkpoint ended once more, over no batches, and so count one epoch too many."""
        trainer.fit_loop._iteration_based_training = lambda: False  # type: ignore[method-assign]

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._clock = time.perf_counter()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            if self._within_epoch:
                log.warning(
                    "the run had ended within an epoch, and continues with the next one: by "
                    "trainer.max_steps, or by a callback"
                )
            report_changes(self.saved.get("environment"), environment(trainer, pl_module.device))
        if isinstance(pl_module, LitVAE) and self.saved:
            if trainer.is_global_zero:
                sums: dict[str, Tensor] = self.saved["train_sums"]
                pl_module.train_metric.sums = {k: v.to(pl_module.device) for k, v in sums.items()}
            schedule, length = pl_module.schedule, schedule_length(pl_module)
            in_use = trainer.lr_scheduler_configs  # SWA and your own steps may have taken it
            changed = length != self.saved["schedule_length"]
            if schedule is not None and length is not None and changed and in_use:
                replay(schedule, in_use[0].scheduler, trainer.optimizers[0], length)
        restore_rng(self.saved.get("rng", self.rng), pl_module.device)

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        self.images_seen += as_batch(batch).size

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._update_elapsed()
        if self.images_seen == self.saved.get("images_seen") and trainer.is_global_zero:
            log.info(
                "nothing was left to train: trainer.max_epochs=%s, trainer.max_steps=%s",
                trainer.max_epochs,
                trainer.max_steps,
            )

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._update_elapsed()
        checkpoint["resume"] = {
            "rng": rng_state(pl_module.device),
            "environment": environment(trainer, pl_module.device),
            "images_seen": self.images_seen,
            "seconds": self.seconds,
        }
        if isinstance(pl_module, LitVAE):  # all processes save together
            reduce = partial(trainer.strategy.reduce, reduce_op="sum")
            checkpoint["resume"]["train_sums"] = pl_module.train_metric.state(reduce)
            checkpoint["resume"]["schedule_length"] = schedule_length(pl_module)

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if trainer.state.fn == "fit" and "resume" in checkpoint:  # a test goes back to an earlier
            self.saved = checkpoint["resume"]
            self.images_seen = self.saved["images_seen"]
            self.seconds = self.saved["seconds"]
            loop = checkpoint["loops"]["fit_loop"]
            done = {loop["epoch_progress"]["current"][k] for k in ("ready", "started", "processed")}
            ended = not loop["epoch_loop.batch_progress"]["is_last_batch"]
            self._within_epoch = ended and len(done) == 1 and self.images_seen > 0

    def _update_elapsed(self) -> None:
        if self._clock:
            now = time.perf_counter()
            self.seconds, self._clock = self.seconds + now - self._clock, now


def without_finders(callbacks: list[Any], problems: list[str]) -> list[Any]:
    """The callbacks of a resumed run: the learning rate that was found comes with the optimizer's
    state. A batch size is in no checkpoint, which is a problem."""
    if any(isinstance(c, BatchSizeFinder) for c in callbacks):
        problems.append(
            "callbacks: BatchSizeFinder would search again, which no run can be resumed with; "
            "start again with data.batch_size=<what it found>"
        )
    return [c for c in callbacks if not isinstance(c, LearningRateFinder)]


def schedule_length(pl_module: LitVAE) -> int | None:
    """The length that the run's schedule follows; None where it follows none."""
    schedule = pl_module.schedule
    return pl_module.run_length(schedule.interval) if schedule and schedule.auto else None


def environment(trainer: L.Trainer, device: torch.device) -> dict[str, str | int]:
    """What the last digits of a run depend on besides its settings."""
    return {
        "device": device_name(device),
        "precision": str(trainer.precision),
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
    }


def report_changes(before: Any, now: dict[str, str | int]) -> None:
    """Log what the checkpoint was trained with, where the run is resumed with something else.

    The precision is among it: `fastest` is another one on another processor.
    """
    known = before if isinstance(before, dict) else {}
    changed = [
        f"{name} was {printable(str(known[name]))} and is {value}"
        for name, value in now.items()
        if name in known and known[name] != value
    ]
    if changed:
        log.warning("resumed, but not bit for bit: %s", ", ".join(changed))
