"""The charts of a study: each measure against the number of parameters."""

from collections.abc import Sequence

from matplotlib.axes import Axes

from vae.plots.images import chart, plain_ticks, svg
from vae.plots.palette import ORACLE, run_colour, run_dashes
from vae.reports.study.ladder import Architecture
from vae.reports.study.measures import Measure


def measure_chart(architectures: Sequence[Architecture], measure: Measure) -> str:
    """A line a ladder over its sizes, with a band of one standard deviation over trainings.

    Dashed: the floor of the measure, or its ceiling.
    """
    figure, axes = chart("", "parameters, encoder + decoder", measure.unit)
    for place, ladder in enumerate(ladders(architectures)):
        shown = [
            (each.parameters, m)
            for each in architectures
            if each.ladder == ladder and (m := each.measured(measure.key)) is not None
        ]
        if not shown:
            continue
        x, means = [n for n, _ in shown], [m.mean for _, m in shown]
        spread = [m.sd or 0.0 for _, m in shown]
        colour = run_colour(place)
        axes.plot(x, means, run_dashes(place), marker="o", markersize=4, color=colour, label=ladder)
        axes.errorbar(x, means, spread, fmt="none", ecolor=colour, capsize=2, elinewidth=1)
        low, high = ([m + way * s for m, s in zip(means, spread, strict=True)] for way in (-1, 1))
        axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
    bounds(axes, architectures, measure)
    axes.set_xscale("log")
    plain_ticks(axes.xaxis, "{x:,.0f}")
    return svg(figure)


def bounds(axes: Axes, architectures: Sequence[Architecture], measure: Measure) -> None:
    """The closed form or what real images score, and the ceiling where it is near the curves."""
    floor = architectures[0].measured(measure.floor) if measure.floor else None
    if floor is not None:
        axes.axhline(floor.mean, color=ORACLE, linestyle="--", linewidth=1)
    ceiling = measure.ceiling(architectures[0])
    if ceiling is not None:
        low, high = axes.get_ylim()
        if ceiling < high + (high - low):
            axes.axhline(ceiling, color=ORACLE, linestyle=":", linewidth=1)


def ladders(architectures: Sequence[Architecture]) -> list[str]:
    """The lines of the charts, in the order of their smallest architecture."""
    return list(dict.fromkeys(architecture.ladder for architecture in architectures))
