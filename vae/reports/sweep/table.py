"""The summary of a sweep for the screen, as CSV files and as JSON."""

from pathlib import Path
from typing import Any

import pandas as pd

from vae.reports.sweep.groups import Group, Summary
from vae.reports.sweep.runs import as_text, to_frame
from vae.runs.files import atomic_write
from vae.runs.printable import csv_cell, printable

# Header, metric, digits, whether its standard error and standard deviation are shown.
COLUMNS = (
    ("val ELBO", "val/elbo", 2, True),
    ("test ELBO", "test/elbo", 2, True),
    ("optimum", "oracle/test_elbo", 2, False),
    ("KL", "test/kl", 2, False),
    ("active", "active", 1, False),
    ("s", "time/fit_seconds", 1, False),
)


def write_csv(folder: Path, summary: Summary) -> None:
    """summary.csv has a row for each run, groups.csv one for each group of trainings."""
    runs = to_frame(summary.runs, summary.swept)
    names = dict.fromkeys(name for group in summary.groups for name in group.mean)
    rows = [
        {"line": group.line, summary.x: as_text(group.x), "trainings": len(group.runs)}
        | {
            f"{name} {label}": values.get(name)
            for name in names
            for label, values in (
                ("mean", group.mean),
                ("standard deviation over trainings", group.standard_deviation),
                ("standard error of the mean", group.standard_error),
            )
        }
        for group in summary.groups
    ]
    for name, frame in (("summary.csv", runs), ("groups.csv", pd.DataFrame(rows))):
        atomic_write(folder / name, frame.map(csv_cell).to_csv(index=False))


def as_json(summary: Summary) -> dict[str, Any]:
    best = summary.best
    return {
        "x": summary.x,
        "swept": summary.swept,
        "best": best
        and {"run": best.folder, "val/elbo": best.metrics["val/elbo"], "command": best.command},
        "groups": [vars(group) for group in summary.groups],
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
    """A row for each group, then the runs that did not finish, the best run and its command."""
    lines = group_table(summary.groups, summary.x.split(".")[-1]) if summary.groups else []
    for run in summary.runs:
        if run.state != "finished":
            lines.append(": ".join(filter(None, [run.state, summary.name(run), run.explanation])))
    best = summary.best
    if best is not None:
        lines += [
            f"best: {summary.name(best)}, val ELBO {best.metrics['val/elbo']:.2f}",
            f"repeat with: {best.command}",
        ]
    lines += [f"{summary.folder}/summary.{{png,csv,json}}: {summary.count_states()}"]
    return "\n".join(printable(line, 10_000) for line in lines)


def group_table(groups: list[Group], x: str) -> list[str]:
    """Lines of equal columns; the spreads over trainings only where there are several."""
    repeated = any(len(group.runs) > 1 for group in groups)
    head = ["", x] + (["trainings"] if repeated else [])
    for name, _, _, spread in COLUMNS:
        head += [name, "± s.e.", "s.d."] if spread and repeated else [name]
    rows = [head]
    for group in groups:
        x_text = f"{group.x:.6g}" if isinstance(group.x, float) else as_text(group.x)
        row = [group.line, x_text] + ([str(len(group.runs))] if repeated else [])
        for _, name, digits, spread in COLUMNS:
            row.append(format_number(group.mean.get(name), digits))
            if spread and repeated:
                row.append(format_number(group.standard_error.get(name), digits, "± "))
                row.append(format_number(group.standard_deviation.get(name), digits))
        rows.append(row)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            [
                row[0].ljust(widths[0]),
                *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True)),
            ]
        )
        for row in rows
    ]
    if repeated:
        lines.append("s.e.: standard error of the mean; s.d.: standard deviation over trainings")
    return lines


def format_number(value: float | None, digits: int, sign: str = "") -> str:
    return "–" if value is None else f"{sign}{value:.{digits}f}"
