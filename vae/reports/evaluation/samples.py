"""How good prior samples are, in the features of a classifier of this data set."""

from pathlib import Path

import torch

from vae.analysis.classifier import Classifier, accuracy, cached_classifier, in_batches
from vae.analysis.sample_quality import (
    expected_coverage,
    frechet_distance,
    frechet_error,
    kernel_distance,
    neighbours,
)
from vae.data.datamodule import ImageDataModule
from vae.models.vae import VAE
from vae.reports.evaluation.metrics import Metrics, Settings, means, progress, seeded_generator


def load_classifier(
    data: ImageDataModule, settings: Settings, device: torch.device
) -> tuple[Classifier, Metrics]:
    """The classifier of this data set's training split, and how well it does on test."""
    options = settings["classifier"]
    train, labels = data.split_pixels("train").to(device), data.labels["train"][data.index["train"]]
    folder = Path(options["folder"])
    found = cached_classifier(
        folder, train, labels, options["epochs"], progress=progress("classifier")
    )
    right = accuracy(
        found, data.split_pixels("test").to(device), data.labels["test"][data.index["test"]]
    )
    return found, {"classifier/test_accuracy": right}


def samples(
    model: VAE, classifier: Classifier, data: ImageDataModule, settings: Settings
) -> Metrics:
    """Prior samples against test images in the classifier's features, beside the floor: training
    images against test.

    All three sets have the same size. `<key>_floor` is what a perfect model would score.
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
        kid, kid_se = kernel_distance(real, other, seed=seed)
        metrics |= {
            f"samples/fid{name}": frechet_distance(real, other),
            f"samples/fid{name}_se": frechet_error(
                real, other, torch.Generator().manual_seed(seed)
            ),
            f"samples/kid{name}": kid,
            f"samples/kid{name}_se": kid_se,
        }
        found = neighbours(real, other, options["k"])
        metrics |= means({f"samples/{key}{name}": value for key, value in found._asdict().items()})
    return metrics
