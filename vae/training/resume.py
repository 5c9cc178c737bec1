"""What an exact resume needs beyond Lightning's own checkpoint."""

import torch
from torch import Tensor


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
