"""study.html: the comparison's page machinery around charts, pictures and words of a study."""

from collections.abc import Sequence
from pathlib import Path

from vae.plots.palette import run_colour
from vae.reports.comparison.measure import IMAGES
from vae.reports.comparison.measure import SAMPLES as SAMPLED
from vae.reports.comparison.page import render_template
from vae.reports.comparison.statistics import Measured
from vae.reports.comparison.tables import NOTHING, Cell
from vae.reports.study.charts import ladders, measure_chart
from vae.reports.study.comparisons import PAGE_LEVEL, Comparisons
from vae.reports.study.effects import MARK
from vae.reports.study.ladder import Architecture
from vae.reports.study.measures import MEASURES, SAMPLES, Measure
from vae.reports.study.networks import Networks
from vae.reports.study.words import with_error


def render(comparisons: Comparisons, sentences: dict[str, list[str]], networks: Networks) -> str:
    """The page as text."""
    architectures = comparisons.architectures
    shown = [m for m in MEASURES if any(each.measured(m.key) for each in architectures)]
    first = architectures[0].metrics[0]
    return render_template(
        "study.html",
        [
            {"name": ladder, "colour": run_colour(place)}
            for place, ladder in enumerate(ladders(architectures))
        ],
        folders=[Path(__file__).parent],
        architectures=architectures,
        trainings=sorted({len(architecture.folders) for architecture in architectures}),
        verdict=sentences,
        comparisons=comparisons.number,
        measures=len(comparisons.measures),
        page_level=f"{PAGE_LEVEL:.0%}",
        mark=MARK,
        charts=[
            (m, better(comparisons, m), measure_chart(architectures, m), dashes(architectures, m))
            for m in shown
        ],
        tables=[
            (
                caption,
                [m.title for m in part],
                [(architecture, row(architecture, part)) for architecture in architectures],
            )
            for caption, part in (
                ("ELBO, latents and chain", [m for m in shown if m not in SAMPLES]),
                ("Samples", [m for m in shown if m in SAMPLES]),
            )
            if part
        ],
        pictures=networks.pictures,
        originals=networks.originals,
        images=IMAGES,
        samples=SAMPLED,
        test_images=int(first.get("test/images", 0)),
    )


def row(architecture: Architecture, shown: Sequence[Measure]) -> list[Cell]:
    """Parameters, trainings and every measure with both errors."""
    cells = [
        Cell(f"{architecture.parameters:,}", architecture.parameters),
        Cell(str(len(architecture.folders)), len(architecture.folders)),
    ]
    return cells + [measured_cell(architecture.measured(measure.key)) for measure in shown]


def measured_cell(measured: Measured | None) -> Cell:
    """The mean with its standard error, and the standard deviation over trainings below it."""
    if measured is None:
        return NOTHING
    below = "" if measured.sd is None else f"sd {measured.sd:.2g}"
    return Cell(with_error(measured.mean, measured.se), measured.mean, below)


def better(comparisons: Comparisons, measure: Measure) -> str:
    """Which values of a measure are better, for its chart; empty for one that is only shown."""
    target = comparisons.target(measure)
    if target is not None:
        return f"best at {target:.3g}"
    return {1: "higher is better", -1: "lower is better"}.get(measure.better, "")


def dashes(architectures: Sequence[Architecture], measure: Measure) -> str:
    """What is dashed in a chart."""
    floor = architectures[0].measured(measure.floor) if measure.floor else None
    text = f"dashes: {measure.floor_name}, {floor.mean:.4g}" if floor is not None else ""
    if (ceiling := measure.ceiling(architectures[0])) is not None:
        text += f"; no VAE at this sigma exceeds {ceiling:.1f}"
    return text
