"""An entry of a comparison: the trainings of one setting, with means and errors over them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vae.data.datamodule import ImageDataModule
from vae.reports.comparison.measure import Training, measure
from vae.reports.comparison.selection import group_runs
from vae.reports.comparison.statistics import Difference, Measured, difference, standard_error
from vae.runs.errors import UserError
from vae.runs.files import finite_number
from vae.runs.folder import Run


@dataclass(frozen=True)
class Entry:
    """Trainings that differ in their seed alone; pictures are those of the first."""

    name: str
    trainings: list[Training]

    @property
    def first(self) -> Training:
        return self.trainings[0]

    @property
    def latent_dim(self) -> int:
        return self.first.latent_dim

    @property
    def likelihood(self) -> str:
        return self.first.likelihood

    def per_image(self, key: str) -> Tensor:
        """Mean over the trainings of `<split>/<term>` of each image, float64 [N]."""
        return torch.stack([each.per_image[key] for each in self.trainings]).mean(0)

    def has(self, key: str) -> bool:
        """Whether all trainings have this metric, here or in evaluation.json."""
        return all(value_of(each, key) is not None for each in self.trainings)

    def metric(self, key: str) -> Measured:
        """A metric of metrics.json, of this page or of evaluation.json, over the trainings.

        Its error is over the images of the mean over trainings where there are values by image,
        otherwise the mean of the trainings' own standard errors: they share their test images, so
        these do not average out. Raises KeyError where a training lacks it.
        """
        values = [value_of(each, key) for each in self.trainings]
        if None in values:
            raise KeyError(key)
        if key in self.first.per_image:
            se: float | None = standard_error(self.per_image(key))
        else:
            errors = [value_of(each, f"{key}_se") for each in self.trainings]
            known = [error for error in errors if error is not None]
            se = sum(known) / len(known) if len(known) == len(errors) else None
        return Measured.from_values([value for value in values if value is not None], se)

    def mean(self, key: str) -> float:
        return self.metric(key).mean


def learns_sigma(entry: Entry) -> bool:
    """Whether sigma is learned with the networks, so that each model has its own."""
    return bool(getattr(entry.first.run.model.likelihood, "learned", False))


def value_of(training: Training, key: str) -> float | None:
    """A finite number from the metrics, or from evaluation.json where the metrics lack it."""
    return finite_number(training.metrics.get(key, training.evaluation.get(key)))


def compare(a: Entry, b: Entry, key: str) -> Difference:
    """b − a in a metric; paired over the images where both have values by image."""
    paired_se = None
    if key in a.first.per_image and key in b.first.per_image:
        paired_se = standard_error(b.per_image(key) - a.per_image(key))
    return difference(a.metric(key), b.metric(key), paired_se)


def measure_entries(runs: Sequence[Run], data: ImageDataModule) -> list[Entry]:
    """All metrics and pictures of the runs on the images of `data`, grouped by setting.

    Raises UserError for runs whose ELBO is not finite.
    """
    names, groups = group_runs(runs)
    spectrum = data.spectrum()
    measured = iter(measure([run for group in groups for run in group], data, spectrum))
    entries = [
        Entry(name, [next(measured) for _ in group])
        for name, group in zip(names, groups, strict=True)
    ]
    problems = [
        f"runs: the test ELBO of {training.run.folder} is not finite: its training diverged"
        for entry in entries
        for training in entry.trainings
        if value_of(training, "test/elbo") is None
    ]
    if problems:
        raise UserError(*problems)
    return entries
