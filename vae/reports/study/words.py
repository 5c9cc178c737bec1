"""Numbers in a study's sentences."""

import math
from collections.abc import Sequence

from vae.reports.comparison.statistics import Difference, Measured
from vae.reports.comparison.words import listed
from vae.reports.study.ladder import Architecture

UNDECIDED = "not decided"


def with_error(mean: float, error: float | None, sign: str = "") -> str:
    """`281.6 ± 0.4`: an error of two digits below 1, and the mean to the error's last one."""
    if error is None:
        return f"{mean:{sign}.4g}".replace("-", "−")
    if error <= 0:
        return f"{mean:{sign}.4g} ± 0".replace("-", "−")
    digits = min(6, max(0, 1 - math.floor(math.log10(error)))) if error < 1 else int(error < 10)
    return f"{mean:{sign}.{digits}f} ± {error:.{digits}f}".replace("-", "−")


def value_text(metric: Measured) -> str:
    """A mean with its standard error over trainings and over images or samples together."""
    errors = [error for error in (metric.se, metric.trainings_se) if error is not None]
    return with_error(metric.mean, math.hypot(*errors) if errors else None)


def difference_text(found: Difference, sign: str = "+") -> str:
    return with_error(found.mean, found.se, sign)


def names(architectures: Sequence[Architecture]) -> str:
    return listed([architecture.name for architecture in architectures])
