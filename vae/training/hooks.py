"""Lightning calls some 90 hooks a step, most of which do nothing: here they cost less."""

import contextlib
from contextlib import AbstractContextManager
from typing import Any

import lightning.pytorch as L
from lightning.pytorch.profilers import PassThroughProfiler

OF_A_STEP = (
    "on_train_batch_start",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_train_batch_end",
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


class NoProfiler(PassThroughProfiler):
    """Takes no times, like Lightning's own, which makes a generator for each hook all the same."""

    nothing = contextlib.nullcontext()

    def profile(self, action_name: str) -> AbstractContextManager[Any]:  # type: ignore[override]
        return self.nothing
