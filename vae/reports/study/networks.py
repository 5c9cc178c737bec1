"""What the networks themselves show: pictures, and ELBOs image by image, of first trainings."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from vae.analysis.chain import prior_latents
from vae.data.datamodule import ImageDataModule
from vae.models.elbo import noise_per_image
from vae.plots.images import tile
from vae.reports.comparison.measure import IMAGES, SAMPLES, elbo_terms
from vae.reports.comparison.page import picture
from vae.reports.comparison.sigma import refit
from vae.reports.study.ladder import DECODER_ALONE, ENCODER_ALONE, Point
from vae.reports.study.measures import ELBO, REFITTED
from vae.runs.folder import Run, load_data, load_run

SHARED_IMAGES = 1000  # test images that say how two architectures' ELBOs go together


class Rung(NamedTuple):
    """The pictures of one architecture, as data URIs."""

    name: str
    reconstructions: str
    samples: str


class Networks(NamedTuple):
    originals: str  # the picture of the test images
    rungs: list[Rung]
    # by measure and architecture, nats, [n]: the same test images and noise for all
    per_image: dict[str, dict[str, Tensor]]


@torch.no_grad()
def look(points: Sequence[Point], allow: tuple[str, ...]) -> Networks:
    """Opens the first training of each architecture, one at a time."""
    shown = ladder(points)
    data: ImageDataModule | None = None
    rungs = {}
    per_image: dict[str, dict[str, Tensor]] = {ELBO.key: {}, REFITTED.key: {}}
    for point in points:
        run = load_run(point.folders[0], allow=allow)
        if data is None:
            data = load_data(run.config, allow=allow)
        for key, values in elbos(run, data).items():
            per_image[key][point.name] = values
        if point in shown:
            reconstructions = run.model.reconstruct(
                data.images("test", IMAGES), torch.Generator().manual_seed(0)
            )
            samples = run.model.mean_image(prior_latents(SAMPLES, run.model.latent_dim))
            pictures = picture(tile(reconstructions, 4)), picture(tile(samples, 8))
            rungs[point.name] = Rung(point.name, *pictures)
    assert data is not None
    originals = picture(tile(data.images("test", IMAGES), 4))
    return Networks(originals, [rungs[point.name] for point in shown], per_image)


def elbos(run: Run, data: ImageDataModule) -> dict[str, Tensor]:
    """The ELBO of the first test images, as trained and at the sigma that fits these best."""
    images = data.images("test", SHARED_IMAGES)
    noise = noise_per_image(len(images), run.model.latent_dim)
    _, terms = elbo_terms(run, images, noise)
    found = {ELBO.key: terms["elbo"]}
    if run.model.sigma is not None and run.model.likelihood.density:
        both = {
            f"{split}/{key}": values for split in ("val", "test") for key, values in terms.items()
        }
        found[REFITTED.key] = refit(run.model.sigma, run.model.image_shape, both).elbo["test"]
    return found


def ladder(points: Sequence[Point]) -> list[Point]:
    """Networks of one size each, what is not fully connected, and the largest one grown alone."""
    chosen = [p for p in points if p.alike or p.encoder is None or p.decoder is None]
    for alone in (ENCODER_ALONE, DECODER_ALONE):
        chosen += [point for point in points if point.ladder == alone][-1:]
    return chosen
