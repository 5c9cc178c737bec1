"""The files of a study: study.html, study.json and study.md."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vae.reports.study.comparisons import Comparisons
from vae.reports.study.ladder import Architecture, read_architectures
from vae.reports.study.measures import COMPARED, MEASURES
from vae.reports.study.networks import measure_networks, with_errors
from vae.reports.study.page import render, row
from vae.reports.study.sizes import Layers
from vae.reports.study.verdict import verdict
from vae.runs.errors import RunError
from vae.runs.files import atomic_write, write_json


def write_study(settings: dict[str, Any]) -> tuple[Path, dict[str, list[str]]]:
    """The page's path and the verdict; UserError for runs that make no study."""
    architectures = read_architectures(settings["runs"])
    networks = measure_networks(architectures, tuple(settings["allow"]), settings["data"]["root"])
    architectures = [
        with_errors(architecture, networks.per_image) for architecture in architectures
    ]
    comparisons = Comparisons(architectures, COMPARED, networks.per_image)
    sentences = verdict(comparisons)
    page = render(comparisons, sentences, networks)
    out = Path(settings["out"])
    try:
        out.mkdir(parents=True, exist_ok=True)
        atomic_write(out / "study.html", page)
        atomic_write(out / "study.md", markdown(architectures))
        write_json(out / "study.json", as_json(comparisons, sentences))
    except OSError as error:
        raise RunError(f"out={out}: the page cannot be written ({error.strerror})") from error
    return out / "study.html", sentences


def markdown(architectures: Sequence[Architecture]) -> str:
    """The page's table; the standard deviation over trainings in brackets."""
    shown = [m for m in MEASURES if any(each.measured(m.key) for each in architectures)]
    heads = ["architecture", "parameters", "trainings", *(measure.title for measure in shown)]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for architecture in architectures:
        cells = [c.text + (f" ({c.below})" if c.below else "") for c in row(architecture, shown)]
        lines.append("| " + " | ".join([architecture.name, *cells]) + " |")
    return "\n".join(lines) + "\n"


def as_json(comparisons: Comparisons, sentences: dict[str, list[str]]) -> dict[str, Any]:
    """Verdict, means with both errors, and every planned comparison.

    Of a measure with a target the differences are those of the distances from it.
    """
    return {
        "verdict": sentences,
        "targets": {key: value for key, value in comparisons.targets.items() if value is not None},
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
                "name": architecture.name,
                "ladder": architecture.ladder,
                "encoder": depth_and_width(architecture.encoder),
                "decoder": depth_and_width(architecture.decoder),
                "parameters": architecture.parameters,
                "folders": [str(folder) for folder in architecture.folders],
                "metrics": {
                    m.key: known._asdict()
                    for m in MEASURES
                    if (known := architecture.measured(m.key))
                },
            }
            for architecture in comparisons.architectures
        ],
    }


def depth_and_width(layers: Layers | None) -> list[int | None] | None:
    """[2, 64]; [2, null] where the widths differ, null for what is not fully connected."""
    return None if layers is None else [layers.depth, layers.width]
