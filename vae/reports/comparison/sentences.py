"""Sentences that the verdict and the cautions share."""

from collections.abc import Iterable, Sequence
from typing import Any

from vae.analysis.chain import CHAINS
from vae.reports.comparison.measure import Compared
from vae.reports.comparison.selection import STEPS

MAX_INDIVIDUAL_RUNS = 4  # runs up to which each gets sentences of its own


STAYS = 3  # times the drift of draws from the prior itself, up to which a chain is said to stay


RISES = 1.15  # growth of the drift, from the second quarter of the steps to the last, that is called rising


def describe_chain(each: Compared) -> str:
    """What became of a chain: it diverged, it stays with the prior, or its codes settle or move on
    elsewhere."""
    drifts = each.course.drifts
    if each.course.finite_steps < len(drifts):
        return f"leaves the data for good: not all of its {CHAINS} chains are finite"
    if drifts[-1] <= STAYS * drifts[0]:
        return "stays with the prior that it came from"
    quarter = len(drifts) // 4
    middle, late = (
        sum(part) / len(part) for part in (drifts[quarter : 2 * quarter], drifts[-quarter:])
    )
    return "stays finite, but its codes " + (
        "keep moving away from the prior" if late > RISES * middle else "settle away from the prior"
    )


def chain(each: Compared) -> str:
    drifts, steps = each.course.drifts, each.course.finite_steps
    if steps < len(drifts):
        return f"{each.name} {describe_chain(each)} from step {steps} on."
    radius = (
        f"spectral radius {each.course.spectral_radius:.3f}"
        if each.linear
        else f"median local gain {each.course.local_gain:.3f}"
    )
    drift = f"drift from the prior {drifts[-1]:.2f} nats after {STEPS} steps, where fresh draws have {drifts[0]:.2f}"
    return f"{each.name} {describe_chain(each)}: {drift}; {radius}."


def all_chains(compared: Sequence[Compared]) -> list[str]:
    groups = grouped((describe_chain(each), each.name) for each in compared)
    return [f"{name_runs(names, compared)}: each {what}." for what, names in groups]


def name_runs(names: Sequence[str], compared: Sequence[Compared]) -> str:
    return "All runs" if len(names) == len(compared) > 2 else "; ".join(names)


def grouped(pairs: Iterable[tuple[Any, str]]) -> list[tuple[Any, list[str]]]:
    """Names by what is said of them, in the order of first mention."""
    groups: dict[Any, list[str]] = {}
    for what, name in pairs:
        groups.setdefault(what, []).append(name)
    return list(groups.items())


def number(each: Compared, key: str) -> float | None:
    value = each.evaluation.get(key)
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None
