"""The chart of a sweep: a panel for each metric over the swept setting."""

import math
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vae.plots.images import new_figure, plain_ticks
from vae.plots.palette import ORACLE, run_colour, run_dashes
from vae.reports.sweep.groups import Group, Summary, is_real
from vae.reports.sweep.runs import as_text

MAX_LEGEND_LINES = 14
MAX_TICKS = 7


# What a panel shows, its title, and the closed form next to it.
PANELS = (
    ("val/elbo", "validation ELBO, nats per image", "oracle/val_elbo"),
    ("test/elbo", "test ELBO, nats per image", "oracle/test_elbo"),
    ("test/kl", "test KL(q ‖ prior), nats per image", None),
    ("active", "active latents, test (KL ≥ 0.01 nats)", "oracle/active"),
    ("time/fit_seconds", "time of the fit, seconds", None),
)


class XAxis:
    """Where a value of the swept setting lies: at itself where all are numbers, else in order."""

    def __init__(self, values: list[Any]) -> None:
        self.numeric = all(is_real(value) for value in values)
        texts = list(dict.fromkeys(as_text(value) for value in values))
        self.values: list[Any] = sorted({*values}) if self.numeric else texts
        self.labels = [f"{value:g}" for value in self.values] if self.numeric else texts

    def place(self, value: Any) -> float:
        return float(value) if self.numeric else self.values.index(as_text(value))

    def apply(self, axes: Axes, label: str) -> None:
        values = self.values
        if self.numeric and values and min(values) > 0 and max(values) >= 8 * min(values):
            axes.set_xscale("log", base=2 if len(values) <= MAX_TICKS else 10)
        if self.numeric and len(values) > MAX_TICKS:
            axes.set_xlabel(label)
            plain_ticks(axes.xaxis)
            return
        if self.numeric:
            ticks, labels = values, apart(self.labels, values, axes.get_xscale() == "log")
        else:
            step = max(1, -(-len(values) // 12))  # at most a dozen labels
            ticks, labels = [*range(0, len(values), step)], self.labels[::step]
            axes.set_xlim(-0.5, len(values) - 0.5)
        longest = max(map(len, self.labels), default=0)
        axes.set_xticks(ticks, labels)
        axes.tick_params(axis="x", rotation=20 if longest * len(labels) > 40 else 0)
        axes.minorticks_off()
        axes.set_xlabel(label)


def apart(labels: Sequence[str], values: Sequence[float], logarithmic: bool) -> list[str]:
    """The labels, empty where one would touch the last one shown; its tick remains."""
    places = [math.log(value) if logarithmic else value for value in values]
    extent = max(places, default=0.0) - min(places, default=0.0) or 1.0
    shown: list[str] = []
    last, end = "", -math.inf
    for label, place in zip(labels, places, strict=True):
        room = 0.015 + 0.01 * (len(last) + len(label))  # of the panel's width
        free = (place - end) / extent > room
        shown.append(label if free else "")
        if free:
            last, end = label, place
    return shown


def summary_figure(summary: Summary) -> Figure:
    """A panel for each metric, a line for each model (or whatever else was swept).

    Capped bars are standard errors of the mean, the pale ones behind them standard deviations over
    trainings; closed forms are dashed.
    """
    title = f"{summary.folder.name}: {summary.count_states()}"
    figure = new_figure(13, 7, title)
    panels = list(figure.subplots(2, 3).flat)
    figure.subplots_adjust(left=0.06, right=0.98, bottom=0.09, top=0.9, wspace=0.24, hspace=0.38)
    x_axis = XAxis([group.x for group in summary.groups])
    groups = summary.groups
    if summary.scattered:  # colours would mean nothing
        groups = [replace(group, line="one setting each") for group in groups]
    lines = list(dict.fromkeys(group.line for group in groups))
    connected = x_axis.numeric and not summary.scattered  # names have no order
    for axes, (name, title, closed_form) in zip(panels, PANELS, strict=False):
        for i, line in enumerate(lines):
            shown = [g for g in groups if g.line == line and g.mean.get(name) is not None]
            plot_line(axes, shown, name, x_axis, i, connected)
        if closed_form is not None and not summary.scattered:
            plot_closed_form(axes, summary.groups, closed_form, x_axis)
        axes.set_title(title, fontsize=10)
        axes.grid(alpha=0.3)
        x_axis.apply(axes, summary.x)
    write_legend(panels[-1], panels[0], summary)
    return figure


def plot_line(
    axes: Axes, groups: list[Group], name: str, x_axis: XAxis, place: int, connected: bool
) -> None:
    places = [x_axis.place(group.x) for group in groups]
    means: Any = [group.mean[name] for group in groups]
    label = groups[0].line or None if groups else None
    colour = run_colour(place)
    style = run_dashes(place) if connected else "none"
    axes.plot(places, means, linestyle=style, color=colour, marker="o", markersize=4, label=label)
    for spread, width, alpha, cap in (
        ([group.standard_deviation.get(name) or 0.0 for group in groups], 5, 0.25, 0),
        ([group.standard_error.get(name) or 0.0 for group in groups], 1.5, 1, 3),
    ):
        if any(spread):
            axes.errorbar(
                places, means, spread, fmt="none", ecolor=colour, elinewidth=width, alpha=alpha,
                capsize=cap,
            )  # fmt: skip


def plot_closed_form(axes: Axes, groups: list[Group], name: str, x_axis: XAxis) -> None:
    """One curve, or one for each set of lines whose other settings (sigma, say) give them an
    optimum of their own."""
    curves: dict[tuple[tuple[float, float], ...], None] = {}
    for line in dict.fromkeys(group.line for group in groups):
        means = [(x_axis.place(g.x), g.mean.get(name)) for g in groups if g.line == line]
        curves.setdefault(tuple((x, round(y, 9)) for x, y in means if y is not None))
    # a curve that is part of another one (some of its runs failed) is that one
    distinct = [c for c in curves if c and not any({*c} < {*other} for other in curves)]
    for i, curve in enumerate(distinct):
        axes.plot(
            [x for x, _ in curve],
            [y for _, y in curve],
            "--",
            color=ORACLE,
            linewidth=1,
            marker=".",
            label="closed form, best linear model" if i == 0 else None,
            zorder=5,
        )


def write_legend(axes: Axes, source: Axes, summary: Summary) -> None:
    axes.set_axis_off()
    handles, labels = source.get_legend_handles_labels()
    if handles:
        shown = slice(None if len(labels) <= MAX_LEGEND_LINES else MAX_LEGEND_LINES)
        axes.legend(handles[shown], labels[shown], loc="upper left", fontsize=9)
    runs = [len(group.runs) for group in summary.groups]
    text = ""
    if runs and max(runs) > 1:
        counted = f"{min(runs)}–{max(runs)}" if min(runs) < max(runs) else f"{max(runs)}"
        text = (
            f"means of {counted} trainings\ncapped bars: standard error of the mean\n"
            "pale bars: standard deviation over trainings\n\n"
        )
    best = summary.best
    if best is not None:
        settings = textwrap.wrap(summary.name(best), 48, break_on_hyphens=False)[:6]
        text += "\n".join([f"best val ELBO {best.metrics['val/elbo']:.2f}:", *settings])
    axes.text(0, 0, text, transform=axes.transAxes, fontsize=9, va="bottom")
