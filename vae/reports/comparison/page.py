"""The comparison as one HTML file: pictures, charts and videos inside it, nothing fetched from
anywhere."""

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

from vae.analysis.latents import COLLAPSE_THRESHOLD, INACTIVE_THRESHOLD
from vae.data.datamodule import SPLITS, ImageDataModule
from vae.plots.images import tile, uri
from vae.plots.video import MILLISECONDS, write_mp4
from vae.reports.comparison.charts import (
    colour,
    curves,
    drift_chart,
    histogram,
    size_chart,
    spectrum_chart,
)
from vae.reports.comparison.measure import Compared
from vae.reports.comparison.selection import IMAGES, SAMPLES, STEPS
from vae.reports.comparison.tables import at_a_glance, evaluation_table, finals, nats

STRIP = (0, 1, 3, 10, 30, STEPS)  # steps of the chain that print


def render(
    compared: Sequence[Compared],
    data: ImageDataModule,
    words: dict[str, list[str]],
    limits: list[str],
) -> str:
    """The page as text. Whatever comes from a run (names, settings, evaluations) is escaped by the
    template."""
    folder = Path(__file__).parent
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = (folder / "page.js").read_text(encoding="utf-8").strip()
    runs = [shown(each, i, compared) for i, each in enumerate(compared)]
    return environment.get_template("page.html").render(
        runs=runs,
        verdict=words,
        cautions=limits,
        at_a_glance=at_a_glance(compared),
        splits={split: finals(compared, split) for split in SPLITS},
        evaluation=evaluation_table(compared),
        curves={"ELBO": curves(compared, "elbo"), "KL": curves(compared, "kl")},
        sizes=size_chart(compared)
        if len(compared) > 2 and len({each.latent_dim for each in compared}) > 1
        else None,
        spectrum=spectrum_chart(compared),
        drift=drift_chart(compared),
        drifts=[[nats(each.course.drifts[t]) for t in STRIP] for each in compared],
        originals=picture(tile(data.images("test", IMAGES), 4)),
        data_name=compared[0].run.config.data.name,
        counts={split: len(data.index[split]) for split in SPLITS},
        oracle=any(each.oracle for each in compared),
        likelihoods=sorted({each.likelihood for each in compared}),
        latent_dims=sorted({each.latent_dim for each in compared}),
        collapsed=COLLAPSE_THRESHOLD,
        inactive=INACTIVE_THRESHOLD,
        steps=STEPS,
        strip=STRIP,
        samples=SAMPLES,
        rate=1000 / MILLISECONDS,
        written=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def shown(each: Compared, place: int, compared: Sequence[Compared]) -> dict[str, Any]:
    frames = each.course.frames
    return {
        "name": each.name,
        "colour": colour(place),
        "folder": str(each.run.folder),
        "active": each.active,
        "latent_dim": each.latent_dim,
        "figures": each.figures,
        "linear": each.linear,
        "notes": each.notes,
        "evaluated": bool(each.evaluation),
        "reconstructions": picture(tile(each.reconstructions, 4)),
        "samples": picture(tile(each.samples, 8)),
        "histogram": histogram(each, colour(place), compared),
        "video": video([tile(frame, 8) for frame in frames]),
        "strip": picture(np.concatenate([row(frames[t][:8]) for t in STRIP])),
        "finite_steps": each.course.finite_steps,
        "oracle_collapsed": each.oracle.collapsed if each.oracle else None,
    }


# --- pictures and videos ---------------------------------------------------------------------------------------


def picture(pixels: np.ndarray) -> str:
    """Grey pixels [h, w] as they are; the browser enlarges them."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", optimize=True)
    return uri("image/png", buffer.getvalue())


def row(images: Tensor) -> np.ndarray:
    """Images [n, 1, h, w] side by side, with a white gap below."""
    return np.pad(tile(images, len(images)), ((0, 2), (0, 0)), constant_values=255)


def video(frames: list[np.ndarray]) -> str:
    """Frames [h, w] as H.264. At the size of the images themselves a chain is a few hundred kB."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "chain.mp4"
        write_mp4(path, np.stack(frames))
        return uri("video/mp4", path.read_bytes())
