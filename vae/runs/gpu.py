"""One GPU for each job of a multirun on a machine with several."""

import contextlib
import itertools
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from omegaconf import DictConfig


@contextlib.contextmanager
def one_gpu(config: DictConfig) -> Iterator[None]:
    """On a machine with several GPUs, one that no other job has, until the end of this one."""
    if config.trainer.accelerator not in ("auto", "gpu", "cuda") or config.trainer.devices not in (
        1,
        "1",
    ):
        yield
        return
    import torch

    count = torch.cuda.device_count()
    if count < 2:
        yield
        return
    with acquire_free_gpu(count) as index:
        config.trainer.devices = [index]
        yield


@contextlib.contextmanager
def acquire_free_gpu(count: int, seconds: float = 1.0) -> Iterator[int]:
    """The index of a free GPU, waiting for one. A lock file each: a job that is killed gives its
    GPU back."""
    from filelock import FileLock, Timeout

    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    names = visible.split(",") if visible else [str(i) for i in range(count)]
    user = getattr(os, "getuid", int)()  # Windows has none
    for index in itertools.cycle(range(count)):
        lock = FileLock(Path(tempfile.gettempdir()) / f"vae-{user}-gpu-{names[index]}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            time.sleep(seconds / count)
            continue
        try:
            yield index
        finally:
            lock.release()
        return
