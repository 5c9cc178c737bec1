"""The chain decode → sample → encode → sample in words: how far its limit is from the prior."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from vae.analysis.chain import CHAINS
from vae.reports.comparison.entries import Entry
from vae.reports.comparison.measure import Training
from vae.reports.comparison.statistics import LEVEL, Measured
from vae.reports.comparison.words import grouped, name_entries, which_trainings


def chain(entry: Entry) -> str:
    return f"{entry.name}: {describe(entry)}."


def all_chains(entries: Sequence[Entry]) -> list[str]:
    groups = grouped((describe(entry), entry.name) for entry in entries)
    return [f"{name_entries(names, entries)}: {statement}." for statement, names in groups]


class Outcome(NamedTuple):
    """What became of the chains of a training; trainings with the same are described together."""

    describe: Callable[[Sequence[Training]], str]
    chains: int = 0  # simulated
    steps: int = 0


def describe(entry: Entry) -> str:
    """The limiting distribution of the chain against the prior: exact, simulated, or not known."""
    outcomes: dict[Outcome, list[Training]] = {}
    for training in entry.trainings:
        outcomes.setdefault(outcome(training), []).append(training)
    n = len(entry.trainings)
    return "; ".join(
        f"{which_trainings(len(trainings), n)} {found.describe(trainings)}".lstrip()
        for found, trainings in outcomes.items()
    )


def outcome(training: Training) -> Outcome:
    limit = training.limit
    if training.trace.diverged:
        return Outcome(diverged_here)
    if limit.ran_away:
        return Outcome(diverged_in_evaluation, limit.chains)
    if limit.has_limit is False:
        radius = training.trace.spectral_radius
        return Outcome(no_limit if radius is None or radius >= 1 else no_finite_covariance)
    if math.isnan(limit.kl):
        return Outcome(unknown)
    if limit.method == "exact":
        return Outcome(exact)
    return Outcome(simulated, limit.chains, limit.steps)


def diverged_here(trainings: Sequence[Training]) -> str:
    step = min(training.trace.finite_steps for training in trainings)
    return (
        "the chain leaves the data for good: "
        f"not all of its {CHAINS} chains are finite from step {step} on"
    )


def diverged_in_evaluation(trainings: Sequence[Training]) -> str:
    first = min((training.limit for training in trainings), key=lambda limit: limit.steps)
    return (
        f"the chain leaves the data for good: of {first.chains} chains in the evaluation not "
        f"all are finite from step {first.steps} on"
    )


def no_limit(trainings: Sequence[Training]) -> str:
    return "the chain has no limit: its spectral radius is at least 1 (computed from the weights)"


def no_finite_covariance(trainings: Sequence[Training]) -> str:
    radii = [training.trace.spectral_radius or 0.0 for training in trainings]
    return (
        "no limit of the chain with a finite covariance was found: its spectral radius "
        f"({max(radii):.3f}) is below 1, but the sd of q grows with x (computed from the weights)"
    )


def unknown(trainings: Sequence[Training]) -> str:
    return f"how far the limit of the chain is from the prior is not known; {rejected(trainings)}"


def exact(trainings: Sequence[Training]) -> str:
    kl = limit_distance(trainings)
    assert kl is not None
    error = "mean and covariance of its stationary distribution, computed from the weights"
    if kl.sd is not None:
        error += f"; sd over {kl.trainings} trainings {kl.sd:.2f}"
    if all(training.limit.p == 1 for training in trainings):
        return f"the limit of the chain is the prior ({error})"
    return f"the limit of the chain is {kl.mean:.2f} nats from the prior ({error})"


def simulated(trainings: Sequence[Training]) -> str:
    kl, first = limit_distance(trainings), trainings[0].limit
    assert kl is not None
    distance = f"{max(0.0, kl.mean):.2f} ± {kl.se:.2f}"
    if kl.sd is not None:
        distance += f" (sd over {kl.trainings} trainings {kl.sd:.2f})"
    return (
        f"after {first.steps} steps its states are {distance} nats from the prior by their means "
        f"and full covariance ({first.method}, {first.chains} chains); {rejected(trainings)}"
    )


def limit_distance(trainings: Sequence[Training]) -> Measured | None:
    """KL(limit ‖ prior) in nats over the trainings, inf without a limit; None where unknown."""
    kls = [training.limit.kl for training in trainings]
    if any(math.isnan(kl) for kl in kls):
        return None
    return Measured.from_values(kls, max(training.limit.se for training in trainings))


def rejected(trainings: Sequence[Training]) -> str:
    """Whether the prior is rejected as the limit, by the p-values of all trainings."""
    ps = [training.limit.p for training in trainings if not math.isnan(training.limit.p)]
    if not ps:
        return "whether the prior is its limit was not tested"
    number = sum(p < LEVEL for p in ps)
    if number == len(ps):
        return f"the prior is rejected as its limit ({p_value(max(ps))})"
    if number:
        return f"the prior is rejected as its limit in {number} of {len(ps)} trainings"
    return f"the prior is not rejected as its limit ({p_value(min(ps))})"


def p_value(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"
