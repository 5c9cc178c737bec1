"""Learning-rate schedules: any of torch's, by epochs or by optimiser steps, along the whole run."""

import inspect
import math
import warnings
from collections.abc import Callable
from typing import Any

import lightning.pytorch as L
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, SequentialLR

from vae.runs.errors import UserError
from vae.training.hyperparameters import from_settings, is_settings

OPTIONS = ("interval", "frequency", "monitor")  # Lightning's, next to the scheduler's own arguments
AUTO = "auto"  # the value of an argument that takes the length of the run


class Schedule:
    """A scheduler, and how Lightning steps it (`lr_scheduler_config` in its documentation).

    `make` takes the optimizer; the arguments named in `auto` take the length of the run, in epochs
    or optimiser steps as `interval` says. `monitor` is for ReduceLROnPlateau.
    """

    def __init__(
        self,
        make: Callable[..., Any],
        interval: str = "epoch",
        frequency: int = 1,
        monitor: str = "val/elbo",
        auto: tuple[str, ...] = (),
    ) -> None:
        self.make, self.auto = make, auto
        self.interval, self.frequency, self.monitor = interval, frequency, monitor

    def scheduler(self, optimizer: Optimizer, length: int) -> Any:
        return self.make(optimizer, **dict.fromkeys(self.auto, length))

    def configure(self, optimizer: Optimizer, length: int) -> dict[str, Any]:
        """Lightning's lr_scheduler_config for a run of so many epochs or steps."""
        return {
            "scheduler": self.scheduler(optimizer, length),
            "interval": self.interval,
            "frequency": self.frequency,
            "monitor": self.monitor,
            "strict": False,  # an epoch without a validation leaves the learning rate alone
        }


def as_schedule(scheduler: Any, build: Callable[[Any], Any] = from_settings) -> Schedule | None:
    """A Schedule of settings (a node with `_target_`), of a callable, or as it is."""
    if scheduler is None or isinstance(scheduler, Schedule):
        return scheduler
    if not is_settings(scheduler):
        return Schedule(from_settings(scheduler))
    options = {name: scheduler[name] for name in OPTIONS if name in scheduler}
    auto = tuple(name for name, value in scheduler.items() if value == AUTO)
    rest = {k: v for k, v in scheduler.items() if k not in OPTIONS and k not in auto}
    return Schedule(build({**rest, "_partial_": True}), **options, auto=auto)


def run_length(trainer: L.Trainer, interval: str) -> int:
    """Epochs or optimiser steps that the Trainer is set to run; UserError where it has no end."""
    trainer.fit_loop.setup_data()  # counts the batches of an epoch
    steps = trainer.estimated_stepping_batches
    if steps == math.inf and (interval == "step" or (trainer.max_epochs or -1) < 0):
        raise UserError(
            "scheduler: a run without an end has no length to follow; give trainer.max_epochs or "
            "trainer.max_steps, or take scheduler=none"
        )
    if interval == "step":
        return max(1, int(steps))
    epochs = trainer.max_epochs or -1
    most: float = epochs if epochs > 0 else math.inf
    if math.isfinite(steps) and math.isfinite(trainer.num_training_batches):
        per_epoch = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
        most = min(most, math.ceil(steps / max(per_epoch, 1)))
    return max(1, int(most))


def replay(schedule: Schedule, scheduler: Any, optimizer: Optimizer, length: int) -> None:
    """Put a resumed scheduler where a run of this length would have it by now.

    A run may be resumed for longer than it was planned: its schedule then continues along that of
    the longer run. Schedulers that depend on metrics stay as they are.
    """
    if not schedule.auto or "metrics" in inspect.signature(scheduler.step).parameters:
        return
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"]
    planned: LRScheduler = schedule.scheduler(optimizer, length)
    with warnings.catch_warnings():  # the optimizer has its steps behind it
        warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
        for _ in range(scheduler.last_epoch):
            planned.step()
    scheduler.load_state_dict(planned.state_dict())


def warmup_cosine(optimizer: Optimizer, total_steps: int, warmup_steps: int = 0) -> SequentialLR:
    """Linear warm-up over the first steps, then a cosine down to zero at `total_steps`."""
    warmup = LinearLR(optimizer, 1 / max(warmup_steps, 1), total_iters=max(warmup_steps, 1))
    cosine = CosineAnnealingLR(optimizer, max(1, total_steps - warmup_steps))
    return SequentialLR(optimizer, [warmup, cosine], [warmup_steps])
