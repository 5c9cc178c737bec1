"""The files of a study: study.html, study.json and study.md."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vae.reports.study.comparisons import Comparisons
from vae.reports.study.ladder import Point, read_points
from vae.reports.study.measures import COMPARED, MEASURES
from vae.reports.study.networks import look, with_errors
from vae.reports.study.page import render, row
from vae.reports.study.verdict import verdict
from vae.runs.errors import RunError
from vae.runs.files import atomic_write, write_json


def write_study(settings: dict[str, Any]) -> tuple[Path, dict[str, list[str]]]:
    """The page's path and the verdict; UserError for runs that make no study."""
    points = read_points(settings["runs"])
    networks = look(points, tuple(settings["allow"]), settings["data"]["root"])
    points = [with_errors(point, networks.per_image) for point in points]
    comparisons = Comparisons(points, COMPARED, networks.per_image)
    sentences = verdict(comparisons)
    page = render(comparisons, sentences, networks)
    out = Path(settings["out"])
    try:
        out.mkdir(parents=True, exist_ok=True)
        atomic_write(out / "study.html", page)
        atomic_write(out / "study.md", markdown(points))
        write_json(out / "study.json", as_json(comparisons, sentences))
    except OSError as error:
        raise RunError(f"out={out}: the page cannot be written ({error.strerror})") from error
    return out / "study.html", sentences


def markdown(points: Sequence[Point]) -> str:
    """The page's table; the standard deviation over trainings in brackets."""
    shown = [m for m in MEASURES if any(p.measured(m.key) for p in points)]
    heads = ["architecture", "parameters", "trainings", *(measure.title for measure in shown)]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for point in points:
        cells = [c.text + (f" ({c.below})" if c.below else "") for c in row(point, shown)]
        lines.append("| " + " | ".join([point.name, *cells]) + " |")
    return "\n".join(lines) + "\n"


def as_json(comparisons: Comparisons, sentences: dict[str, list[str]]) -> dict[str, Any]:
    """Verdict, means with both errors, and every planned comparison."""
    return {
        "verdict": sentences,
        "comparisons": {
            measure.key: [
                {
                    "from": a.name,
                    "to": b.name,
                    "difference": difference.mean,
                    "se": difference.se,
                    "p": None if math.isnan(difference.p) else difference.p,
                    "decided": decided,
                }
                for a, b, difference, decided in comparisons.families[measure.key].values()
            ]
            for measure in comparisons.measures
        },
        "points": [
            {
                "name": point.name,
                "ladder": point.ladder,
                "encoder": point.encoder,
                "decoder": point.decoder,
                "parameters": point.parameters,
                "folders": [str(folder) for folder in point.folders],
                "metrics": {
                    m.key: known._asdict() for m in MEASURES if (known := point.measured(m.key))
                },
            }
            for point in comparisons.points
        ],
    }
