"""The summary files of a sweep."""

from pathlib import Path

from vae.plots.images import png
from vae.reports.sweep.chart import summary_figure
from vae.reports.sweep.groups import Summary, read
from vae.reports.sweep.rate_distortion import has_rate_distortion, rate_distortion_figure
from vae.reports.sweep.table import as_json, write_csv
from vae.runs.files import atomic_write, write_json


def summarise(folder: Path, x: str | None = None) -> Summary:
    """Write summary.csv (a row a run), groups.csv (a row a group of trainings), summary.json and
    summary.png into `folder`, and rate_distortion.png where sigma or beta was swept.

    `x` is the swept key on the horizontal axis; without it model.latent_dim, or the first number
    that was swept. Raises UserError for a folder without runs and for an `x` that was not swept.
    """
    summary = read(folder, x)
    write_csv(folder, summary)
    write_json(folder / "summary.json", as_json(summary))
    atomic_write(folder / "summary.png", png(summary_figure(summary)))
    if has_rate_distortion(summary):
        atomic_write(folder / "rate_distortion.png", png(rate_distortion_figure(summary)))
    return summary
