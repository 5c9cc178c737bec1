"""Curves over epochs and over the steps of the chain."""

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from vae.plots.images import TRAIN, new_figure, tile


def chain_figure(
    title: str, frames: list[Tensor], drifts: list[float], mixing: float | None
) -> Figure:
    """Eight chains at some of their steps, and the drift of all from the prior over the steps."""
    figure = new_figure(10, 4.6, title)
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.2))
    figure.subplots_adjust(left=0.07, right=0.98, bottom=0.13, top=0.86, wspace=0.15)
    steps = np.unique(np.geomspace(1, len(frames), 8).astype(int) - 1)
    left.imshow(
        tile(torch.cat([frames[t][:8] for t in steps]), 8),
        cmap="gray",
        vmin=0,
        vmax=255,
        aspect="equal",
    )
    left.set_yticks([14 + 30 * i for i in range(len(steps))], [f"t = {t}" for t in steps])
    left.set_xticks([])
    left.set_xlabel("eight of the chains")
    left.tick_params(length=0)
    right.plot(drifts, color=TRAIN)
    right.axhline(drifts[0], color="grey", linestyle=":", label="64 draws from the prior itself")
    steps_needed = (
        "" if mixing is None else f" (the best linear pair forgets its start in about {mixing:.0f})"
    )
    right.set_xlabel(f"step t{steps_needed}")
    right.set_ylabel("KL(moments of z_t ‖ prior), nats")
    right.grid(alpha=0.3)
    right.legend()
    return figure
