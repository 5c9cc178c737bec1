"""Many optimiser steps per call of Lightning: the same steps as a plain Trainer's, sooner.

What Lightning does around a batch costs about as much as a training step of a linear model. Nobody
who changes the learning step has to read this file: it is taken by `learning=blocks` alone.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import lightning.pytorch as L
from lightning.pytorch.callbacks import (
    LearningRateMonitor,
    ModelCheckpoint,
    ProgressBar,
    Timer,
)
from torch.optim import LBFGS
from torch.optim.lr_scheduler import ReduceLROnPlateau

from vae.data.batches import Batch
from vae.data.datamodule import ImageDataModule
from vae.runs.errors import UserError
from vae.training.compiled_loss import loss_with_gradients
from vae.training.finite import FiniteCheck
from vae.training.graphed_loss import GraphedLoss
from vae.training.module import LitVAE

log = logging.getLogger(__name__)


def is_everything(share: Any) -> bool:
    """Whether a Trainer's share of the batches is all of them: 1.0 is, 1 is a single batch."""
    return share is None or (isinstance(share, float) and share == 1.0)


Wanted = Callable[[Any], bool]
# What belongs to Lightning's own optimisation of one batch a call, and how to see that it is asked
# for; each would be without effect here, or mean blocks where its documentation says batches.
UNAVAILABLE: dict[str, Wanted] = {
    "trainer.gradient_clip_val": lambda t: t.gradient_clip_val is not None,
    "trainer.accumulate_grad_batches": lambda t: t.accumulate_grad_batches != 1,
    "trainer.fast_dev_run": lambda t: bool(t.fast_dev_run),
    "trainer.overfit_batches": lambda t: t.overfit_batches > 0,
    "trainer.limit_train_batches": lambda t: not is_everything(t.limit_train_batches),
    "trainer.val_check_interval": lambda t: not is_everything(t.val_check_interval),
    "trainer.max_steps": lambda t: t.max_steps != -1,
    "trainer.min_steps": lambda t: t.min_steps is not None,
    "trainer.precision=16-mixed": lambda t: t.precision == "16-mixed",
}
# Hooks that are never called, and those that are called once a block.
STEP_HOOKS = (
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_before_zero_grad",
)
BATCH_HOOKS = ("on_train_batch_start", "on_train_batch_end")
HARMLESS_CALLBACKS = (ProgressBar, Timer)  # they count, or look at the clock
UNAVAILABLE_CALLBACKS = (
    "WeightAveraging",
    "StochasticWeightAveraging",
    "GradientAccumulationScheduler",
    "LearningRateFinder",
    "BatchSizeFinder",
)


class BlockTraining(LitVAE):
    """A LitVAE that takes `batches_per_block` optimiser steps per call of its training step.

    Hooks around a batch and an optimiser step are called once a block or not at all. Needs this
    project's data module. Under DDP a block is one batch.
    """

    def __init__(self, *args: Any, batches_per_block: int = 64, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.automatic_optimization = False
        self.batches_per_block = batches_per_block

    def setup(self, stage: str) -> None:
        super().setup(stage)
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, ImageDataModule):
            raise UserError("learning=blocks: needs a data module of vae.data")
        data.batches_per_block = self.batches_per_block
        self.batch_size = data.batch_size
        if stage == "fit":
            if problems := block_problems(self.trainer):
                raise UserError(*problems)
            for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
                if counts_blocks(callback):
                    log.warning(
                        "callbacks: %s is called once for every %d batches with learning=blocks",
                        type(callback).__name__,
                        self.batches_per_block,
                    )
            checks = [c for c in self.trainer.callbacks if isinstance(c, FiniteCheck)]  # type: ignore[attr-defined]
            self.finite_check = checks[0] if checks else FiniteCheck()
            if self.trainer.world_size == 1:
                if isinstance(self.compute_loss, GraphedLoss):
                    self.compute_loss = self.compute_loss.with_gradients
                elif self.hparams["compile"]:
                    self.compute_loss = loss_with_gradients(self)

    def training_step(self, block: Batch, block_idx: int) -> None:  # type: ignore[override]
        """One plain training step, backward pass and optimiser step for each batch of the block."""
        trainer, optimizer = self.trainer, self.optimizers(use_pl_optimizer=False)
        progress = trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress
        alone = trainer.world_size == 1
        batches = block.split(self.batch_size) if alone else [block]
        first = block_idx * (self.batches_per_block if alone else 1)
        for batch_idx, batch in enumerate(batches, first):
            optimizer.zero_grad()  # type: ignore[union-attr]
            loss = super().training_step(batch, batch_idx)["loss"]
            self.finite_check.on_before_backward(trainer, self, loss)
            if trainer.world_size > 1:
                self.manual_backward(loss)
            else:
                if loss.requires_grad:  # else its gradients came with it
                    loss.backward()
                self.on_after_backward()
            self.finite_check.on_before_optimizer_step(trainer, self, optimizer)  # type: ignore[arg-type]
            optimizer.step()  # type: ignore[union-attr]
            self.step_schedulers("step", batch_idx)
            progress.increment_ready()  # trainer.global_step counts optimiser steps
            progress.increment_completed()
        # the logger's x axis too; Lightning itself adds the one that is missing
        trainer.fit_loop.epoch_loop._batches_that_stepped += len(batches) - 1

    def on_train_start(self) -> None:
        super().on_train_start()
        schedulers = [config.scheduler for config in self.trainer.lr_scheduler_configs]
        if self.schedule is None and any(isinstance(s, ReduceLROnPlateau) for s in schedulers):
            raise UserError(
                "learning=blocks: the metric of a ReduceLROnPlateau is known from scheduler=, not "
                "from configure_optimizers"
            )

    def on_train_epoch_end(self) -> None:
        super().on_train_epoch_end()
        self.step_schedulers("epoch", self.trainer.current_epoch)

    def step_schedulers(self, interval: str, index: int) -> None:
        """Step the scheduler of this interval after its batch or epoch, as Lightning does where it
        does not leave that to manual optimisation, for which it drops the metric's name."""
        for config in self.trainer.lr_scheduler_configs:
            if config.interval != interval or (index + 1) % config.frequency:
                continue
            scheduler: Any = config.scheduler
            if not isinstance(scheduler, ReduceLROnPlateau):
                scheduler.step()
                continue
            assert self.schedule is not None  # see on_train_start
            value = self.trainer.callback_metrics.get(self.schedule.monitor)
            if value is None:
                log.warning(
                    "scheduler: without %s the learning rate is unchanged",
                    self.schedule.monitor,
                )
            else:
                scheduler.step(value)

    def run_length(self, interval: str) -> int:
        blocks = super().run_length(interval)
        if interval == "epoch" or self.trainer.world_size > 1:
            return blocks
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        epochs = blocks // len(data.train_dataloader().sampler)
        return epochs * -(-len(data.index["train"]) // self.batch_size)


def block_problems(trainer: Any) -> list[str]:
    """A line for each thing that needs Lightning's automatic optimisation of single batches."""
    asked = [setting for setting, wanted in UNAVAILABLE.items() if wanted(trainer)]
    for callback in trainer.callbacks:
        asked += [f"callbacks: {type(callback).__name__}"] if needs_single_batches(callback) else []
    if getattr(getattr(trainer.lightning_module, "optimizer", None), "func", None) is LBFGS:
        asked.append("optimizer=lbfgs")
    schedule = getattr(trainer.lightning_module, "schedule", None)
    if (
        schedule is not None
        and schedule.interval == "step"
        and getattr(schedule.make, "func", schedule.make) is ReduceLROnPlateau
    ):
        asked.append("scheduler.interval=step of ReduceLROnPlateau")
    return [
        f"{setting} does not go with learning=blocks, which takes many steps per call of "
        "Lightning; leave out learning=blocks (+experiment=fast takes it)"
        for setting in asked
    ]


def needs_single_batches(callback: Any) -> bool:
    """Whether a callback acts between single optimiser steps, or hooks into them."""
    classes = {base.__name__ for base in type(callback).__mro__}
    if classes & {*UNAVAILABLE_CALLBACKS}:
        return True
    if isinstance(callback, ModelCheckpoint):
        return callback._every_n_train_steps > 0
    if isinstance(callback, LearningRateMonitor):
        return callback.logging_interval == "step"
    return overrides(callback, STEP_HOOKS)


def counts_blocks(callback: Any) -> bool:
    """Whether a callback means batches where it is called once a block."""
    others = (*HARMLESS_CALLBACKS, ModelCheckpoint, LearningRateMonitor)
    return not isinstance(callback, others) and overrides(callback, BATCH_HOOKS)


def overrides(callback: Any, hooks: Sequence[str]) -> bool:
    """Whether it is not one of this project's, and has one of these hooks."""
    own = type(callback).__module__.startswith("vae.")
    return not own and any(
        getattr(type(callback), hook) is not getattr(L.Callback, hook) for hook in hooks
    )
