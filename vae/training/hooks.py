"""Lightning calls some 90 hooks a step, most of which do nothing: here they cost less."""

import contextlib
import functools
import inspect
from contextlib import AbstractContextManager
from types import MethodType
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.profilers import PassThroughProfiler
from torch.optim import Optimizer
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

OF_A_STEP = (
    "on_train_batch_start",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_train_batch_end",
)


class LeanModule(L.LightningModule):
    """A LightningModule whose steps cost Lightning less, and do the same."""

    def __init_subclass__(cls, **arguments: Any) -> None:
        """Lightning looks at every step for the arguments of `training_step`, which Python finds at
        once where the function carries them."""
        super().__init_subclass__(**arguments)
        if step := vars(cls).get("training_step"):
            step.__signature__ = inspect.signature(step)

    def __setattr__(self, name: str, value: Any) -> None:
        """Lightning notes the hook that it calls, 43 times a step, and each time nn.Module would
        look whether that is a parameter: 4 % of a small model's time."""
        if name == "_current_fx_name":
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Nothing where no clipping is asked for, which Lightning finds out by a longer way."""
        if gradient_clip_val is not None:
            super().configure_gradient_clipping(
                optimizer, gradient_clip_val, gradient_clip_algorithm
            )


def skip_empty_hooks(callbacks: list[L.Callback]) -> None:
    """Have Lightning pass over the hooks of a step that its own callbacks and this project's have
    from the base class, where they are empty: it calls what is callable. Other classes may call
    such a hook themselves, and are left alone."""
    for callback in callbacks:
        if not type(callback).__module__.startswith(("lightning.", "vae.")):
            continue
        for name in OF_A_STEP:
            if getattr(type(callback), name) is getattr(L.Callback, name):
                setattr(callback, name, None)


def skip_records(optimizer: Optimizer) -> Optimizer:
    """Have an optimizer enter its steps, and its dropping of gradients, in a profile only where one
    is taken: a tenth of a small model's time. Returns the optimizer, whose own hooks are called as
    ever."""
    recorded = type(optimizer).step
    bare: Any = getattr(recorded, "__wrapped__", None)

    def step(self: Optimizer, *arguments: Any, **named: Any) -> Any:
        hooks = self._optimizer_step_pre_hooks or self._optimizer_step_post_hooks
        hooks = hooks or _global_optimizer_pre_hooks or _global_optimizer_post_hooks
        enter = hooks or torch.autograd._profiler_enabled()
        return (recorded if enter else bare)(self, *arguments, **named)

    def zero_grad(self: Optimizer, set_to_none: bool = True) -> None:
        if not set_to_none or torch.autograd._profiler_enabled():
            Optimizer.zero_grad(self, set_to_none)
            return
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    if bare is not None and getattr(recorded, "hooked", False):  # torch's record is around it
        optimizer.step = MethodType(functools.wraps(recorded)(step), optimizer)  # type: ignore[method-assign]
    if type(optimizer).zero_grad is Optimizer.zero_grad:
        optimizer.zero_grad = MethodType(zero_grad, optimizer)  # type: ignore[method-assign]
    return optimizer


class NoProfiler(PassThroughProfiler):
    """Takes no times, like Lightning's own, which makes a generator for each hook all the same."""

    nothing = contextlib.nullcontext()

    def profile(self, action_name: str) -> AbstractContextManager[Any]:  # type: ignore[override]
        return self.nothing
