"""The charts of the comparison page."""

import io
import math
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from vae.analysis.latents import COLLAPSE_THRESHOLD
from vae.plots.images import COLLAPSED_COLOUR, ORACLE, new_figure, uri
from vae.reports.comparison.measure import Compared
from vae.reports.comparison.selection import STEPS

COLOURS = ["#2b6cb0", "#dd6b20", "#2f855a", "#97266d", "#0e8fa3", "#b7791f", "#553c9a", "#c53030"]
COLOURS += [
    "#5a7d2a",
    "#7b4f2c",
    "#1a365d",
    "#718096",
]  # a run keeps its colour; the second dozen is dashed


DRIFT_SHOWN = 1e4  # nats; a chain that diverges leaves the chart there, with a cross, so that others can be read


def colour(place: int) -> str:
    return COLOURS[place % len(COLOURS)]


def dashes(place: int) -> str:
    return "-" if place < len(COLOURS) else "--"


# --- charts ----------------------------------------------------------------------------------------------------


def chart(
    title: str, x: str, y: str, width: float = 4.7, height: float = 3.2
) -> tuple[Figure, Axes]:
    figure = new_figure(width, height, title)
    axes = figure.subplots()
    top = 1 - (0.36 if title else 0.08) / height
    figure.subplots_adjust(left=0.68 / width, right=1 - 0.16 / width, bottom=0.5 / height, top=top)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def svg(figure: Figure) -> str:
    """The chart as a data URI: text stays text, and equal figures make equal bytes."""
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "vae"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return uri("image/svg+xml", buffer.getvalue())


def curves(compared: Sequence[Compared], term: str) -> str:
    figure, axes = chart({"elbo": "ELBO", "kl": "KL(q ‖ prior)"}[term], "epoch", "nats per image")
    for i, each in enumerate(compared):
        epochs = [row["epoch"] for row in each.history]
        axes.plot(
            epochs,
            [row[f"train/{term}"] for row in each.history],
            color=colour(i),
            linewidth=1,
            linestyle=":",
        )
        val = [row[f"val/{term}"] for row in each.history]
        marker = "o" if len(epochs) < 2 else None
        axes.plot(epochs, val, color=colour(i), linewidth=1.8, linestyle=dashes(i), marker=marker)
    if term == "elbo":
        optima = {each.oracle.train_elbo for each in compared if each.oracle is not None}
        for optimum in optima:
            axes.axhline(optimum, color=ORACLE, linestyle="--", linewidth=0.9)
        late = [
            row["val/elbo"] for each in compared for row in each.history[len(each.history) // 10 :]
        ]
        if (
            late
        ):  # the first steep climb stays below the edge, where it would flatten all that follows
            low, high = min(*late, *optima), max(*late, *optima)
            axes.set_ylim(low - 0.05 * (high - low), high + 0.08 * (high - low))
    return svg(figure)


def size_chart(compared: Sequence[Compared]) -> str:
    """Test ELBO over latent_dim, the runs of a model joined, with the best linear pair of each
    size."""
    figure, axes = chart("test ELBO over latent_dim", "latent_dim", "nats per image")
    for model in dict.fromkeys((each.run.model.name, each.likelihood) for each in compared):
        joined = sorted(
            (e.latent_dim, e.figures["test/elbo"])
            for e in compared
            if (e.run.model.name, e.likelihood) == model
        )
        axes.plot(*zip(*joined, strict=True), color=COLLAPSED_COLOUR, linewidth=1.2, zorder=1)
    for i, each in enumerate(compared):
        elbo, se = each.figures["test/elbo"], each.figures["test/elbo_se"]
        axes.errorbar(
            each.latent_dim, elbo, se, color=colour(i), marker="o", markersize=5, capsize=2
        )
        if each.oracle is not None:
            axes.plot(
                each.latent_dim, each.figures["oracle/test_elbo"], "+", color=ORACLE, markersize=8
            )
    dims = sorted({each.latent_dim for each in compared})
    axes.set_xscale("log", base=2)
    axes.set_xticks(dims, [str(dim) for dim in dims])
    axes.xaxis.set_minor_locator(NullLocator())
    return svg(figure)


def histogram(each: Compared, shade: str, compared: Sequence[Compared]) -> str:
    """KL of the latents on bins and axes that all runs share."""
    most = max(10.0, *(run.kl.max().item() for run in compared))
    bins = np.logspace(-5, math.log10(most), 31)
    counts = [np.histogram(run.kl.clamp_min(1e-5).numpy(), bins)[0].max() for run in compared]
    figure, axes = chart("", "mean KL of a latent, nats (log scale)", "latents", 3.7, 2.5)
    kl = each.kl.clamp_min(1e-5).numpy()
    axes.hist(kl[kl < COLLAPSE_THRESHOLD], bins.tolist(), color=COLLAPSED_COLOUR)
    axes.hist(kl[kl >= COLLAPSE_THRESHOLD], bins.tolist(), color=shade)
    axes.axvline(COLLAPSE_THRESHOLD, color=ORACLE, linestyle="--", linewidth=0.9)
    axes.set_xscale("log")
    axes.set_xticks([1e-4, COLLAPSE_THRESHOLD, 1], ["0.0001", f"{COLLAPSE_THRESHOLD:g}", "1"])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlim(bins[0], bins[-1])
    axes.set_ylim(0, max(counts) * 1.08)
    return svg(figure)


def spectrum_chart(compared: Sequence[Compared]) -> str:
    figure, axes = chart("", "latents, sorted by KL", "mean KL, nats", 3.7, 2.5)
    for i, each in enumerate(compared):
        kl = each.kl.sort(descending=True).values.tolist()
        places = range(1, len(kl) + 1)
        axes.plot(
            places,
            kl,
            color=colour(i),
            linestyle=dashes(i),
            marker="o",
            markersize=3,
            linewidth=1.2,
        )
        if each.linear and each.oracle is not None:
            axes.plot(
                places,
                each.oracle.kl.tolist(),
                "+",
                color=ORACLE,
                markersize=6,
                markeredgewidth=0.9,
            )
    return svg(figure)


def drift_chart(compared: Sequence[Compared]) -> str:
    figure, axes = chart("", "step t", "KL(moments of z_t ‖ prior), nats")
    for i, each in enumerate(compared):
        steps = each.course.finite_steps
        axes.plot(
            range(steps),
            each.course.drifts[:steps],
            color=colour(i),
            linestyle=dashes(i),
            linewidth=1.6,
        )
        if steps < len(each.course.drifts):
            axes.plot(
                steps - 1,
                min(each.course.drifts[steps - 1], DRIFT_SHOWN),
                "x",
                color=colour(i),
                markersize=9,
            )
    for floor in {round(each.course.drifts[0], 6) for each in compared}:
        axes.axhline(floor, color="grey", linestyle=":", linewidth=1)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    low, high = axes.get_ylim()
    axes.set_ylim(low, min(high, DRIFT_SHOWN * 1.3))
    if high < 30 * low:
        axes.yaxis.set_minor_formatter(
            lambda value, _: f"{value:g}" if f"{value:g}"[-1] in "235" else ""
        )
    else:
        axes.yaxis.set_minor_formatter("")
    axes.set_xlim(0, STEPS)
    return svg(figure)
