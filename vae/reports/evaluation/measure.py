"""The evaluation of one run, part by part."""

import time
from pathlib import Path

import torch

from vae.analysis.classifier import Classifier
from vae.data.datamodule import ImageDataModule
from vae.reports.evaluation.chain import chains
from vae.reports.evaluation.checks import bdmc, gap, predictive_check, refit
from vae.reports.evaluation.latents import collapse
from vae.reports.evaluation.likelihood import all_images, bits_per_dimension, likelihoods
from vae.reports.evaluation.load import DataCache, identity, open_run
from vae.reports.evaluation.metrics import Metrics, Settings, means, paired, stopwatch
from vae.reports.evaluation.samples import load_classifier, samples
from vae.runs.folder import Run


class Evaluator:
    """Evaluates runs one after the other; they share data and classifier."""

    def __init__(self, settings: Settings, against: Path | None) -> None:
        self.settings = settings
        self.data = DataCache(settings)
        self.other = None if against is None else open_run(against, settings)
        self.classifiers: dict[int, tuple[Classifier, Metrics]] = {}  # by the data's id

    def evaluate(self, folder: Path) -> Metrics:
        """All metrics of the run in this folder, flat keys as docs/metrics.md lists them."""
        started = time.perf_counter()
        run, settings = open_run(folder, self.settings), self.settings
        data = self.data.load(run)
        model = run.model
        metrics: Metrics = {
            "run": str(folder),
            "model": model.name,
            "data": run.config.data.get("name"),
            "latent_dim": model.latent_dim,
            "likelihood": model.likelihood.label,
            "seed": settings["seed"],
            **identity(folder, settings),
        }
        times: Metrics = {}
        with stopwatch(times, "likelihood"):
            metrics |= self.likelihood(run, data, times)
        metrics |= collapse(model, data, settings)
        # The chain and prior samples, both through a classifier's eyes
        if settings["chain"]["chains"] or settings["samples"]["n"]:
            with stopwatch(times, "classifier"):
                classifier, found = self.classifier(data, model.device)
            metrics |= found
            if settings["chain"]["chains"]:
                with stopwatch(times, "chain"):
                    metrics |= chains(model, classifier, settings)
            if settings["samples"]["n"]:
                with stopwatch(times, "samples"):
                    metrics |= samples(model, classifier, data, settings)
        return metrics | times | {"time/seconds": time.perf_counter() - started}

    def likelihood(self, run: Run, data: ImageDataModule, times: Metrics) -> Metrics:
        """How likely the test images are, and what that number leaves open."""
        model, images, settings = run.model, data.images("test"), self.settings
        # 1. One value per image, so that two runs compare image by image
        values, metrics = likelihoods(model, images, settings)
        with stopwatch(times, "gap"):
            gap_values, found = gap(model, images, settings)
        metrics |= found
        metrics |= means(values | gap_values)
        metrics |= all_images(values | gap_values, metrics, images)
        if data.transform == "dequantised" and model.likelihood.density:
            metrics |= bits_per_dimension(metrics, images[0].numel())
        if self.other is not None:
            metrics["against"] = str(self.other.folder)
            others, _ = likelihoods(self.other.model, images, settings)
            metrics |= paired(values, others)
        # 2. Another sigma; images of the model itself
        metrics |= refit(model, data, settings)
        with stopwatch(times, "ppc"):
            metrics |= predictive_check(model, images, values | gap_values, settings)
        with stopwatch(times, "bdmc"):
            metrics |= bdmc(model, settings)
        return metrics

    def classifier(self, data: ImageDataModule, device: torch.device) -> tuple[Classifier, Metrics]:
        if id(data) not in self.classifiers:
            self.classifiers = {id(data): load_classifier(data, self.settings, device)}
        return self.classifiers[id(data)]
