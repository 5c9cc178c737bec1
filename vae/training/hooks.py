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

STEP_HOOKS = (
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
        step = vars(cls).get("training_step")
        if inspect.isfunction(step):
            step.__signature__ = inspect.signature(step)  # type: ignore[attr-defined]

    def __setattr__(self, name: str, value: Any) -> None:
        """Lightning notes the hook that it calls, 43 times a step, and each time nn.Module would
        look whether that is a parameter: 4 % of a small model's time."""
        if name == "_current_fx_name":
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)


def skip_empty_hooks(callbacks: list[L.Callback]) -> None:
    """Have Lightning pass over the hooks of a step that its own callbacks and this project's have
    from the base class, where they are empty: it calls what is callable. Other classes may call
    such a hook themselves, and are left alone."""
    for callback in callbacks:
        if not type(callback).__module__.startswith(("lightning.", "vae.")):
            continue
        for name in STEP_HOOKS:
            if getattr(type(callback), name) is getattr(L.Callback, name):
                setattr(callback, name, None)


# What torch puts around the step of each class of optimizers, and what drops gradients.
RECORDED_STEP = Optimizer.profile_hook_step(lambda: None).__code__
RECORDED_ZERO_GRAD = Optimizer.zero_grad


def skip_records(optimizer: Optimizer) -> Optimizer:
    """Have an optimizer enter its steps, and its dropping of gradients, in a profile only where one
    is taken: a tenth of a small model's time. Returns the optimizer.

    Its hooks are called as ever, and steps that are not torch's own are left alone, whenever they
    came to be.
    """

    def step(self: Any, *arguments: Any, **named: Any) -> Any:
        recorded = type(self).step
        hooks = self._optimizer_step_pre_hooks or self._optimizer_step_post_hooks
        hooks = hooks or _global_optimizer_pre_hooks or _global_optimizer_post_hooks
        if hooks or is_profiling() or getattr(recorded, "__code__", None) is not RECORDED_STEP:
            return recorded(self, *arguments, **named)
        out = recorded.__wrapped__(self, *arguments, **named)
        posts = self._optimizer_step_post_hooks, _global_optimizer_post_hooks
        for hook in [hook for each in posts for hook in each.values()]:  # new ones of its closure
            hook(self, (self, *arguments), named)
        return out

    def zero_grad(self: Any, set_to_none: bool = True) -> None:
        if not set_to_none or is_profiling() or type(self).zero_grad is not RECORDED_ZERO_GRAD:
            type(self).zero_grad(self, set_to_none)
            return
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    if isinstance(optimizer, Optimizer) and not {"step", "zero_grad"} & vars(optimizer).keys():
        changed: Any = optimizer
        changed.step = MethodType(functools.wraps(type(optimizer).step)(step), optimizer)
        changed.zero_grad = MethodType(zero_grad, optimizer)
    return optimizer


def is_profiling() -> bool:
    """Whether torch.profiler, or one of its relatives, is on."""
    return torch.autograd.profiler._is_profiler_enabled or torch.autograd._profiler_enabled()


class NoProfiler(PassThroughProfiler):
    """Takes no times, like Lightning's own, which makes a generator for each hook all the same."""

    nothing = contextlib.nullcontext()

    def profile(self, action_name: str) -> AbstractContextManager[Any]:  # type: ignore[override]
        return self.nothing
