"""Many optimiser steps per call of Lightning: the same steps as a plain Trainer's, sooner.

What Lightning does around a batch costs about as much as a training step of a linear model. Nobody
who changes the learning step has to read this file: it is taken by `learning=blocks` alone.
"""

from collections.abc import Callable
from typing import Any

from vae.data.batches import Batch
from vae.data.datamodule import ImageDataModule
from vae.runs.errors import UserError
from vae.training.finite import FiniteCheck
from vae.training.module import LitVAE

Wanted = Callable[[Any], bool]
# What belongs to Lightning's own optimisation of one batch a call, and how to see that it is asked
# for; each would be without effect here, or mean blocks where its documentation says batches.
UNAVAILABLE: dict[str, Wanted] = {
    "trainer.gradient_clip_val": lambda t: t.gradient_clip_val is not None,
    "trainer.accumulate_grad_batches": lambda t: t.accumulate_grad_batches != 1,
    "trainer.fast_dev_run": lambda t: bool(t.fast_dev_run),
    "trainer.overfit_batches": lambda t: t.overfit_batches > 0,
    "trainer.limit_train_batches": lambda t: t.limit_train_batches not in (None, 1.0),
    "trainer.val_check_interval": lambda t: t.val_check_interval not in (None, 1.0),
    "trainer.max_steps": lambda t: t.max_steps != -1,
    "trainer.precision=16-mixed": lambda t: t.precision == "16-mixed",
}
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
            checks = [c for c in self.trainer.callbacks if isinstance(c, FiniteCheck)]  # type: ignore[attr-defined]
            self.finite_check = checks[0] if checks else FiniteCheck()

    def training_step(self, block: Batch, block_idx: int) -> None:  # type: ignore[override]
        """One plain training step, backward pass and optimiser step for each batch of the block."""
        trainer, optimizer = self.trainer, self.optimizers(use_pl_optimizer=False)
        progress = trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress
        batches = block.split(self.batch_size) if trainer.world_size == 1 else [block]
        for batch in batches:
            loss = super().training_step(batch, block_idx)["loss"]
            optimizer.zero_grad()  # type: ignore[union-attr]
            self.finite_check.on_before_backward(trainer, self, loss)
            if trainer.world_size == 1:
                loss.backward()
                self.on_after_backward()
            else:
                self.manual_backward(loss)
            self.finite_check.on_before_optimizer_step(trainer, self, optimizer)  # type: ignore[arg-type]
            optimizer.step()  # type: ignore[union-attr]
            self.step_schedulers("step")
            progress.increment_ready()  # trainer.global_step counts optimiser steps
            progress.increment_completed()
        # the logger's x axis too; Lightning itself adds the one that is missing
        trainer.fit_loop.epoch_loop._batches_that_stepped += len(batches) - 1

    def on_train_epoch_end(self) -> None:
        super().on_train_epoch_end()
        self.step_schedulers("epoch")

    def step_schedulers(self, interval: str) -> None:
        """Step the scheduler of this interval; Lightning leaves that to manual optimisation."""
        for config in self.trainer.lr_scheduler_configs:
            if config.interval != interval:
                continue
            scheduler: Any = config.scheduler
            if not config.reduce_on_plateau:
                scheduler.step()
            elif (value := self.trainer.callback_metrics.get(config.monitor or "")) is not None:
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
        names = {base.__name__ for base in type(callback).__mro__} & {*UNAVAILABLE_CALLBACKS}
        asked += [f"callbacks: {type(callback).__name__}"] if names else []
    return [
        f"{setting} does not go with learning=blocks, which takes many steps per call of "
        "Lightning; leave out learning=blocks (+experiment=fast takes it)"
        for setting in asked
    ]
