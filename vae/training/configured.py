"""What surrounds a learning step: hyperparameters for the checkpoint, optimizer and schedule."""

import inspect
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.optim import Optimizer

from vae.data.batches import Batch
from vae.runs.checkpoints import CHECKPOINT_FORMAT
from vae.runs.errors import UserError, first_line
from vae.training.devices import half_precision_problem
from vae.training.hooks import LeanModule, skip_records
from vae.training.hyperparameters import Settings, from_settings, is_settings
from vae.training.schedules import Schedule, as_schedule, run_length

ROUNDING = 0.001  # of intensities that are computed


class ConfiguredModule(LeanModule):
    """A LightningModule with one optimizer over all parameters that have gradients: Adam at 1e-3
    without another. A callback that unfreezes later, as BaseFinetuning, adds its own group.

    `optimizer` takes the parameters; `scheduler` is a torch scheduler that takes the optimizer, or
    a Schedule. Both may be settings, nodes with a `_target_`.
    """

    def __init__(
        self,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] | Settings | None = None,
        scheduler: Callable[[Optimizer], Any] | Schedule | Settings | None = None,
    ) -> None:
        super().__init__()
        if is_settings(optimizer):
            optimizer = {**optimizer, "_partial_": True}  # type: ignore[dict-item]
        self.optimizer = from_settings(optimizer) or partial(torch.optim.Adam, lr=1e-3)
        self.schedule = as_schedule(scheduler)
        self.saw_images = False

    def save_parts(self, **parts: Any) -> None:
        """Keep all arguments of the class as hyperparameters: `parts` where they are settings,
        whose objects checkpoints do not hold, and any others as they are."""
        # Lightning looks for the arguments in the calls of __init__ that led here
        self.save_hyperparameters(ignore=[*parts], logger=False)
        self.hparams.update({name: part for name, part in parts.items() if is_settings(part)})

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["vae_format"] = CHECKPOINT_FORMAT

    def setup(self, stage: str) -> None:
        if problem := half_precision_problem(self.trainer.precision):
            raise UserError(problem)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Warn once of images of a loader of yours that are no intensities in [0, 1]."""
        if self.saw_images:
            return
        images = batch[0] if isinstance(batch, list | tuple) and len(batch) else batch
        if not isinstance(images, Tensor) or not images.numel():
            return
        self.saw_images = True
        if images.is_floating_point():
            low, high = (end.item() for end in images.aminmax())
            if low < -ROUNDING or high > 1 + ROUNDING:
                rank_zero_warn(
                    f"images from {low:.4g} to {high:.4g}, not in [0, 1]: sigma is in their units, "
                    "and pictures cut them off"
                )
        elif images.dtype != torch.bool and not isinstance(batch, Batch) and images.max() <= 1:
            rank_zero_warn(
                "integer images of 0 and 1 are read as intensities of 0 to 255, so all but black; "
                "give booleans or floats"
            )

    def configure_optimizers(self) -> Any:
        try:
            parameters = (p for p in self.parameters() if p.requires_grad)
            optimizer = skip_records(self.optimizer(parameters))
        except (TypeError, ValueError) as error:  # what an optimizer says against its arguments
            raise UserError(f"optimizer: {first_line(error)}") from error
        if self.schedule is None:
            return optimizer
        length = self.run_length(self.schedule.interval)
        return {"optimizer": optimizer, "lr_scheduler": self.schedule.configure(optimizer, length)}

    def run_length(self, interval: str) -> int:
        """Epochs or optimiser steps of the whole run, for schedules that follow it."""
        return run_length(self.trainer, interval)

    @property
    def lr(self) -> float:
        """The optimizer's learning rate, which Lightning's LearningRateFinder may set."""
        parameters = inspect.signature(self.optimizer).parameters  # a partial's own defaults
        if "lr" not in parameters:
            raise AttributeError("the optimizer has no argument lr")
        return parameters["lr"].default

    @lr.setter
    def lr(self, value: float) -> None:
        self.optimizer = partial(self.optimizer, lr=value)
