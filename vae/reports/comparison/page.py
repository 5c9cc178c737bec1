"""The comparison as one HTML file: pictures, charts and videos inside it, nothing fetched."""

import base64
import hashlib
import io
import tempfile
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from PIL import Image
from torch import Tensor

from vae.analysis.chain import CHAINS
from vae.analysis.latents import COLLAPSE_THRESHOLD, INACTIVE_THRESHOLD
from vae.data.datamodule import SPLITS, ImageDataModule
from vae.plots.images import tile, uri
from vae.plots.palette import run_colour
from vae.plots.video import MILLISECONDS, write_mp4
from vae.reports.comparison import charts, tables
from vae.reports.comparison.entries import Entry
from vae.reports.comparison.measure import IMAGES, SAMPLES, STEPS
from vae.reports.comparison.statistics import LEVEL

STRIP = (0, 1, 3, 10, 30, STEPS)  # steps of the chain that print


def render_template(
    template: str,
    entries: Sequence[dict[str, Any]],
    folders: Sequence[Path] = (),
    **values: Any,
) -> str:
    """A page as text; whatever comes from a run (names, settings, evaluations) is escaped.

    `entries` are dictionaries with at least a name and a colour; `folders` have further templates.
    """
    folder = Path(__file__).parent
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([folder, *folders]),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = (folder / "page.js").read_text(encoding="utf-8").strip()
    return environment.get_template(template).render(
        entries=entries,
        level=f"{LEVEL:.0%}",
        written=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        **values,
    )


def render(
    entries: Sequence[Entry],
    data: ImageDataModule,
    verdict: dict[str, list[str]],
    cautions: list[str],
) -> str:
    """The comparison page as text."""
    kinds = {t.evaluation.get("samples/kind") for entry in entries for t in entry.trainings}
    latent_dims = sorted({entry.latent_dim for entry in entries})
    return render_template(
        "page.html",
        [entry_values(entry, i, entries) for i, entry in enumerate(entries)],
        verdict=verdict,
        cautions=cautions,
        several=any(len(entry.trainings) > 1 for entry in entries),
        # tables
        at_a_glance=tables.at_a_glance(entries),
        sigmas=tables.sigma_table(entries),
        splits={split: tables.finals(entries, split) for split in SPLITS},
        evaluation=tables.evaluation_table(entries),
        drifts=[[tables.nats(entry.first.trace.drifts[t]) for t in STRIP] for entry in entries],
        # charts
        curves={"ELBO": charts.curves(entries, "elbo"), "KL": charts.curves(entries, "kl")},
        sizes=charts.size_chart(entries) if len(entries) > 2 and len(latent_dims) > 1 else None,
        spectrum=charts.spectrum_chart(entries),
        drift=charts.drift_chart(entries),
        # what the texts name
        originals=picture(tile(data.images("test", IMAGES), 4)),
        data_name=entries[0].first.run.config.data.name,
        counts={split: len(data.index[split]) for split in SPLITS},
        oracle=any(entry.first.oracle for entry in entries),
        likelihoods=sorted({entry.likelihood for entry in entries}),
        latent_dims=latent_dims,
        sample_kinds=sorted(str(kind) for kind in kinds - {None}),
        collapsed=COLLAPSE_THRESHOLD,
        inactive=INACTIVE_THRESHOLD,
        images=IMAGES,
        samples=SAMPLES,
        chains=CHAINS,
        steps=STEPS,
        strip=STRIP,
        rate=1000 / MILLISECONDS,
    )


def entry_values(entry: Entry, place: int, entries: Sequence[Entry]) -> dict[str, Any]:
    """What the template shows of one entry; pictures are those of its first training."""
    first, frames = entry.first, entry.first.trace.frames
    return {
        "name": entry.name,
        "colour": run_colour(place),
        "runs": [
            {
                "folder": str(training.run.folder),
                "seed": training.seed,
                "notes": training.notes,
                "evaluated": bool(training.evaluation),
            }
            for training in entry.trainings
        ],
        "latents": latents_caption(entry),
        "chain": chain_caption(entry),
        "reconstructions": picture(tile(first.reconstructions, 4)),
        "samples": picture(tile(first.samples, 8)),
        "histogram": charts.histogram(entry, place, entries),
        "video": video([tile(frame, 8) for frame in frames]),
        "strip": picture(np.concatenate([row(frames[t][:8]) for t in STRIP])),
    }


def latents_caption(entry: Entry) -> str:
    metrics, oracle = entry.first.metrics, entry.first.oracle
    used = entry.latent_dim - metrics["test/collapsed"]
    text = f"{used:.0f} of {entry.latent_dim} in use; collapsed {metrics['batch/collapsed']:.0f} "
    text += f"(256 images), {metrics['test/collapsed']:.0f} (test split), "
    text += f"inactive {metrics['test/inactive']:.0f}"
    return text + (f"; closed form {oracle.collapsed}" if entry.first.linear and oracle else "")


def chain_caption(entry: Entry) -> str:
    trace = entry.first.trace
    text = f"not finite from step {trace.finite_steps} on" if trace.diverged else "finite"
    if trace.spectral_radius is not None:
        text += f"; spectral radius {trace.spectral_radius:.3f} (exact)"
    elif trace.local_gain is not None:
        text += f"; median local gain {trace.local_gain:.3f}"
    if trace.diverged:
        return text
    return f"{text}; nats from the prior: {tables.limit_cell(entry).text}"


# --- pictures and videos ----------------------------------------------------------------------


def picture(pixels: np.ndarray) -> str:
    """Pixels [h, w] or [h, w, 3] as they are; the browser enlarges them."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", optimize=True)
    return uri("image/png", buffer.getvalue())


def row(images: Tensor) -> np.ndarray:
    """Images [n, C, h, w] side by side, with a white gap below."""
    pixels = tile(images, len(images))
    gap = ((0, 2), (0, 0), (0, 0))[: pixels.ndim]
    return np.pad(pixels, gap, constant_values=255)


def video(frames: list[np.ndarray]) -> str:
    """Frames as H.264. At the size of the images themselves a chain is a few hundred kB."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "chain.mp4"
        write_mp4(path, np.stack(frames))
        return uri("video/mp4", path.read_bytes())
