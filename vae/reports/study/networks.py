"""What the networks themselves show: pictures, and ELBOs image by image, of first trainings."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from vae.analysis.chain import prior_latents
from vae.analysis.refit import ReconstructionErrors
from vae.data.datamodule import ImageDataModule
from vae.models.elbo import noise_per_image
from vae.plots.images import tile
from vae.reports.comparison.measure import IMAGES, SAMPLES, elbo_terms
from vae.reports.comparison.page import picture
from vae.reports.study.ladder import Architecture
from vae.reports.study.measures import ELBO, OVERFIT, OVERFIT_PARTS, REFITTED, TRAIN
from vae.reports.study.sizes import DECODER_ALONE, ENCODER_ALONE
from vae.runs.folder import Run, load_data, load_run

MIN_SIGMA = 1e-6  # in pixel intensity, where reconstructions are exact
SHARED_IMAGES = 1000  # of a split, that say how two architectures' ELBOs go together


class Pictures(NamedTuple):
    """The pictures of one architecture, as data URIs."""

    name: str
    reconstructions: str
    samples: str


class Networks(NamedTuple):
    originals: str  # the picture of the test images
    pictures: list[Pictures]
    # by measure and architecture, nats, [n]: the same images of a split and noise for all
    per_image: dict[str, dict[str, Tensor]]


@torch.no_grad()
def measure_networks(
    architectures: Sequence[Architecture], allow: tuple[str, ...], root: str | None = None
) -> Networks:
    """Opens the first training of each architecture, one at a time."""
    shown = pictured(architectures)
    data: ImageDataModule | None = None
    pictures = {}
    per_image: dict[str, dict[str, Tensor]] = {}
    for architecture in architectures:
        run = load_run(architecture.folders[0], allow=allow)
        if data is None:
            data = load_data(run.config, root, allow)
        for key, values in elbos(run, data).items():
            per_image.setdefault(key, {})[architecture.name] = values
        if architecture in shown:
            reconstructions = run.model.reconstruct(
                data.images("test", IMAGES), torch.Generator().manual_seed(0)
            )
            samples = run.model.mean_image(prior_latents(SAMPLES, run.model.latent_dim))
            pictures[architecture.name] = Pictures(
                architecture.name, picture(tile(reconstructions, 4)), picture(tile(samples, 8))
            )
    assert data is not None
    originals = picture(tile(data.images("test", IMAGES), 4))
    return Networks(originals, [pictures[each.name] for each in shown], per_image)


def elbos(run: Run, data: ImageDataModule) -> dict[str, Tensor]:
    """The ELBO of the first images of both splits, of test also at the sigma that fits these best.

    OVERFIT_PARTS is what it is above the linear optimum's on each image.
    """
    found: dict[str, Tensor] = {}
    optimum = data.best_linear(run.model)
    for key, part in zip((TRAIN.key, ELBO.key), OVERFIT_PARTS, strict=True):
        images = data.images(key.split("/")[0], SHARED_IMAGES)
        noise = noise_per_image(len(images), run.model.latent_dim)
        _, terms = elbo_terms(run, images, noise)
        found[key] = terms["elbo"]
        found[part] = terms["elbo"] - (0.0 if optimum is None else optimum.elbo(images))
        if key == ELBO.key and run.model.sigma is not None and run.model.likelihood.density:
            errors = ReconstructionErrors.from_log_likelihood(
                terms["log_likelihood"], terms["kl"], images[0].numel(), run.model.sigma
            )
            found[REFITTED.key] = errors.elbo(max(errors.sigma, MIN_SIGMA))
    return found


def with_errors(
    architecture: Architecture, per_image: Mapping[str, Mapping[str, Tensor]]
) -> Architecture:
    """The errors over images that no evaluation has go along: of training ELBO and OVERFIT.

    From the spread of the first images and the number of all that the mean is over.
    """
    metrics = []
    for each in architecture.metrics:
        errors = {}
        for key, split in zip((TRAIN.key, *OVERFIT_PARTS), ("train", "train", "test"), strict=True):
            values = per_image.get(key, {}).get(architecture.name)
            number = each.get(f"{split}/images")
            if values is not None and number:
                errors[f"{key}_se"] = values.std().item() / math.sqrt(number)
        parts = [errors.get(f"{key}_se") for key in OVERFIT_PARTS]
        if None not in parts:
            errors[f"{OVERFIT.key}_se"] = math.hypot(*(part or 0.0 for part in parts))
        metrics.append({**each, **errors})
    return replace(architecture, metrics=metrics)


def pictured(architectures: Sequence[Architecture]) -> list[Architecture]:
    """Networks of one size each, what is not fully connected, and the largest one grown alone."""
    chosen = [
        each for each in architectures if each.alike or each.encoder is None or each.decoder is None
    ]
    for alone in (ENCODER_ALONE, DECODER_ALONE):
        chosen += [each for each in architectures if each.ladder == alone][-1:]
    return chosen
