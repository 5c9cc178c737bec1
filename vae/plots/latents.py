"""Figures of what the latents carry: traversals, interpolations, KL per latent."""

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from vae.analysis.latents import COLLAPSE_THRESHOLD, interpolations, origin, traversals
from vae.models.vae import VAE
from vae.plots.images import COLLAPSED_COLOUR, ORACLE, TRAIN, VAL, new_figure, show_grid
from vae.theory.ppca import PPCA

MAX_TRAVERSALS = 10


def traversal_figure(
    model: VAE,
    start: Tensor,
    latents: Sequence[int] | None = None,
    span: float = 3.0,
    steps: int = 11,
) -> Figure:
    """`traversals` as a picture, one latent a row with its mean KL where images tell it; by default
    the first 10."""
    z, shown, used = origin(model, start, latents)
    shown = shown if latents is not None else shown[:MAX_TRAVERSALS]
    if not shown:
        raise ValueError("these images use no latent; name the latents to show")
    names = [f"z{i}" + (f"  {used.kl[i]:.2f} nats" if used else "") for i in shown]
    offsets = [
        f"{round(d, 6) + 0:+.1f}" for d in torch.linspace(-span, span, steps).tolist()
    ]  # + 0: no "-0.0"
    title = f"{model.name}: {len(shown)} of {model.latent_dim} latents, one moved at a time"
    figure = new_figure(1.3 + 0.62 * steps, 1.1 + 0.62 * len(shown), title)
    below = "added to the latent, in standard deviations of the prior"
    show_grid(figure, traversals(model, z, shown, span, steps), names, offsets, below)
    return figure


def interpolation_figure(model: VAE, a: Tensor, b: Tensor, steps: int = 9) -> Figure:
    """`interpolations` as a picture, one pair a row, between the two images themselves."""
    between = interpolations(model, a, b, steps)
    images = torch.cat([a[:, None].to(between), between, b[:, None].to(between)], dim=1)
    shares = [
        "image a",
        *(f"{share:.2f}" for share in torch.linspace(0, 1, steps).tolist()),
        "image b",
    ]
    title = f"{model.name}: from the posterior mean of a to that of b"
    figure = new_figure(1.3 + 0.62 * len(shares), 1.1 + 0.62 * len(a), title)
    show_grid(figure, images, [f"pair {i + 1}" for i in range(len(a))], shares, "share of b")
    return figure


def collapse_figure(
    kl_per_latent: torch.Tensor, heading: str, images: int, oracle: PPCA | None = None
) -> Figure:
    """Mean KL per latent [m], in nats over so many images, as a histogram and sorted; `oracle` of a
    linear pair."""
    kl = kl_per_latent.sort(descending=True).values.cpu().numpy()
    collapsed = int((kl < COLLAPSE_THRESHOLD).sum())
    what = f"{collapsed} of {len(kl)} latents collapsed"
    if oracle is not None:
        what += f" (closed form: {oracle.collapsed})"
    figure = new_figure(10, 4.2, f"{heading}, {what}")
    left, right = figure.subplots(1, 2)
    figure.subplots_adjust(left=0.07, right=0.98, bottom=0.14, top=0.84, wspace=0.22)

    powers = np.log10(
        np.maximum(kl, 1e-5)
    )  # drawn as powers: a log axis with its minor ticks is slow
    top = max(1, int(np.ceil(powers.max())))
    bins = np.linspace(-5, top, 6 * (5 + top) + 1)
    # outlines that are filled: a patch a bar is slow too
    of_collapsed, of_used = (
        np.histogram(powers[which], bins)[0]
        for which in (kl < COLLAPSE_THRESHOLD, kl >= COLLAPSE_THRESHOLD)
    )
    left.stairs(
        of_collapsed, bins, fill=True, color=COLLAPSED_COLOUR, label=f"collapsed: {collapsed}"
    )
    left.stairs(of_used, bins, fill=True, color=TRAIN, label=f"in use: {len(kl) - collapsed}")
    left.axvline(
        np.log10(COLLAPSE_THRESHOLD),
        color=VAL,
        linestyle="--",
        label=f"threshold {COLLAPSE_THRESHOLD:g} nats",
    )
    left.set_xticks(range(-5, top + 1), [f"{10.0**power:g}" for power in range(-5, top + 1)])
    left.set_xlabel("mean KL of a latent, nats (log scale)")
    left.set_ylabel("latents")
    left.locator_params(axis="y", integer=True)

    places, used = np.arange(1, len(kl) + 1), len(kl) - collapsed  # sorted: those in use come first
    label = f"mean over {images} images"
    for shade, part in ((TRAIN, slice(0, used)), (COLLAPSED_COLOUR, slice(used, None))):
        if len(kl[part]):
            right.stairs(
                kl[part],
                np.append(places[part], places[part][-1] + 1) - 0.5,
                fill=True,
                color=shade,
                label=label,
            )
            label = ""
    right.axhline(
        COLLAPSE_THRESHOLD,
        color=VAL,
        linestyle="--",
        linewidth=1,
        label=f"threshold {COLLAPSE_THRESHOLD:g} nats",
    )
    if oracle is not None:
        right.plot(
            places, oracle.kl, "o", color=ORACLE, markersize=3, label="closed form ½ log(λ/σ²)"
        )
    right.set_xlabel("latents, sorted by KL")
    right.set_ylabel("mean KL, nats")
    for axes in (left, right):
        axes.legend(fontsize=9)
    return figure
