"""What the sentences of a comparison share."""

from collections.abc import Iterable, Sequence
from typing import Any

from vae.reports.comparison.entries import Entry
from vae.reports.comparison.statistics import Difference, Measured

MAX_INDIVIDUAL_ENTRIES = 4  # entries up to which each gets sentences of its own


def with_error(metric: Measured, digits: int = 2) -> str:
    """`280.49 ± 0.36`; over several trainings `280.49 ± 0.36 (sd over 3 trainings 0.71)`."""
    text = f"{metric.mean:.{digits}f}"
    if metric.se is not None and metric.se > 1e-12 * abs(metric.mean):  # of a closed form: 0
        text += f" ± {metric.se:.{digits}f}"
    if metric.sd is not None:
        text += f" (sd over {metric.trainings} trainings {metric.sd:.{digits}f})"
    return text


def signed(found: Difference, digits: int = 2) -> str:
    """`0.52 ± 0.03` of the size of a difference; without an error where none is known."""
    text = f"{abs(found.mean):.{digits}f}"
    return text if found.se is None else f"{text} ± {found.se:.{digits}f}"


def which_error(found: Difference, estimate: str = "the test images") -> str:
    """What the error of a difference counts; `estimate` is what a training is measured on."""
    if found.of_trainings:
        a, b = sorted(found.trainings)
        trainings = f"{a}" if a == b else f"{a} and {b}"
        return f"standard error over {trainings} trainings each and over {estimate}"
    if max(found.trainings) > 1:
        return f"standard error over {estimate} alone: one of the two was trained once"
    return f"standard error over {estimate}; one training each"


def listed(parts: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join([*([", ".join(parts[:-1])] if parts[:-1] else []), *parts[-1:]])


def which_trainings(number: int, n: int) -> str:
    """`in 1 of 3 trainings`; nothing where it is all of them."""
    return f"in {number} of {n} trainings" if number < n else ""


def name_entries(names: Sequence[str], entries: Sequence[Entry]) -> str:
    return "All entries" if len(names) == len(entries) > 2 else "; ".join(names)


def grouped(statements: Iterable[tuple[Any, str]]) -> list[tuple[Any, list[str]]]:
    """Names by what is stated about them, in the order of first mention."""
    groups: dict[Any, list[str]] = {}
    for statement, name in statements:
        groups.setdefault(statement, []).append(name)
    return list(groups.items())
