"""The chart of a sweep: a panel for each metric over the swept setting."""

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vae.plots.images import ORACLE, new_figure
from vae.reports.sweep.measure import Point, Summary
from vae.reports.sweep.table import count_states

COLOURS = ("#4477aa", "#ee7733", "#228833", "#aa3377", "#66ccee", "#ccbb44", "#bbbbbb")


# What a panel shows, its title, and the closed form beside it.
PANELS = (
    ("val/elbo", "validation ELBO, nats per image", "oracle/val_elbo"),
    ("test/elbo", "test ELBO, nats per image", "oracle/test_elbo"),
    ("test/kl", "test KL(q ‖ prior), nats per image", None),
    ("active", "active latents, test (KL ≥ 0.01 nats)", "oracle/active"),
    ("time/fit_seconds", "time of the fit, seconds", None),
)


def summary_figure(summary: Summary) -> Figure:
    """A panel a figure, a line a model (or whatever else was swept), error bars over seeds, closed
    forms dashed."""
    figure = new_figure(13, 7, f"{summary.folder.name}: {count_states(summary)}")
    panels = list(figure.subplots(2, 3).flat)
    figure.subplots_adjust(left=0.06, right=0.98, bottom=0.09, top=0.9, wspace=0.24, hspace=0.34)
    values = list(dict.fromkeys(p.x for p in sorted(summary.points, key=lambda p: str(type(p.x)))))
    numeric = all(isinstance(v, int | float) for v in values)
    values = sorted(values) if numeric else values
    lines = list(dict.fromkeys(p.line for p in summary.points))
    for axes, (name, title, closed_form) in zip(panels, PANELS, strict=False):
        for line, colour in zip(lines, (c for _ in lines for c in COLOURS), strict=False):
            at = [p for p in summary.points if p.line == line and p.mean.get(name) is not None]
            places = [p.x if numeric else values.index(p.x) for p in at]
            bars = [p.error[name] or 0.0 for p in at]
            axes.errorbar(
                places,
                [p.mean[name] for p in at],
                bars if any(bars) else None,
                color=colour,
                marker="o",
                markersize=4,
                capsize=3,
                label=line,
            )
        if closed_form is not None:
            plot_closed_form(axes, summary.points, closed_form, values, numeric)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel(summary.x)
        axes.grid(alpha=0.3)
        if numeric and values and min(values) > 0 and max(values) >= 8 * min(values):
            axes.set_xscale("log", base=2)
        axes.set_xticks(values if numeric else range(len(values)), [str(v) for v in values])
        axes.minorticks_off()
    write_legend(panels[-1], panels[0], summary)
    return figure


def plot_closed_form(
    axes: Axes, points: list[Point], name: str, values: list[Any], numeric: bool
) -> None:
    """One curve, or one for each set of lines whose other settings (sigma, say) give them an
    optimum of their own."""
    curves: dict[tuple[tuple[Any, float], ...], None] = {}
    for line in dict.fromkeys(p.line for p in points):
        at = [
            (p.x, p.mean[name]) for p in points if p.line == line and p.mean.get(name) is not None
        ]
        curves.setdefault(tuple((x, round(y, 9)) for x, y in at if y is not None))
    # a curve that is part of another one (some of its runs failed) is that one
    whole = [c for c in curves if c and not any(set(c) < set(other) for other in curves)]
    for i, curve in enumerate(whole):
        places = [x if numeric else values.index(x) for x, _ in curve]
        label = "closed form, best linear pair" if i == 0 else None
        axes.plot(
            places,
            [y for _, y in curve],
            "--",
            color=ORACLE,
            linewidth=1,
            marker=".",
            label=label,
            zorder=5,
        )


def write_legend(axes: Axes, source: Axes, summary: Summary) -> None:
    axes.set_axis_off()
    handles, labels = source.get_legend_handles_labels()
    if handles:
        axes.legend(handles, labels, loc="upper left", fontsize=9)
    runs = [p.runs for p in summary.points]
    text = (
        f"mean ± standard error over {min(runs)}–{max(runs)} runs\n\n"
        if runs and max(runs) > 1
        else ""
    )
    best = summary.best
    if best is not None:
        text += f"best val ELBO {best.metrics['val/elbo']:.2f}:\n{summary.name(best)}"
    axes.text(0, 0, text, transform=axes.transAxes, fontsize=9, va="bottom")
