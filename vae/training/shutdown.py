"""Signals, and saving within an epoch: a run that is asked to stop saves, says how to resume it,
and stops."""

import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import lightning.pytorch as L

from vae.runs.files import quote_override

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class SignalHandler(L.Callback):
    """SIGTERM and Ctrl-C end a run with exit codes 143 and 130, `last` written, and the command
    that resumes the run.

    As a context it answers signals from the start of a run to its end, at once where nothing is
    unsaved. While one process trains it waits for the block of steps at hand (Lightning's own
    handler would end the run with exit code 0 and save nothing). `every_n_steps` also saves `last`
    within an epoch, at the first block that ends that many optimiser steps after the previous
    saving; 0: at the ends of epochs alone.
    """

    def __init__(self, last: Path, every_n_steps: int = 0) -> None:
        self.last, self.every_n_steps = last, every_n_steps
        self._training = False
        self._received: int | None = None
        self._saved_at = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "SignalHandler":
        self._before = self._take_over()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._saved_at = trainer.global_step
        if trainer.world_size == 1 and self._before:
            self._take_over()  # Lightning has put its own handler in front
            self._training = True

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        due = self.every_n_steps > 0 and trainer.global_step - self._saved_at >= self.every_n_steps
        if not due and self._received is None:
            return
        if trainer.is_last_batch or trainer.fit_loop.epoch_loop._should_accumulate():
            return  # the epoch's end saves after validation; gradients under way cannot be saved
        trainer.save_checkpoint(self.last, weights_only=False)
        self._saved_at = trainer.global_step
        self._stop_if_told(trainer)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._saved_at = trainer.global_step
        self._stop_if_told(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._training = False
        self._stop_if_told(trainer)

    def _take_over(self) -> dict[int, Any]:
        """Handle the signals here; returns the handlers from before. Only a main thread may."""
        if threading.current_thread() is not threading.main_thread():
            return {}
        return {number: signal.signal(number, self._on_signal) for number in SIGNALS}

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        self._received = number
        if not self._training:
            self._stop(number)

    def _stop_if_told(self, trainer: L.Trainer) -> None:
        if self._received is not None:
            self._stop(self._received, f" at step {trainer.global_step}")

    def _stop(self, number: int, when: str = "") -> None:
        resume = quote_override("resume", self.last.parents[1])
        stopped = f"stopped by {signal.Signals(number).name}{when}"
        print(f"{stopped}; resume with: python -m vae.train {resume}", file=sys.stderr)
        sys.exit(128 + number)
