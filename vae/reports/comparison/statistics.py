"""Means with their errors, and when a difference is called one.

Two errors are told apart everywhere. `se` is the standard error of the estimate for fixed weights:
over the test images, or over the samples that a measure was computed from. `sd` is the standard
deviation over trainings that differ in their seed alone. One training has no `sd`.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

ROUNDING = 1e-6  # of a metric: what float32 may add to a difference without any spread
LEVEL = 0.01  # a difference is called one where chance makes it in fewer than 1 of 100 comparisons


class Measured(NamedTuple):
    """The mean of a metric over the trainings of an entry, in the unit of the metric."""

    mean: float
    se: float | None  # standard error of the estimate; None where it is unknown
    sd: float | None  # standard deviation over trainings; None for a single one
    trainings: int

    @classmethod
    def from_values(cls, values: Sequence[float], se: float | None) -> "Measured":
        """From one value per training; `se` is that of their mean."""
        tensor = torch.tensor(values, dtype=torch.float64)
        sd = tensor.std().item() if len(values) > 1 else None
        return cls(tensor.mean().item(), se, sd, len(values))

    @property
    def trainings_se(self) -> float | None:
        """Standard error of the mean over trainings."""
        return None if self.sd is None else self.sd / math.sqrt(self.trainings)


class Difference(NamedTuple):
    """b − a, its standard error, and how often chance alone makes one as large (two-sided)."""

    mean: float
    se: float | None  # None where no error is known
    p: float  # NaN where no error is known
    of_trainings: bool  # whether the error counts the spread over trainings
    trainings: tuple[int, int]
    estimate_se: float | None = None  # its part over images (paired) or samples
    trainings_se: float | None = None  # its part over trainings; None where one was trained once

    @property
    def significant(self) -> bool:
        return self.p < LEVEL


def standard_error(values: Tensor) -> float:
    """Standard error of the mean of values [N], one per image; NaN for a single image."""
    return (values.double().std() / math.sqrt(len(values))).item()


def total_and_freedom(
    estimate: Any, parts: Sequence[tuple[Any, int]], estimate_freedom: float = math.inf
) -> tuple[Any, Any]:
    """Variance of a difference and its degrees of freedom, of numbers or of tensors.

    `estimate` is its variance over images or samples, with `estimate_freedom`; each part is a
    variance over so many trainings (Welch and Satterthwaite).
    """
    total = estimate + sum(variance / n for variance, n in parts)
    spread = sum((variance / n) ** 2 / (n - 1) for variance, n in parts)
    spread = spread + estimate**2 / estimate_freedom
    return total, total**2 / spread if isinstance(spread, Tensor) or spread else math.inf


def difference(
    a: Measured,
    b: Measured,
    paired_se: float | None = None,
    least_variance: float = 0.0,
    estimate_freedom: float = math.inf,
) -> Difference:
    """b − a by Welch's t-test; `paired_se` is the error of the estimate where both share images.

    With at least two trainings of each the error is that of trainings and of the estimate together,
    and a variance over trainings counts as at least `least_variance`. Otherwise it is the
    estimate's alone. `estimate_freedom` is that of an error over few images.
    """
    mean, counts = b.mean - a.mean, (a.trainings, b.trainings)
    # 1. The error of the estimate: paired over the same images, or of two independent ones.
    estimate = paired_se
    if estimate is None and a.se is not None and b.se is not None:
        estimate = math.hypot(a.se, b.se)
    # 2. The spread over trainings, where both have one.
    of_trainings = a.sd is not None and b.sd is not None
    spreads = [
        (max(m.sd**2, least_variance), m.trainings)
        for m in (a, b)
        if of_trainings and m.sd is not None
    ]
    if estimate is None and not of_trainings:
        return Difference(mean, None, math.nan, False, counts)
    parts = estimate, math.sqrt(sum(v / n for v, n in spreads)) if of_trainings else None
    total, freedom = total_and_freedom((estimate or 0.0) ** 2, spreads, estimate_freedom)
    # 3. How often chance alone makes one as large.
    if total == 0:
        rounding = ROUNDING * max(abs(a.mean), abs(b.mean))
        p = 1.0 if abs(mean) <= rounding else 0.0
        return Difference(mean, 0.0, p, of_trainings, counts, *parts)
    se = math.sqrt(total)
    return Difference(mean, se, two_sided_p(mean / se, freedom), of_trainings, counts, *parts)


def two_sided_p(t: float, dof: float) -> float:
    """P(|T| > |t|) of Student's t; of the normal law for infinite `dof`.

    T = √dof tan θ turns the tail into ∫ cos^(dof−1) θ dθ over a finite range (Simpson's rule).
    """
    if math.isnan(t):
        return math.nan
    if math.isinf(dof) or dof > 1e4:
        return math.erfc(abs(t) / math.sqrt(2))
    start = math.atan(abs(t) / math.sqrt(dof))
    theta = torch.linspace(start, math.pi / 2, 2001, dtype=torch.float64)
    values = theta.cos().clamp_min(0).pow(dof - 1)
    weights = torch.ones(2001, dtype=torch.float64)
    weights[1:-1:2], weights[2:-1:2] = 4, 2
    integral = (weights * values).sum().item() * (math.pi / 2 - start) / 2000 / 3
    log_norm = math.lgamma((dof + 1) / 2) - math.lgamma(dof / 2) - 0.5 * math.log(math.pi)
    return min(1.0, 2 * integral * math.exp(log_norm))
