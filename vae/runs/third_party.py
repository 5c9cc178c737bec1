"""Bounds for arguments of torch's and Lightning's classes, whose signatures have none.

Only what a person is likely to set, and get wrong. A type here counts for a class only where it
admits the class's own default; everything else is checked by the class's own annotations.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal

import pydantic
from annotated_types import Ge, Gt, Le, Lt, Predicate, doc

from vae.runs.types import Accelerator, Count, Positive

Rate = Annotated[float, Gt(0), Lt(1000)]
Share = Annotated[float, Ge(0), Le(1)]
Decay = Annotated[float, Ge(0), Lt(1)]
NotNegative = Annotated[float, Ge(0), Le(10**6)]
Betas = Annotated[
    tuple[Decay, Decay], doc("two numbers from 0 up to, but not including, 1, such as [0.9,0.99]")
]
Milestones = Annotated[
    list[Positive],
    Predicate(lambda epochs: epochs == sorted(epochs)),
    doc("a rising list of epochs such as [15,25]"),
]
Limit = Annotated[
    Annotated[int, Ge(0)] | Share, doc("a number of batches, or a share of them from 0.0 to 1.0")
]
Devices = Annotated[
    Annotated[int, Predicate(lambda n: n == -1 or n >= 1)] | list[Count] | str,
    doc("a number of devices, -1 or auto for all, or a list of their indices"),
]
Epochs = Annotated[int, Ge(-1), Le(10**9)]
Precision = Literal[
    "fastest", "32-true", "16-mixed", "bf16-mixed", "16-true", "bf16-true", "64-true",
    "transformer-engine", "transformer-engine-float16", "64", "32", "16", "bf16", 64, 32, 16,
]  # fmt: skip


@dataclass
class SchedulerOptions:
    """Lightning's keys of a scheduler, besides the scheduler's own arguments."""

    interval: Literal["epoch", "step"] = "epoch"
    frequency: Positive = 1
    monitor: str = "val/elbo"


SCHEDULER_OPTIONS = tuple(field.name for field in fields(SchedulerOptions))

# By the module that a class comes from, and the argument's name.
TYPES: Mapping[str, Mapping[str, Any]] = {
    "torch.optim": {
        "lr": Rate,
        "betas": Betas,
        "eps": Annotated[float, Gt(0), Lt(1)],
        "weight_decay": NotNegative,
        "momentum": Decay,
        "dampening": Share,
        "alpha": Share,
        "rho": Share,
        "max_iter": Positive,
        # schedulers
        "T_max": Positive,
        "T_0": Positive,
        "T_mult": Positive,
        "total_steps": Positive | None,
        "epochs": Positive | None,
        "steps_per_epoch": Positive | None,
        "total_iters": Count,
        "step_size": Positive,
        "milestones": Milestones,
        "gamma": Rate,
        "factor": Rate,
        "max_lr": Rate,
        "base_lr": Rate,
        "eta_min": NotNegative,
        "pct_start": Share,
        "start_factor": Annotated[float, Gt(0), Le(1)],
        "end_factor": Share,
        "power": NotNegative,
        "patience": Count,
        "cooldown": Count,
        "mode": Literal["min", "max", "triangular", "triangular2", "exp_range"],
        "threshold_mode": Literal["rel", "abs"],
    },
    "lightning.pytorch.trainer": {
        "accelerator": Accelerator,
        "devices": Devices,
        "num_nodes": Positive,
        "precision": Precision | None,
        "max_epochs": Epochs | None,
        "min_epochs": Count | None,
        "max_steps": Annotated[int, Ge(-1), Le(10**12)],
        "min_steps": Count | None,
        "limit_train_batches": Limit | None,
        "limit_val_batches": Limit | None,
        "limit_test_batches": Limit | None,
        "limit_predict_batches": Limit | None,
        "overfit_batches": Limit,
        "check_val_every_n_epoch": Positive | None,
        "num_sanity_val_steps": Annotated[int, Ge(-1), Le(10**9)] | None,
        "log_every_n_steps": Count | None,
        "accumulate_grad_batches": Positive,
        "gradient_clip_val": NotNegative | None,
        "gradient_clip_algorithm": Literal["norm", "value"] | None,
        "reload_dataloaders_every_n_epochs": Count,
    },
    "lightning.pytorch.callbacks": {
        "patience": Count,
        "every_n_epochs": Count | None,
        "every_n_train_steps": Count | None,
        "save_top_k": Annotated[int, Ge(-1)],
        "mode": Literal["min", "max"],
        "logging_interval": Literal["step", "epoch"] | None,
        "refresh_rate": Count,
        "swa_lrs": Rate | list[Rate],
        "annealing_strategy": Literal["cos", "linear"],
        "annealing_epochs": Positive,
    },
}


def known_type(target: Any, name: str, default: Any) -> Any | None:
    """The type of a third-party argument, or None where the class's own annotation rules."""
    module = getattr(target, "__module__", "") or ""
    types = next((t for prefix, t in TYPES.items() if module.startswith(prefix)), {})
    annotation = types.get(name)
    if annotation is None or default is inspect.Parameter.empty:
        return annotation
    try:
        pydantic.TypeAdapter(annotation).validate_python(default)
    except pydantic.ValidationError:
        # null for "as Lightning sees fit" leaves the bounds to other values
        return annotation | None if default is None else None
    return annotation
