"""Curves over epochs and over the steps of the chain: one run or several, with bands over seeds."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from vae.plots.images import (
    PANEL,
    label_tile,
    new_figure,
    plain_axes,
    plain_ticks,
    show_picture,
    tile,
)
from vae.plots.palette import ORACLE, TRAIN, VAL

Row = Mapping[str, float]  # of history.csv
TITLES = {
    "elbo": "ELBO, nats per image",
    "kl": "KL to the prior, nats",
    "log_likelihood": "log-likelihood, nats",
}
MAX_DRIFT = 1e4  # nats; a chain that diverges leaves the chart there, so that others can be read


class RunCurves(NamedTuple):
    """What `plot_curves` shows of one run, or of several that differ in their seeds."""

    rows: Sequence[Row]  # history.csv, or the mean of several
    label: str = ""
    colour: str | None = None  # None: train and validation in the palette's TRAIN and VAL
    dashes: str = "-"
    spread: Sequence[Row] | None = None  # half the band's height, for the same rows
    optimum: float | None = None  # the closed-form optimum of the train ELBO


def over_seeds(histories: Sequence[Sequence[Row]]) -> tuple[list[Row], list[Row]]:
    """Mean and standard deviation (NaN of one run) of the rows whose step all histories have."""
    by_step = [{row["step"]: row for row in rows} for rows in histories]
    mean: list[Row] = []
    spread: list[Row] = []
    for step in sorted(set(by_step[0]).intersection(*by_step[1:])):
        rows = [history[step] for history in by_step]
        values = {key: [row.get(key, math.nan) for row in rows] for key in rows[0]}
        mean.append({key: statistics.fmean(each) for key, each in values.items()})
        deviation = np.std if len(rows) < 2 else statistics.stdev
        spread.append({key: float(deviation(each)) for key, each in values.items()})
    return mean, spread


def plot_curves(axes: Axes, runs: Sequence[RunCurves], term: str = "elbo") -> None:
    """Train and validation curves of a term of the ELBO over the epochs.

    A run without a colour has train and validation in colours of their own and its last values in
    the legend; of a run with one, the train curve is dotted. The steep climb of the first epochs is
    left below the edge, where it would flatten all that follows.
    """
    for run in runs:
        epochs = [row["epoch"] for row in run.rows]
        for split, own in (("train", TRAIN), ("val", VAL)):
            values = [row[f"{split}/{term}"] for row in run.rows]
            dotted = run.colour is not None and split == "train"
            label = run.label if run.colour and split == "val" else ""
            if run.colour is None:
                name = "validation" if split == "val" else split
                label = f"{run.label} {name} {values[-1]:.1f}".strip() if values else name
            axes.plot(
                epochs,
                values,
                color=run.colour or own,
                linestyle=":" if dotted else run.dashes,
                linewidth=1 if dotted else 1.8,
                marker="o" if len(values) < 2 else None,
                label=label or None,
            )
            if run.spread and not dotted:
                half = np.array([row[f"{split}/{term}"] for row in run.spread])
                low, high = np.array(values) - half, np.array(values) + half
                axes.fill_between(epochs, low, high, color=run.colour or own, alpha=0.2, lw=0)
    axes.set_xlabel("epoch")
    axes.set_ylabel(TITLES.get(term, term))
    axes.locator_params(axis="x", integer=True)
    plain_axes(axes)
    if term == "elbo":
        optima = {run.optimum for run in runs if run.optimum is not None}
        for optimum in optima:
            label = f"best linear VAE {optimum:.1f}"
            axes.axhline(optimum, color=ORACLE, linestyle="--", linewidth=1.2, label=label)
        limit_to_late_epochs(axes, runs, optima)


def limit_to_late_epochs(axes: Axes, runs: Sequence[RunCurves], optima: set[float]) -> None:
    """Limit the y axis to what comes after the first tenth of each run, and the optima."""
    late = [
        row[f"{split}/elbo"]
        for run in runs
        for row in run.rows[max(1, len(run.rows) // 10) if len(run.rows) > 5 else 0 :]
        for split in ("train", "val")
        if math.isfinite(row[f"{split}/elbo"])
    ]
    if late:
        low, high = min(*late, *optima, math.inf), max(*late, *optima, -math.inf)
        margin = (high - low) or 1.0
        axes.set_ylim(low - 0.05 * margin, high + 0.08 * margin)


def curves_figure(title: str, run: RunCurves) -> Figure:
    """ELBO above, its KL term below, of one run."""
    figure = new_figure(PANEL, 6.6, title)
    panels = figure.subplots(2, 1, sharex=True, height_ratios=(1.5, 1))
    figure.subplots_adjust(left=0.15, right=0.97, bottom=0.09, top=0.89, hspace=0.08)
    for axes, term in zip(panels, ("elbo", "kl"), strict=True):
        plot_curves(axes, [run], term)
        axes.legend(loc="lower right" if term == "elbo" else "best")
    panels[0].set_xlabel("")
    return figure


class Drift(NamedTuple):
    """Drift of a run's chains from the prior, nats at the steps 0 … T; inf where one diverged."""

    nats: Sequence[float]
    label: str = ""
    colour: str = TRAIN
    dashes: str = "-"


def plot_drift(axes: Axes, chains: Sequence[Drift], floor: str = "") -> None:
    """KL of the chains' first two moments to the prior over the steps; a cross where they diverge.

    The dotted line, named `floor`, is what as many draws from the prior itself show.
    """
    for chain in chains:
        finite = next((t for t, d in enumerate(chain.nats) if not math.isfinite(d)), None)
        shown = chain.nats[:finite]
        axes.plot(
            range(len(shown)),
            shown,
            color=chain.colour,
            linestyle=chain.dashes,
            linewidth=1.8,
            label=chain.label or None,
        )
        if finite:
            end = min(shown[-1], MAX_DRIFT)
            axes.plot(finite - 1, end, "x", color=chain.colour, markersize=9, markeredgewidth=2)
    for i, start in enumerate({round(chain.nats[0], 6) for chain in chains}):
        label = floor if floor and i == 0 else None
        axes.axhline(start, color="grey", linestyle=":", linewidth=1.2, label=label)
    axes.set_xlabel("step t")
    axes.set_ylabel("KL of means and variances, nats")
    plain_axes(axes)
    readable_log_axis(axes)
    axes.set_xlim(0, max(len(chain.nats) for chain in chains) - 1)


def readable_log_axis(axes: Axes) -> None:
    """A logarithmic y axis with plain numbers, also where it spans less than a decade or two."""
    axes.set_yscale("log")
    plain_ticks(axes.yaxis)
    low, high = axes.get_ylim()
    axes.set_ylim(low, min(high, MAX_DRIFT * 1.3))
    short = high < 30 * low
    axes.yaxis.set_minor_formatter(
        lambda value, _: f"{value:g}" if short and f"{value:g}"[-1] in "235" else ""
    )


def chain_figure(
    title: str, frames: Sequence[Tensor], drifts: Sequence[float], mixing_steps: float
) -> Figure:
    """Five chains at ten of their steps, and the drift of all from the prior over the steps.

    `frames` are f(z_t) [n, C, H, W] for t = 0 … T; `mixing_steps` says after how many steps it
    forgets where it started, NaN where that is not resolved.
    """
    figure = new_figure(PANEL, 6.9, title)
    above, below = figure.subplots(2, 1, height_ratios=(1.1, 1))
    figure.subplots_adjust(left=0.13, right=0.97, bottom=0.09, top=0.89, hspace=0.22)
    steps = np.unique(np.geomspace(1, len(frames), 10).round().astype(int) - 1)
    images = torch.stack([frames[t][:5] for t in steps], dim=1)  # [5, steps, C, H, W]
    show_picture(above, tile(images.flatten(0, 1), len(steps)))
    label_tile(above, images.shape, [], [str(t) for t in steps])
    above.set_ylabel("five of the chains")
    above.set_xlabel("f(z_t) at step t")
    n = len(frames[0])
    plot_drift(below, [Drift(drifts, f"{n} chains")], floor=f"{n} draws from the prior")
    if mixing_steps < len(drifts):
        label = f"mixes in {mixing_steps:.0f} steps"
        below.axvline(mixing_steps, color=ORACLE, linestyle="--", linewidth=1.2, label=label)
    below.margins(y=0.1)
    legend_outside_the_curve(below)
    return figure


def legend_outside_the_curve(axes: Axes) -> None:
    """Make room above the curves for the legend, which covers nothing there."""
    low, high = axes.get_ylim()
    entries = len(axes.get_legend_handles_labels()[0])
    axes.set_ylim(low, high * (high / low) ** (0.18 * entries + 0.05))
    axes.legend(loc="upper left", frameon=False)
