"""Figures of what the latents carry: traversals, interpolations, KL per latent."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from vae.analysis.latents import COLLAPSE_THRESHOLD, interpolations, origin, traversals
from vae.models.vae import VAE
from vae.plots.images import PANEL, new_figure, plain_axes, show_grid
from vae.plots.palette import COLLAPSED, ORACLE, TRAIN
from vae.theory.ppca import PPCA

MAX_TRAVERSALS = 10


def traversal_figure(
    model: VAE,
    start: Tensor,
    latents: Sequence[int] | None = None,
    span: float = 3.0,
    steps: int = 11,
) -> Figure:
    """`traversals` from z [m] or images [N, C, H, W] as a picture: a row per latent, with its mean
    KL where images tell it; by default the first 10. Raises ValueError where the images use no
    latent."""
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
    """`interpolations` of images a and b, [pairs, C, H, W], as a picture: a row per pair, between
    the two images themselves."""
    between = interpolations(model, a, b, steps)
    images = torch.cat([a[:, None].to(between), between, b[:, None].to(between)], dim=1)
    shares = [
        "image a",
        *(f"{share:.2f}" for share in torch.linspace(0, 1, steps).tolist()),
        "image b",
    ]
    title = f"{model.name}: from the posterior mean of a to that of b"
    figure = new_figure(1.3 + 0.62 * len(shares), 1.1 + 0.62 * len(a), title)
    show_grid(figure, images, [f"images {i + 1}" for i in range(len(a))], shares, "share of b")
    return figure


def kl_bins(*kls: Tensor) -> np.ndarray:
    """Edges of histogram bins that KLs per latent share: six a decade, log10 nats from -5 on."""
    largest = max(float(kl.max()) for kl in kls)
    top = max(1, int(np.ceil(np.log10(max(largest, 1e-5)))))
    return np.linspace(-5, top, 6 * (5 + top) + 1)


def kl_counts(kl: Tensor, bins: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How many latents fall into each bin: those that are collapsed, and the others."""
    values = kl.detach().cpu().double().numpy()
    powers, collapsed = np.log10(np.maximum(values, 1e-5)), values < COLLAPSE_THRESHOLD
    return np.histogram(powers[collapsed], bins)[0], np.histogram(powers[~collapsed], bins)[0]


def plot_kl_histogram(
    axes: Axes,
    kl: Tensor,
    colour: str = TRAIN,
    bins: np.ndarray | None = None,
    most: int | None = None,
) -> None:
    """Histogram of the mean KL per latent [m], nats, on a logarithmic scale; collapsed ones grey.

    Give runs that are compared the same `bins` (of `kl_bins`) and the largest count, `most`.
    """
    bins = kl_bins(kl) if bins is None else bins
    # Powers of ten on a linear axis, and filled outlines: a log axis and a patch a bar are slow.
    collapsed, active = kl_counts(kl, bins)
    label = f"collapsed: {collapsed.sum()}"
    axes.stairs(collapsed, bins, fill=True, color=COLLAPSED, label=label)
    axes.stairs(active, bins, fill=True, color=colour, label=f"active: {active.sum()}")
    axes.axvline(np.log10(COLLAPSE_THRESHOLD), color=ORACLE, linestyle="--", linewidth=1)
    powers = range(-4, round(bins[-1]) + 1, 2)
    axes.set_xticks(powers, [f"{10.0**power:g}" for power in powers])
    axes.set_xlim(bins[0], bins[-1])
    axes.set_ylim(0, 1.08 * (most or max(*collapsed, *active)))
    axes.set_xlabel("mean KL of a latent, nats (log scale)")
    axes.set_ylabel("latents")
    axes.locator_params(axis="y", integer=True)
    plain_axes(axes)


class KLSpectrum(NamedTuple):
    """Mean KL per latent [m] of a run, nats, in any order."""

    kl: Tensor
    label: str = ""
    colour: str = TRAIN
    dashes: str = "-"
    closed_form: Sequence[float] | Tensor | None = None  # the same in the best linear VAE, sorted


def plot_kl_spectrum(axes: Axes, spectra: Sequence[KLSpectrum], threshold: bool = True) -> None:
    """KL per latent, sorted; collapsed latents hollow, closed forms as crosses."""
    for i, run in enumerate(spectra):
        kl = run.kl.detach().cpu().double().sort(descending=True).values.numpy()
        places = np.arange(1, len(kl) + 1)
        style: dict[str, Any] = {"color": run.colour, "linestyle": run.dashes, "linewidth": 1.2}
        axes.plot(places, kl, label=run.label or None, marker="o", markersize=4, **style)
        hollow = kl < COLLAPSE_THRESHOLD
        axes.plot(places[hollow], kl[hollow], "o", color="white", markersize=2.2, zorder=3)
        if run.closed_form is not None:
            label = "best linear VAE: ½ log(λ/σ²)" if i == 0 else None
            style = {"color": ORACLE, "markersize": 7, "markeredgewidth": 1.1, "zorder": 4}
            axes.plot(places, [float(v) for v in run.closed_form], "+", label=label, **style)
    if threshold:
        label = f"collapsed below {COLLAPSE_THRESHOLD:g}"
        axes.axhline(COLLAPSE_THRESHOLD, color=ORACLE, linestyle="--", linewidth=1, label=label)
    axes.set_xlabel("latents, sorted by KL")
    axes.set_ylabel("mean KL, nats")
    axes.locator_params(axis="x", integer=True)
    plain_axes(axes)


def collapse_figure(kl: Tensor, heading: str, images: int, oracle: PPCA | None = None) -> Figure:
    """Mean KL per latent [m], nats, over so many images: its histogram above, sorted below.

    `oracle` is the closed form to compare a linear encoder and decoder with.
    """
    collapsed = int((kl < COLLAPSE_THRESHOLD).sum())
    what = f"{collapsed} of {len(kl)} latents collapsed"
    if oracle is not None:
        what += f" (closed form: {oracle.collapsed})"
    figure = new_figure(PANEL, 6.9, f"{heading}\n{what}")
    above, below = figure.subplots(2, 1)
    figure.subplots_adjust(left=0.12, right=0.97, bottom=0.09, top=0.89, hspace=0.32)
    plot_kl_histogram(above, kl)
    above.legend()
    closed_form = None if oracle is None else oracle.kl
    plot_kl_spectrum(below, [KLSpectrum(kl, f"mean over {images} images", closed_form=closed_form)])
    below.set_ylim(top=1.2 * below.get_ylim()[1])  # room for the legend
    below.legend()
    return figure
