"""The planned comparisons of a study, and which of them are decided.

Three trainings say little about their own spread, and architectures differ in theirs. So a variance
over trainings counts as at least the one that is typical of the study's architectures, and has no
more degrees of freedom than its own trainings give (Welch's t-test on these variances). The
comparisons by one measure are a family, within which Holm's procedure decides, and all measures
share PAGE_LEVEL. Of simulated pages on which no architecture differs by any of 15 independent
measures, with standard deviations over trainings that differ tenfold, 0 to 4 in 100 make a claim,
whether few, half or most of the architectures are the ones that spread.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from vae.reports.comparison.statistics import (
    LEVEL,
    Difference,
    difference,
)
from vae.reports.study.ladder import Architecture
from vae.reports.study.measures import (
    ELBO,
    GAP,
    LOG_P,
    LOG_P_SLOPE,
    OVERFIT,
    OVERFIT_PARTS,
    Measure,
    best_value,
)
from vae.reports.study.planned import linear_networks, planned

PAGE_LEVEL = 0.05  # at most so many pages make any false claim
Key = TypeVar("Key", bound=Hashable)


def typical_variance(variances: Tensor, trainings: Tensor) -> Tensor:
    """From the median of the variances over trainings of all architectures, [..., A] of [A].

    The median of a variance estimate with k degrees of freedom is about (1 − 2/(9k))³ times what it
    estimates (Wilson and Hilferty 1931).
    """
    scaled = variances / (1 - 2 / (9 * (trainings - 1))) ** 3
    return torch.quantile(scaled, 0.5, dim=-1)


def holm(p: Mapping[Key, float], level: float) -> set[Key]:
    """The comparisons of a family that are decided: any false one in at most `level` of families.

    The smallest p is held against level / n, the next against level / (n − 1), up to the first that
    is not below (Holm 1979). An unknown p (NaN) counts and is never decided.
    """
    decided: set[Key] = set()
    ordered = sorted(p, key=lambda key: math.inf if math.isnan(p[key]) else p[key])
    for left, key in zip(range(len(ordered), 0, -1), ordered, strict=True):
        if not p[key] < level / left:
            break
        decided.add(key)
    return decided


def few_images(measure: Measure, architecture: Architecture) -> list[tuple[float, float]]:
    """The part of a mean's variance that comes from few images, and its degrees of freedom.

    That is all of the inference gap's, and what a bound on log p has from being regressed on the
    ELBO over some images. Means over a whole split are of so many that theirs are infinite.
    """
    keys = {
        GAP.key: ("gap/total_se", "gap/images", 1),
        LOG_P.key: ("bound/log_p_subset_se", "bound/images", 2),
    }
    if measure.key not in keys:
        return []
    error, images, fitted = keys[measure.key]
    of_error, number = architecture.measured(error), architecture.measured(images)
    if of_error is None or number is None:
        return []
    return [(of_error.mean**2, max(1.0, number.mean - fitted))]


def freedom_of(variance: float, parts: Sequence[tuple[float, float]]) -> float:
    """Of a variance over images, from its parts with finite ones (Welch and Satterthwaite)."""
    spread = sum(part**2 / freedom for part, freedom in parts)
    return max(1.0, variance**2 / spread) if spread and variance else math.inf


class Comparison(NamedTuple):
    a: Architecture
    b: Architecture
    difference: Difference  # b − a
    decided: bool

    @property
    def suggestive(self) -> bool:
        """Below LEVEL by itself, and not decided among the others."""
        return self.difference.p < LEVEL and not self.decided


class Comparisons:
    """The planned comparisons by measure, each family decided at its share of PAGE_LEVEL.

    `per_image` has values of the same images by measure and architecture: what their errors share.
    """

    def __init__(
        self,
        architectures: Sequence[Architecture],
        measures: Sequence[Measure],
        per_image: Mapping[str, Mapping[str, Tensor]] | None = None,
    ) -> None:
        self.architectures = list(architectures)
        self.per_image = per_image or {}
        self.measures = [
            measure
            for measure in measures
            if sum(architecture.measured(measure.key) is not None for architecture in architectures)
            > 1
        ]
        self.targets = {each.key: best_value(each, architectures) for each in self.measures}
        self.linear = linear_networks(architectures)
        self.level = min(LEVEL, PAGE_LEVEL / max(1, len(self.measures)))  # of a family
        self.families = {measure.key: self.family(measure) for measure in self.measures}

    @property
    def number(self) -> int:
        return sum(map(len, self.families.values()))

    def target(self, measure: Measure) -> float | None:
        """The value that is best, where neither higher nor lower is better."""
        return self.targets.get(measure.key, measure.target)

    def better(self, measure: Measure) -> int:
        """1 where a higher mean is better, −1 where a lower one is, or a smaller distance from the
        target."""
        return measure.better if self.target(measure) is None else -1

    def family(self, measure: Measure) -> dict[tuple[str, str], Comparison]:
        """By the names of what is compared."""
        known = [each for each in self.architectures if each.measured(measure.key)]
        values = [m for p in known if (m := p.measured(measure.key))]
        spreads = [(m.sd**2, m.trainings) for m in values if m.sd is not None]
        typical = (
            typical_variance(*torch.tensor(spreads, dtype=torch.float64).T).item()
            if spreads
            else 0.0
        )
        found = {
            (a.name, b.name): Comparison(a, b, self.difference(measure, a, b, typical), False)
            for a, b in planned(measure, known)
        }
        decided = holm({key: each.difference.p for key, each in found.items()}, self.level)
        return {key: each._replace(decided=key in decided) for key, each in found.items()}

    def difference(
        self, measure: Measure, a: Architecture, b: Architecture, typical: float
    ) -> Difference:
        """b − a; of a measure with a target, of the distances from it."""
        first, second = (architecture.measured(measure.key) for architecture in (a, b))
        assert first is not None
        assert second is not None
        target, between = self.target(measure), 0.0
        if target is not None:
            sides = {each.mean > target for each in (first, second)}
            between = self.target_variance(measure, a) if len(sides) > 1 else 0.0
            first, second = (
                each._replace(mean=abs(each.mean - target)) for each in (first, second)
            )
        if first.sd is None or second.sd is None:  # decided by trainings, never by one alone
            counts = (first.trainings, second.trainings)
            return Difference(second.mean - first.mean, None, math.nan, False, counts)
        errors = (first.se or 0.0) ** 2 + (second.se or 0.0) ** 2
        variance = max(0.0, errors - 2 * self.covariance(measure, a, b)) + between
        parts = [*few_images(measure, a), *few_images(measure, b)]
        return difference(
            first,
            second,
            math.sqrt(variance),
            least_variance=typical,
            estimate_freedom=freedom_of(variance, parts),
        )

    def target_variance(self, measure: Measure, architecture: Architecture) -> float:
        """What the error of a measured target adds between two that are on both sides of it: it
        counts twice there, and cancels on one side."""
        floor = architecture.measured(measure.floor) if measure.floor else None
        error = floor.se if floor is not None and measure.best_at_floor else None
        return (2 * (error or 0.0)) ** 2

    def covariance(self, measure: Measure, a: Architecture, b: Architecture) -> float:
        """Of the errors over images of two means.

        A bound on log p is a slope times the mean ELBO of all images, and a correction from some of
        them. Two bounds share what their ELBOs share, times both slopes; nothing where an
        evaluation keeps no slope. The corrections count as independent of each other and of the
        ELBOs, though the images that they come from are the same ones.
        """
        if measure.key == LOG_P.key:
            slopes = [m.mean for each in (a, b) if (m := each.measured(LOG_P_SLOPE))]
            shared = self.covariance_of(ELBO.key, a, b)
            return math.prod(slopes) * shared if len(slopes) == 2 else 0.0
        parts = OVERFIT_PARTS if measure.key == OVERFIT.key else (measure.key,)
        return sum(self.covariance_of(key, a, b) for key in parts)

    def covariance_of(self, key: str, a: Architecture, b: Architecture) -> float:
        """Their correlation image by image, times both errors."""
        values = self.per_image.get(key, {})
        errors = [
            m.se
            for architecture in (a, b)
            if (m := architecture.measured(key)) and m.se is not None
        ]
        if a.name not in values or b.name not in values or len(errors) < 2:
            return 0.0
        correlation = torch.corrcoef(torch.stack([values[a.name], values[b.name]]))[0, 1].item()
        return correlation * errors[0] * errors[1] if math.isfinite(correlation) else 0.0

    def find(self, measure: Measure, a: Architecture, b: Architecture) -> Comparison | None:
        """None where one lacks the measure; KeyError for what is not planned and hence counted."""
        if not a.measured(measure.key) or not b.measured(measure.key):
            return None
        return self.families[measure.key][a.name, b.name]

    def sign(self, measure: Measure, a: Architecture, b: Architecture) -> int:
        """1 where b is decidedly better than a, −1 worse, 0 where that is not decided."""
        found = self.find(measure, a, b)
        if found is None or not found.decided:
            return 0
        return self.better(measure) * (1 if found.difference.mean > 0 else -1)

    def goodness(self, measure: Measure, architecture: Architecture) -> float:
        """Higher is better; −inf without the measure."""
        measured = architecture.measured(measure.key)
        if measured is None:
            return -math.inf
        mean, target = measured.mean, self.target(measure)
        return self.better(measure) * (mean if target is None else abs(mean - target))

    def decided(self, measure: Measure) -> list[Comparison]:
        return [each for each in self.families[measure.key].values() if each.decided]

    def suggestive(self, measure: Measure) -> list[Comparison]:
        return [each for each in self.families[measure.key].values() if each.suggestive]
