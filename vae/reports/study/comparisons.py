"""Every comparison of two architectures of a study, so that their number counts against each.

Three trainings say little about their own spread. Where those of an architecture happen to lie
closer together than is typical of the study's architectures, the typical variance stands in; where
they lie wider apart, their own counts, with few degrees of freedom (a moderated t-test, in the
manner of Smyth 2004). Where no architecture differs and all vary alike, none of 2,000 simulated
studies with three trainings of 17 architectures claims a difference at the page's level; where
their standard deviations differ by a factor of e, 4 in 100 do.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

import torch
from torch import Tensor

from vae.reports.comparison.statistics import LEVEL, Difference, Measured, two_sided_p
from vae.reports.study.ladder import LINEAR, Point
from vae.reports.study.measures import ELBO, LOG_P, Measure

MODERATION = 4  # degrees of freedom that the other architectures lend to a spread of one's own


class Spread(NamedTuple):
    """The variance over trainings that is typical of a measure."""

    variance: float
    freedom: float  # degrees of freedom; 0 where no architecture was trained twice


def typical_spread(measured: Sequence[Measured]) -> Spread:
    """From the median of the variances over trainings, which single outliers do not move.

    The median of a variance estimate with k degrees of freedom is about (1 − 2/(9k))³ times what it
    estimates (Wilson and Hilferty 1931); its own error is that of about half as many.
    """
    known = [(m.sd**2, m.trainings - 1) for m in measured if m.sd is not None]
    if not known:
        return Spread(0.0, 0.0)
    scaled = [variance / (1 - 2 / (9 * k)) ** 3 for variance, k in known]
    return Spread(statistics.median(scaled), max(1.0, sum(k for _, k in known) / 2))


def moderated_difference(
    a: Measured, b: Measured, typical: Spread, covariance: float = 0.0
) -> Difference:
    """b − a with its error over trainings and over images or samples.

    `covariance` is that of the two estimates, which share their images. p is NaN where one was
    trained once.
    """
    mean, counts = b.mean - a.mean, (a.trainings, b.trainings)
    if a.sd is None or b.sd is None:
        return Difference(mean, None, math.nan, False, counts)
    # 1. The variance: of the estimates, and of the mean over trainings.
    total = max(0.0, (a.se or 0.0) ** 2 + (b.se or 0.0) ** 2 - 2 * covariance)
    spread = 0.0  # Σ v²/k, for the degrees of freedom; those of the estimates are infinite
    usual = 0.0
    for each in (a, b):
        own, n = (each.sd or 0.0) ** 2, each.trainings
        usual += typical.variance / n
        excess = max(0.0, own - typical.variance) / n
        total += typical.variance / n + excess
        spread += excess**2 / (n - 1 + MODERATION)
    # 2. Both share the typical variance, so its error does not average out.
    spread += usual**2 / typical.freedom if typical.freedom else 0.0
    if total == 0:
        return Difference(mean, 0.0, 1.0 if mean == 0 else 0.0, True, counts)
    se = math.sqrt(total)
    freedom = total**2 / spread if spread else math.inf
    return Difference(mean, se, two_sided_p(mean / se, freedom), True, counts)


class Comparisons:
    """All pairs of architectures by all measures; one is decided at LEVEL / their number.

    `per_image` has values of the same images by measure and architecture: what their errors share.
    """

    def __init__(
        self,
        points: Sequence[Point],
        measures: Sequence[Measure],
        per_image: Mapping[str, Mapping[str, Tensor]] | None = None,
    ) -> None:
        self.points = list(points)
        self.per_image = per_image or {}
        self.measures = [m for m in measures if self.has(m)]
        known = {m.key: [p for p in points if p.measured(m.key)] for m in self.measures}
        self.typical = {
            key: typical_spread([m for p in found if (m := p.measured(key))])
            for key, found in known.items()
        }
        self.number = sum(len(found) * (len(found) - 1) // 2 for found in known.values())

    @property
    def linear(self) -> Point | None:
        return next((point for point in self.points if point.ladder == LINEAR), None)

    def has(self, measure: Measure) -> bool:
        return sum(point.measured(measure.key) is not None for point in self.points) > 1

    def of(self, measure: Measure, a: Point, b: Point) -> Difference | None:
        """b − a; of a measure with a target, of the distances from it. None where one has none."""
        first, second = (point.measured(measure.key) for point in (a, b))
        if first is None or second is None:
            return None
        if measure.target is not None:
            first, second = (
                each._replace(mean=abs(each.mean - measure.target)) for each in (first, second)
            )
        typical, shared = self.typical[measure.key], self.covariance(measure, a, b)
        return moderated_difference(first, second, typical, shared)

    def covariance(self, measure: Measure, a: Point, b: Point) -> float:
        """Of the errors over images of two means: their correlation image by image, times both.

        A bound on log p is the mean ELBO of all images and a correction from some of them; only
        the ELBO's part is shared.
        """
        key = ELBO.key if measure is LOG_P else measure.key
        values = self.per_image.get(key, {})
        errors = [m.se for point in (a, b) if (m := point.measured(key)) and m.se is not None]
        if a.name not in values or b.name not in values or len(errors) < 2:
            return 0.0
        correlation = torch.corrcoef(torch.stack([values[a.name], values[b.name]]))[0, 1].item()
        return correlation * errors[0] * errors[1] if math.isfinite(correlation) else 0.0

    def open(self, measure: Measure, a: Point, b: Point) -> bool:
        """Whether two differ by no more than their errors, other comparisons not even counted."""
        found = self.of(measure, a, b)
        return found is None or not found.p < LEVEL

    def decided(self, found: Difference | None) -> bool:
        return found is not None and found.p < LEVEL / max(1, self.number)

    def sign(self, measure: Measure, a: Point, b: Point) -> int:
        """1 where b is decidedly better than a, −1 worse, 0 where that is not decided."""
        found = self.of(measure, a, b)
        if found is None or not self.decided(found):
            return 0
        return measure.better * (1 if found.mean > 0 else -1)

    def goodness(self, measure: Measure, point: Point) -> float:
        """Higher is better; −inf without the measure."""
        measured = point.measured(measure.key)
        if measured is None:
            return -math.inf
        mean = measured.mean
        return measure.better * (mean if measure.target is None else abs(mean - measure.target))

    def decided_pairs(self, measure: Measure) -> list[tuple[Point, Point]]:
        """The pairs, fewer parameters first, that differ decidedly."""
        return [
            (a, b) for a, b in combinations(self.points, 2) if self.decided(self.of(measure, a, b))
        ]
