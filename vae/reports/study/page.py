"""study.html: the comparison's page machinery around charts, pictures and words of a study."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vae.plots.images import tile
from vae.plots.palette import run_colour
from vae.reports.comparison.measure import IMAGES, SAMPLES
from vae.reports.comparison.page import picture, render_template
from vae.reports.comparison.statistics import Measured
from vae.reports.comparison.tables import NOTHING, Cell, plain, spread
from vae.reports.study.charts import ladders, measure_chart
from vae.reports.study.ladder import LINEAR, Point
from vae.reports.study.measures import MEASURES
from vae.runs.folder import load_data, load_run


@dataclass(frozen=True)
class Rung:
    """The pictures of one architecture, of its first training."""

    name: str
    reconstructions: str
    samples: str


def render(points: Sequence[Point], sentences: dict[str, list[str]], allow: tuple[str, ...]) -> str:
    """The page as text."""
    rungs, originals = pictures(points, allow)
    shown = [m for m in MEASURES if any(p.measured(m.key) for p in points)]
    first = points[0].metrics[0]
    return render_template(
        "study.html",
        [
            {"name": ladder, "colour": run_colour(place)}
            for place, ladder in enumerate(ladders(points))
        ],
        folders=[Path(__file__).parent],
        points=points,
        trainings=sorted({len(point.folders) for point in points}),
        verdict=sentences,
        charts=[(m, measure_chart(points, m), caption(points, m)) for m in shown],
        columns=[measure.title for measure in shown],
        rows=[(point, row(point, shown)) for point in points],
        rungs=rungs,
        originals=originals,
        images=IMAGES,
        samples=SAMPLES,
        test_images=int(first.get("test/images", 0)),
    )


def row(point: Point, shown: Sequence[Any]) -> list[Cell]:
    """Parameters, trainings and every measure with both errors."""
    cells = [
        Cell(f"{point.parameters:,}", point.parameters),
        Cell(str(len(point.folders)), len(point.folders)),
    ]
    return cells + [measured_cell(point.measured(measure.key)) for measure in shown]


def measured_cell(measured: Measured | None) -> Cell:
    if measured is None:
        return NOTHING
    return plain(measured.mean, measured.se)._replace(below=spread(measured))


def caption(points: Sequence[Point], measure: Any) -> str:
    """What is dashed in a chart."""
    floor = points[0].measured(measure.floor) if measure.floor else None
    text = f"dashes: {measure.floor_name}, {floor.mean:.4g}" if floor is not None else ""
    if (ceiling := measure.ceiling(points[0])) is not None:
        text += f"; no VAE at this sigma exceeds {ceiling:.1f}"
    return text


def pictures(points: Sequence[Point], allow: tuple[str, ...]) -> tuple[list[Rung], str]:
    """Reconstructions and samples of the ladder of depths at its middle width, and the originals.

    Images and latents are the same for all. One model is in memory at a time.
    """
    rungs, originals = [], ""
    data: Any = None
    for point in ladder_of_depths(points):
        run = load_run(point.folders[0], allow=allow)
        if data is None:
            data = load_data(run.config, allow=allow)
            originals = picture(tile(data.images("test", IMAGES), 4))
        generator = torch.Generator().manual_seed(0)
        z = torch.randn(SAMPLES, run.model.latent_dim, generator=generator)
        with torch.no_grad():
            reconstructions = run.model.reconstruct(data.images("test", IMAGES))
            samples = run.model.mean_image(z)
        rungs.append(Rung(point.name, picture(tile(reconstructions, 4)), picture(tile(samples, 8))))
    return rungs, originals


def ladder_of_depths(points: Sequence[Point]) -> list[Point]:
    """The linear VAE, every depth at the middle width, and what is not fully connected."""
    alike = [p for p in points if p.alike and p.encoder and p.encoder.depth]
    widths = sorted({p.encoder.width for p in alike if p.encoder})
    middle = widths[len(widths) // 2] if widths else 0
    chosen = [p for p in alike if p.encoder and p.encoder.width == middle]
    others = [p for p in points if p.encoder is None]
    return [*(p for p in points if p.ladder == LINEAR), *chosen, *others]
