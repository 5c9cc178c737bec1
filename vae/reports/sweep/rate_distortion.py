"""Rate against distortion: what a sweep over sigma, or over the weight of the KL, trades.

The rate is the KL in nats per image, the distortion the squared error of an image and its
reconstruction with z ~ q (Alemi et al. 2018, arXiv:1711.00464).
"""

from typing import Any

from matplotlib.figure import Figure

from vae.plots.images import chart
from vae.plots.palette import ORACLE, run_colour
from vae.reports.sweep.groups import Group, Summary

SWEPT = ("model.sigma", "objective.beta")
CLOSED_FORM = ("oracle/squared_error", "oracle/kl")


def has_rate_distortion(summary: Summary) -> bool:
    """Whether the sweep moves along the trade-off, at two settings or more."""
    return any(key in summary.swept for key in SWEPT) and len(points(summary.groups)) > 1


def points(groups: list[Group], split: str = "train") -> list[tuple[float, float]]:
    """(distortion, rate) of each group of Gaussian trainings, means over its trainings."""
    return metric_points(groups, f"{split}/squared_error", f"{split}/kl")


def metric_points(groups: list[Group], x: str, y: str) -> list[tuple[float, float]]:
    found: list[tuple[Any, Any]] = [(group.mean.get(x), group.mean.get(y)) for group in groups]
    return sorted((d, r) for d, r in found if d is not None and r is not None)


def rate_distortion_figure(summary: Summary) -> Figure:
    """A line a model over the training images, open circles on test images.

    Dashed is the closed form: the linear optimum on the training images at each sigma.
    """
    x, y = "squared error per image (distortion)", "KL, nats per image (rate)"
    figure, axes = chart(f"Rate and distortion over {summary.x}", x, y, 6.4, 4.6)
    for i, line in enumerate(dict.fromkeys(group.line for group in summary.groups)):
        groups = [group for group in summary.groups if group.line == line]
        colour, label = run_colour(i), line or "runs"
        styles: tuple[tuple[str, dict[str, Any]], ...] = (
            ("train", {"marker": "o", "label": label}),
            ("test", {"marker": "o", "markerfacecolor": "white", "linestyle": "none"}),
        )
        for split, style in styles:
            shown = points(groups, split)
            axes.plot(*zip(*shown, strict=True), color=colour, markersize=5, **style)
        if groups[0].x is not None and i == 0:
            annotate(axes, groups)
    optimum = dict.fromkeys(metric_points(summary.groups, *CLOSED_FORM))
    if optimum:
        axes.plot(
            *zip(*optimum, strict=True), "--", color=ORACLE, linewidth=1, marker=".",
            label="closed form, linear optimum", zorder=1,
        )  # fmt: skip
    axes.plot([], [], "o", color="grey", markerfacecolor="white", label="on test images")
    axes.set_xscale("log")
    axes.legend(fontsize=9)
    return figure


def annotate(axes: Any, groups: list[Group]) -> None:
    """The swept value next to each point of a line."""
    for group in groups:
        place = metric_points([group], "train/squared_error", "train/kl")
        if place:
            axes.annotate(
                f"{group.x:g}" if isinstance(group.x, float | int) else str(group.x),
                place[0], xytext=(5, 5), textcoords="offset points", fontsize=8,
            )  # fmt: skip
