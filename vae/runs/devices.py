"""What an accelerator can be on this machine, and the generators of the device in use."""

from typing import Any

import torch
from torch import Tensor


def accelerators() -> dict[str, str]:
    """The accelerators of this machine, and the torch device that each stands for."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    gpus = [device for device, ready in available.items() if ready]
    names = {"auto": (*gpus, "cpu")[0], "cpu": "cpu"} | ({"gpu": gpus[0]} if gpus else {})
    return names | {device: device for device in gpus}


def accelerator_problem(key: str, accelerator: Any) -> list[str]:
    """The problem with an accelerator that exists, but not on this machine."""
    available = accelerators()
    if accelerator not in ("gpu", "cuda", "mps") or accelerator in available:
        return []
    return [f"{key}={accelerator} is not available here; available: {', '.join(available)}"]


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def rng_state(device: torch.device) -> dict[str, Tensor]:
    """Torch's global generators, on the CPU and on a CUDA device that is trained on."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore_rng(state: dict[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(state["cpu"].cpu())
    if "cuda" in state and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)
