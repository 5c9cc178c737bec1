"""What every part of an evaluation shares: flat metrics, their errors, batches and generators.

`<key>_se` is the standard error of `<key>`. Everything random comes from `seed`, part by part, so
that one part gives the same metrics whether the others run or not.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from vae.analysis.bounds import Estimate

Settings = dict[str, Any]
Metrics = dict[str, Any]  # flat, as in metrics.json
Values = dict[str, Tensor]  # one value per image, by key


@contextlib.contextmanager
def stopwatch(metrics: Metrics, part: str) -> Iterator[None]:
    """Writes the seconds that the block took as `time/<part>_seconds`."""
    started = time.perf_counter()
    yield
    metrics[f"time/{part}_seconds"] = time.perf_counter() - started


def progress(what: str) -> Callable[[Any], Any]:
    """A progress bar on a terminal, nothing elsewhere."""
    return partial(tqdm, desc=what, leave=False, disable=None)


def batches(images: Tensor, settings: Settings, device: torch.device) -> Any:
    """Images [≤ batch_size, C, H, W] on the device."""
    return (part.to(device) for part in images.split(settings["batch_size"]))


def seeded_generator(seed: int, device: torch.device) -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)


def means(values: Values) -> Metrics:
    """Mean and standard error of every value."""
    estimates = {key: Estimate.from_values(value) for key, value in values.items()}
    return {
        k: v for key, (mean, se) in estimates.items() for k, v in ((key, mean), (f"{key}_se", se))
    }


def paired(values: Values, others: Values) -> Metrics:
    """`against/<key>`: this run less the other, image by image, for every value that both have."""
    return means(
        {f"against/{key}": values[key].cpu() - others[key].cpu() for key in values if key in others}
    )
