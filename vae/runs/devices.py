"""What an accelerator can be on this machine."""

from typing import Any

import torch


def accelerators() -> dict[str, str]:
    """The accelerators of this machine, and the torch device that each stands for."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    gpus = [device for device, ready in available.items() if ready]
    names = {"auto": (*gpus, "cpu")[0], "cpu": "cpu"} | ({"gpu": gpus[0]} if gpus else {})
    return names | {device: device for device in gpus}


def unavailable_accelerator(key: str, accelerator: Any) -> list[str]:
    """The problem with an accelerator that exists, but not on this machine."""
    available = accelerators()
    if accelerator not in ("gpu", "cuda", "mps") or accelerator in available:
        return []
    return [f"{key}={accelerator} is not available here; available: {', '.join(available)}"]
