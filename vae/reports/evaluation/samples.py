"""How good prior samples are, in the features of a classifier of this data set."""

from pathlib import Path

import torch
from torch import Tensor

from vae.analysis.classifier import Classifier, accuracy, cached_classifier, in_batches
from vae.analysis.sample_quality import (
    block_errors,
    expected_coverage,
    frechet_distance,
    kernel_distance,
    neighbours,
    squared_mmd,
)
from vae.data.datamodule import ImageDataModule
from vae.models.vae import VAE
from vae.reports.evaluation.metrics import Metrics, Settings, progress, seeded_generator


def load_classifier(
    data: ImageDataModule, settings: Settings, device: torch.device
) -> tuple[Classifier, Metrics]:
    """The classifier of this data set's training split, and how well it does on test."""
    options = settings["classifier"]
    found = cached_classifier(
        Path(options["folder"]),
        data.split_pixels("train").to(device),
        data.split_labels("train"),
        options["epochs"],
        progress=progress("classifier"),
    )
    right = accuracy(found, data.split_pixels("test").to(device), data.split_labels("test"))
    return found, {"classifier/test_accuracy": right}


def samples(
    model: VAE, classifier: Classifier, data: ImageDataModule, settings: Settings
) -> Metrics:
    """Prior samples against test images in the classifier's features, next to the floor: training
    images against test.

    All three sets have the same size. `<key>_floor` is what the training images score.
    """
    options, seed = settings["samples"], settings["seed"]
    test, train = data.split_pixels("test"), data.split_pixels("train")
    n = min(options["n"], len(test), len(train))
    generator = seeded_generator(seed, model.device)
    noisy = options["kind"] == "noisy"
    fake = torch.cat([model.sample(min(1000, n - i), generator, noisy) for i in range(0, n, 1000)])
    if options["kind"] == "clipped":
        fake = fake.clamp(0, 1)
    order = torch.Generator().manual_seed(seed)
    chosen = [
        pixels[torch.randperm(len(pixels), generator=order)[:n]].to(model.device)
        for pixels in (test, train)
    ]
    real, floor, made = (
        in_batches(classifier.features, images).cpu() for images in (*chosen, fake)
    )
    metrics: Metrics = {"samples/n": n, "samples/kind": options["kind"], "samples/k": options["k"]}
    metrics["samples/expected_coverage"] = expected_coverage(n, n, options["k"])
    for name, other in (("", made), ("_floor", floor)):
        found = {
            "fid": frechet_distance(real, other),
            "kid": kernel_distance(real, other, seed=seed),
            **shares(real, other, options["k"]),
        }

        def again(a: Tensor, b: Tensor) -> dict[str, float]:
            distances = {"fid": frechet_distance(a, b), "kid": squared_mmd(a, b)}
            return {**distances, **shares(a, b, min(options["k"], len(a) - 1))}

        errors = block_errors(real, other, again, torch.Generator().manual_seed(seed))
        for key, value in found.items():
            metrics |= {f"samples/{key}{name}": value, f"samples/{key}{name}_se": errors[key]}
    return metrics


def shares(real: Tensor, fake: Tensor, k: int) -> dict[str, float]:
    """The measures by nearest neighbours of features [N, d] and [M, d]."""
    return {key: v.mean().item() for key, v in neighbours(real, fake, k)._asdict().items()}
