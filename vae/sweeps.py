"""A folder of runs as one table and one figure: every final figure against the value that was swept.

Works on whatever lies below the folder: a multirun, or single runs side by side. It reads their settings,
metrics.json and job.json, never a checkpoint, and does not import torch.
"""

import csv
import math
import shlex
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vae.errors import UserError
from vae.figures import ORACLE, new_figure, png
from vae.files import read_json, write_json

COLOURS = ("#4477aa", "#ee7733", "#228833", "#aa3377", "#66ccee", "#ccbb44", "#bbbbbb")
SEED = "seed"
# What a panel shows, its title, and the closed form beside it.
PANELS = (
    ("val/elbo", "validation ELBO, nats per image", "oracle/val_elbo"),
    ("test/elbo", "test ELBO, nats per image", "oracle/test_elbo"),
    ("test/kl", "test KL(q ‖ prior), nats per image", None),
    ("active", "active latents, test (KL ≥ 0.01 nats)", "oracle/active"),
    ("time/fit_seconds", "time of the fit, seconds", None),
)


@dataclass(frozen=True)
class SweepRun:
    """One run: `state` is finished, failed, or unfinished (cut off, or still running)."""

    folder: str  # below the sweep's folder
    state: str
    overrides: list[str]
    problems: list[str]
    metrics: dict[str, float | None]  # None: not finite
    config: DictConfig
    threads: int | None = None

    @property
    def model(self) -> str:
        return str(select(self.config, "model.name") or "vae")

    @property
    def command(self) -> str:
        """Repeats this run, with the threads that it had."""
        threads = [f"threads={self.threads}"] if self.threads and not self._overridden("threads") else []
        return shlex.join(["python", "-m", "vae.train", *self.overrides, *threads])

    def value(self, key: str) -> Any:
        """Of a setting, or the choice of a group such as `model`."""
        value = select(self.config, key)
        if isinstance(value, DictConfig):
            return self._overridden(key) or value.get("name", "default")
        return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value

    def _overridden(self, key: str) -> str | None:
        return dict(split_override(o) for o in self.overrides).get(key)


@dataclass(frozen=True)
class Point:
    """The runs of one line at one swept value: mean and standard error of each figure."""

    line: str
    x: Any
    runs: int
    mean: dict[str, float | None]  # None where a run's figure was not finite
    error: dict[str, float | None]  # sd/√n over seeds; None for a single run


@dataclass(frozen=True)
class Summary:
    folder: Path
    runs: list[SweepRun]
    swept: list[str]  # every key that differs between runs
    x: str  # the one of them on the horizontal axis
    points: list[Point] = field(default_factory=list)

    @property
    def best(self) -> SweepRun | None:
        """By the validation ELBO: the test set chooses nothing."""
        scored = [run for run in self.runs if run.state == "finished" and run.metrics.get("val/elbo") is not None]
        return max(scored, key=lambda run: run.metrics["val/elbo"] or 0.0, default=None)

    def name(self, run: SweepRun) -> str:
        """What was swept, and the run's value of it."""
        return " ".join(f"{key}={run.value(key)}" for key in self.swept) or run.folder

    def of_state(self, state: str) -> list[SweepRun]:
        return [run for run in self.runs if run.state == state]


def summarise(folder: Path, x: str | None = None) -> Summary:
    """Write summary.csv (a row a run), summary.json and summary.png into `folder`.

    `x` is the swept key on the horizontal axis; without it model.latent_dim, or the first number that was swept.
    Raises UserError for a folder without runs and for an `x` that was not swept.
    """
    summary = read(folder, x)
    write_csv(folder / "summary.csv", summary)
    write_json(folder / "summary.json", as_json(summary))
    (folder / "summary.png").write_bytes(png(draw(summary)))
    return summary


def read(folder: Path, x: str | None = None) -> Summary:
    runs = [read_run(folder, path) for path in run_folders(folder)]
    if not runs:
        raise UserError(f"sweep={folder}: no runs in it")
    keys = dict.fromkeys(split_override(o)[0] for run in runs for o in run.overrides)
    swept = [key for key in keys if len({str(run.value(key)) for run in runs}) > 1]
    if len({run.model for run in runs}) > 1 and "model" not in swept:
        swept.append("model")
    if x is not None and x not in swept:
        raise UserError(f"x={x} was not swept in {folder}; swept: {', '.join(swept) or 'nothing'}")
    x = x or horizontal(swept, runs)
    return Summary(folder, runs, swept, x, points(runs, x, [key for key in swept if key not in (x, SEED)]))


def run_folders(folder: Path) -> list[Path]:
    """Every run below a folder, by name."""
    return sorted(path.parents[1] for path in folder.glob("**/.hydra/config.yaml"))


def select(config: DictConfig, key: str) -> Any:
    """A setting by its dotted key; None where there is none, as in a run that was refused for it."""
    try:
        return OmegaConf.select(config, key)
    except OmegaConfBaseException:
        return None


def read_run(sweep: Path, folder: Path) -> SweepRun:
    metrics, job = read_json(folder / "metrics.json"), read_json(folder / "job.json")
    state = "failed" if job.get("state") == "failed" else "finished" if metrics else "unfinished"
    config = OmegaConf.load(folder / ".hydra" / "config.yaml")
    assert isinstance(config, DictConfig)
    latents = select(config, "model.latent_dim")
    for name, collapsed in (("active", "test/collapsed"), ("oracle/active", "oracle/collapsed")):
        if metrics.get(collapsed) is not None:
            metrics[name] = latents - metrics[collapsed]
    overrides = folder / ".hydra" / "overrides.yaml"
    return SweepRun(
        str(folder.relative_to(sweep)),
        state,
        list(OmegaConf.load(overrides)) if overrides.exists() else [],
        job.get("problems", []),
        metrics if state == "finished" else {},
        config,
        read_json(folder / "environment.json").get("threads"),
    )


def split_override(override: str) -> tuple[str, str]:
    key, _, value = override.lstrip("+~").partition("=")
    return key, value


def horizontal(swept: list[str], runs: list[SweepRun]) -> str:
    """The key that the figure runs along."""

    def numeric(key: str) -> bool:
        return all(isinstance(run.value(key), int | float) for run in runs)

    candidates = [key for key in swept if key != SEED]
    numbers = [key for key in candidates if numeric(key)]
    preferred = [key for key in numbers if key == "model.latent_dim"]
    return next(iter([*preferred, *numbers, *candidates]), "model.latent_dim")


def points(runs: list[SweepRun], x: str, keys: list[str]) -> list[Point]:
    """Finished runs gathered by everything swept but the seed; a line is named by its model and other values."""
    groups: dict[tuple[str, str], list[SweepRun]] = {}
    for run in runs:
        if run.state == "finished":
            rest = [f"{key.split('.')[-1]}={run.value(key)}" for key in keys if key not in ("model", "model.name")]
            name = [str(run.value("model"))] if "model" in keys else [] if x == "model" else [run.model]
            groups.setdefault((" ".join([*name, *rest]), str(run.value(x))), []).append(run)
    found = []
    for (line, _), members in groups.items():
        stats = {name: mean_and_error([run.metrics.get(name) for run in members]) for name in members[0].metrics}
        mean, error = ({name: pair[i] for name, pair in stats.items()} for i in (0, 1))
        found.append(Point(line, members[0].value(x), len(members), mean, error))
    return sorted(found, key=lambda p: (p.line, p.x if isinstance(p.x, int | float) else str(p.x)))


def mean_and_error(values: list[float | None]) -> tuple[float | None, float | None]:
    """Mean and its standard error; no mean where a value is not finite, no error of a single value."""
    finite = [v for v in values if v is not None]
    if len(finite) < len(values):
        return None, None
    error = statistics.stdev(finite) / math.sqrt(len(finite)) if len(finite) > 1 else None
    return statistics.fmean(finite), error


def write_csv(path: Path, summary: Summary) -> None:
    names = list(dict.fromkeys(name for run in summary.runs for name in run.metrics))
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["run", "state", *summary.swept, *names, "problems"])
        for run in summary.runs:
            settings = [run.value(key) for key in summary.swept]
            figures = [run.metrics.get(name) for name in names]
            writer.writerow([run.folder, run.state, *settings, *figures, "; ".join(run.problems)])


def as_json(summary: Summary) -> dict[str, Any]:
    best = summary.best
    return {
        "x": summary.x,
        "swept": summary.swept,
        "best": best and {"run": best.folder, "val/elbo": best.metrics["val/elbo"], "command": best.command},
        "points": [vars(point) for point in summary.points],
        "runs": [
            {
                "run": run.folder,
                "state": run.state,
                "settings": {key: run.value(key) for key in summary.swept},
                "metrics": run.metrics,
                "problems": run.problems,
            }
            for run in summary.runs
        ],
    }


def table(summary: Summary) -> str:
    """For the screen: a row a point, then what failed, the best run and how to repeat it."""
    head = f"{'':<20}{summary.x.split('.')[-1]:>12}{'val ELBO':>18}{'test ELBO':>18}{'optimum':>9}{'KL':>8}"
    lines = [head + f"{'active':>8}{'s':>7}"] if summary.points else []
    for p in summary.points:
        elbos = "".join(f"{shown(p, name, 2):>18}" for name in ("val/elbo", "test/elbo"))
        rest = "".join(
            f"{shown(p, name, digits, error=False):>{width}}"
            for name, digits, width in (
                ("oracle/test_elbo", 2, 9),
                ("test/kl", 2, 8),
                ("active", 1, 8),
                ("time/fit_seconds", 1, 7),
            )
        )
        lines.append(f"{p.line:<20}{p.x!s:>12}{elbos}{rest}")
    lines += [f"failed: {summary.name(run)}: {'; '.join(run.problems)}" for run in summary.of_state("failed")]
    lines += [f"unfinished: {summary.name(run)}" for run in summary.of_state("unfinished")]
    best = summary.best
    if best is not None:
        lines += [f"best: {summary.name(best)}, val ELBO {best.metrics['val/elbo']:.2f}", f"again: {best.command}"]
    return "\n".join([*lines, f"{summary.folder}/summary.{{png,csv,json}}: {counts(summary)}"])


def counts(summary: Summary) -> str:
    states = ("finished", "failed", "unfinished")
    return ", ".join(f"{n} {state}" for state in states if (n := len(summary.of_state(state))) or state == "finished")


def shown(point: Point, name: str, digits: int, error: bool = True) -> str:
    mean, spread = point.mean.get(name), point.error.get(name)
    if mean is None:
        return "–"
    return f"{mean:.{digits}f}" + (f" ± {spread:.{digits}f}" if error and spread is not None else "")


def draw(summary: Summary) -> Figure:
    """A panel a figure, a line a model (or whatever else was swept), error bars over seeds, closed forms dashed."""
    figure = new_figure(13, 7, f"{summary.folder.name}: {counts(summary)}")
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
            draw_closed_form(axes, summary.points, closed_form, values, numeric)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel(summary.x)
        axes.grid(alpha=0.3)
        if numeric and values and min(values) > 0 and max(values) >= 8 * min(values):
            axes.set_xscale("log", base=2)
        axes.set_xticks(values if numeric else range(len(values)), [str(v) for v in values])
        axes.minorticks_off()
    write_legend(panels[-1], panels[0], summary)
    return figure


def draw_closed_form(axes: Axes, points: list[Point], name: str, values: list[Any], numeric: bool) -> None:
    """One curve, or one for each set of lines whose other settings (sigma, say) give them an optimum of their own."""
    curves: dict[tuple[tuple[Any, float], ...], None] = {}
    for line in dict.fromkeys(p.line for p in points):
        at = [(p.x, p.mean[name]) for p in points if p.line == line and p.mean.get(name) is not None]
        curves.setdefault(tuple((x, round(y, 9)) for x, y in at if y is not None))
    # a curve that is part of another one (some of its runs failed) is that one
    whole = [c for c in curves if c and not any(set(c) < set(other) for other in curves)]
    for i, curve in enumerate(whole):
        places = [x if numeric else values.index(x) for x, _ in curve]
        label = "closed form, best linear pair" if i == 0 else None
        axes.plot(places, [y for _, y in curve], "--", color=ORACLE, linewidth=1, marker=".", label=label, zorder=5)


def write_legend(axes: Axes, source: Axes, summary: Summary) -> None:
    axes.set_axis_off()
    handles, labels = source.get_legend_handles_labels()
    if handles:
        axes.legend(handles, labels, loc="upper left", fontsize=9)
    runs = [p.runs for p in summary.points]
    text = f"mean ± standard error over {min(runs)}–{max(runs)} runs\n\n" if runs and max(runs) > 1 else ""
    best = summary.best
    if best is not None:
        text += f"best val ELBO {best.metrics['val/elbo']:.2f}:\n{summary.name(best)}"
    axes.text(0, 0, text, transform=axes.transAxes, fontsize=9, va="bottom")
