"""The summary of a sweep as a table on the screen, CSV and JSON."""

import csv
from pathlib import Path
from typing import Any

from vae.reports.sweep.measure import Point, Summary


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
        "best": best
        and {"run": best.folder, "val/elbo": best.metrics["val/elbo"], "command": best.command},
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
        elbos = "".join(f"{format_mean(p, name, 2):>18}" for name in ("val/elbo", "test/elbo"))
        rest = "".join(
            f"{format_mean(p, name, digits, error=False):>{width}}"
            for name, digits, width in (
                ("oracle/test_elbo", 2, 9),
                ("test/kl", 2, 8),
                ("active", 1, 8),
                ("time/fit_seconds", 1, 7),
            )
        )
        lines.append(f"{p.line:<20}{p.x!s:>12}{elbos}{rest}")
    lines += [
        f"failed: {summary.name(run)}: {'; '.join(run.problems)}"
        for run in summary.of_state("failed")
    ]
    lines += [f"unfinished: {summary.name(run)}" for run in summary.of_state("unfinished")]
    best = summary.best
    if best is not None:
        lines += [
            f"best: {summary.name(best)}, val ELBO {best.metrics['val/elbo']:.2f}",
            f"again: {best.command}",
        ]
    return "\n".join(
        [*lines, f"{summary.folder}/summary.{{png,csv,json}}: {count_states(summary)}"]
    )


def count_states(summary: Summary) -> str:
    states = ("finished", "failed", "unfinished")
    return ", ".join(
        f"{n} {state}"
        for state in states
        if (n := len(summary.of_state(state))) or state == "finished"
    )


def format_mean(point: Point, name: str, digits: int, error: bool = True) -> str:
    mean, spread = point.mean.get(name), point.error.get(name)
    if mean is None:
        return "–"
    return f"{mean:.{digits}f}" + (
        f" ± {spread:.{digits}f}" if error and spread is not None else ""
    )
