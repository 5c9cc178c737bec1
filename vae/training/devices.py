"""What this machine's device computes fast in, and what the Trainer cannot do here."""

import contextlib
import logging
import traceback
from collections.abc import Iterator
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

from vae.runs.errors import UserError, first_line

log = logging.getLogger(__name__)

FASTEST = "fastest"  # trainer.precision: bfloat16 networks where the hardware computes in them
WORTH_BFLOAT16 = 300_000  # parameters; below, a CPU's casts cost more than its products gain
SPAWNING = ("spawn", "fork", "notebook")  # strategies whose processes end with their results
HALF = ("16-true", "bf16-true", "transformer-engine", "transformer-engine-float16")


def resolve_precision(precision: Any, accelerator: str, parameters: int) -> Any:
    """Lightning's precision for `fastest`, logged in a line; any other as it is.

    Without hardware for it bfloat16 is emulated: on a CPU with AVX2 alone 25 times slower. With
    AVX-512 a step of the baseline takes a sixth longer in bfloat16, of the deep model a fifth
    less.
    """
    if precision != FASTEST:
        return precision
    if not computes_in_bfloat16(accelerator):
        found, why = "32-true", "no bfloat16 hardware"
    elif parameters < WORTH_BFLOAT16:
        found, why = "32-true", f"{parameters:,} parameters gain nothing from bfloat16"
    else:
        found, why = "bf16-mixed", "the hardware computes in bfloat16"
    log.info("trainer.precision=%s: %s (%s)", FASTEST, found, why)
    return found


def computes_in_bfloat16(accelerator: str) -> bool:
    """Whether the device that this accelerator stands for has instructions for bfloat16."""
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if accelerator in ("auto", "gpu", "mps") and torch.backends.mps.is_available():
        return False
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def half_precision_problem(precision: Any) -> str | None:
    """Why there is no training in half precision alone; None for other precisions."""
    if precision not in HALF:
        return None
    return f"precision={precision}: the ELBO's squares, exp and sums need float32; take bf16-mixed"


def device_problems(trainer: dict[str, Any]) -> list[str]:
    """A line for each of the Trainer's settings that this project cannot honour, and why."""
    problems = []
    precision, strategy = trainer.get("precision"), str(trainer.get("strategy"))
    if problem := half_precision_problem(precision):
        problems.append(f"trainer.{problem}")
    if any(kind in strategy for kind in SPAWNING):
        problems.append(
            f"trainer.strategy={strategy}: its processes end with the run's metrics in them; "
            "take strategy=ddp"
        )
    if trainer.get("barebones"):
        problems.append(
            "trainer.barebones=true leaves out checkpoints, metrics and callbacks, which a run is "
            "for; trainer.fast_dev_run=true is a quick look"
        )
    return problems


@contextlib.contextmanager
def translate_lightning_errors() -> Iterator[None]:
    """What Lightning says against settings as it meets them, as a UserError of one line."""
    try:
        yield
    except MisconfigurationException as error:
        raise UserError(f"trainer: {first_line(error)}") from error
    except ValueError as error:
        if not raised_by_lightning(error):
            raise
        raise UserError(f"trainer: {first_line(error).strip()}") from error
    except RuntimeError as error:
        if "is not available" not in str(error):  # as EarlyStopping says of a monitor
            raise
        raise UserError(f"callbacks: {first_line(error)}") from error


def raised_by_lightning(error: BaseException) -> bool:
    """Whether the innermost frame of its traceback is Lightning's."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return bool(frames) and str(frames[-1].f_globals.get("__name__")).startswith("lightning.")
