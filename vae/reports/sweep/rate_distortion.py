"""Rate against distortion: what a sweep over sigma, or over the weight of the KL, trades.

The rate is the KL in nats per image, the distortion the squared error of an image and its
reconstruction with z ~ q (Alemi et al. 2018, arXiv:1711.00464).
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator
from omegaconf import OmegaConf

from vae.plots.images import chart, plain_ticks
from vae.plots.palette import ORACLE, run_colour
from vae.reports.sweep.groups import Group, Summary, group
from vae.reports.sweep.runs import SweepRun
from vae.runs.errors import RunError, UserError
from vae.runs.keys import select

if TYPE_CHECKING:
    from vae.theory.ppca import Spectrum

SWEPT = ("model.sigma", "objective.beta")
CURVE_POINTS = 200  # of the closed form


def has_rate_distortion(summary: Summary) -> bool:
    """Whether the sweep moves along the trade-off, at two settings or more."""
    return any(key in summary.swept for key in SWEPT) and len(points(summary.groups)) > 1


def points(groups: Sequence[Group], split: str = "train") -> list[tuple[float, float]]:
    """(distortion, rate) of each group of Gaussian trainings, means over its trainings."""
    x, y = f"{split}/squared_error", f"{split}/kl"
    found: list[tuple[Any, Any]] = [(each.mean.get(x), each.mean.get(y)) for each in groups]
    return sorted((d, r) for d, r in found if d is not None and r is not None)


def rate_distortion_figure(summary: Summary) -> Figure:
    """A line a model over the training images, open circles on test images.

    Bars are standard deviations over trainings. Dashed is the closed form: the linear optimum on
    the training images over sigma, with a dot at each value that was swept.
    """
    swept = next(key for key in SWEPT if key in summary.swept)
    groups = group(summary.of_state("finished"), swept, summary.swept)
    x, y = "squared error per image (distortion)", "KL, nats per image (rate)"
    figure, axes = chart(f"Rate and distortion over {swept}", x, y, 6.4, 4.6)
    for i, line in enumerate(dict.fromkeys(each.line for each in groups)):
        shown = [each for each in groups if each.line == line]
        plot_line(axes, shown, run_colour(i), line or "runs")
        if i == 0:
            annotate(axes, shown)
    curves = closed_forms(summary)
    for i, (curve, dots) in enumerate(curves):
        label = "closed form, linear optimum" if i == 0 else None
        axes.plot(*zip(*curve, strict=True), "--", color=ORACLE, linewidth=1, zorder=1, label=label)
        axes.plot(*zip(*dots, strict=True), ".", color=ORACLE, zorder=1)
    axes.plot([], [], "o", color="grey", markerfacecolor="white", label="on test images")
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5, 7)))
    axes.xaxis.set_minor_locator(NullLocator())
    plain_ticks(axes.xaxis)
    axes.legend(fontsize=9)
    return figure


def plot_line(axes: Axes, groups: Sequence[Group], colour: str, label: str) -> None:
    styles: tuple[tuple[str, dict[str, Any]], ...] = (
        ("train", {"marker": "o", "label": label}),
        ("test", {"marker": "o", "markerfacecolor": "white", "linestyle": "none"}),
    )
    for split, style in styles:
        shown = points(groups, split)
        if shown:
            axes.plot(*zip(*shown, strict=True), color=colour, markersize=5, **style)
    x, y = "train/squared_error", "train/kl"
    for each in groups:
        spread = [each.standard_deviation.get(key) for key in (x, y)]
        if points([each]) and None not in spread:
            (place,) = points([each])
            axes.errorbar(*place, spread[1], spread[0], color=colour, capsize=2, linewidth=1)


def annotate(axes: Axes, groups: Sequence[Group]) -> None:
    """The swept value next to each point of a line."""
    for each in groups:
        for place in points([each]):
            axes.annotate(
                f"{each.x:g}" if isinstance(each.x, float | int) else str(each.x),
                place, xytext=(5, 5), textcoords="offset points", fontsize=8,
            )  # fmt: skip


# --- the closed form --------------------------------------------------------------------------

Curve = list[tuple[float, float]]  # (distortion, rate)


def closed_forms(summary: Summary) -> list[tuple[Curve, Curve]]:
    """Of each latent_dim the curve of the linear optimum over sigma, and its points at the values
    that were swept; none where the runs do not share their data, or it cannot be read.

    At a weight beta of the KL and a fixed sigma the optimum is that of sigma √beta and weight 1.
    """
    runs = [
        (run, sigma)
        for run in summary.of_state("finished")
        if (sigma := effective_sigma(run)) is not None
    ]
    spectrum = spectrum_of([run for run, _ in runs])
    if spectrum is None:
        return []
    import torch  # nothing else in a sweep's summary needs it

    from vae.theory.ppca import rate_distortion

    swept: dict[int, set[float]] = {}
    for run, sigma in runs:
        swept.setdefault(int(select(run.settings, "model.latent_dim")), set()).add(sigma)
    found = []
    for m in sorted(swept):
        sigmas = sorted(swept[m])
        ends = [math.log(sigma) for sigma in (sigmas[0], sigmas[-1])]
        grid = torch.linspace(ends[0], ends[1], CURVE_POINTS, dtype=torch.float64).exp().tolist()
        curve, dots = (
            [(error, kl) for _, kl, error in rate_distortion(spectrum, m, values)]
            for values in (grid, sigmas)
        )
        found.append((curve, dots))
    return found


def effective_sigma(run: SweepRun) -> float | None:
    """sigma √beta of a run with a Gaussian p(x|z) of one fixed sigma; None of any other, and of
    beta 0, whose optimum has infinite rate."""
    sigma = run.metrics.get("model/sigma")
    if sigma is None or run.metrics.get("oracle/sigma") != sigma:  # no closed form, or learned
        return None
    beta = select(run.settings, "objective.beta")
    return sigma * math.sqrt(beta if isinstance(beta, int | float) else 1) or None


def spectrum_of(runs: Sequence[SweepRun]) -> "Spectrum | None":
    """Of the training images of all runs; None where they do not share them, or have none here."""
    if not runs or any(run.settings.get("data") != runs[0].settings.get("data") for run in runs):
        return None
    from vae.runs.folder import load_data  # imports Lightning

    try:
        return load_data(OmegaConf.create({"data": runs[0].settings["data"]})).spectrum()
    except (UserError, RunError):
        return None
