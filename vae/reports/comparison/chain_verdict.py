"""The chain decode → sample → encode → sample in words: how far its limit is from the prior."""

import math
from collections.abc import Sequence

from vae.analysis.chain import CHAINS
from vae.analysis.limit import Limit
from vae.reports.comparison.entries import Entry
from vae.reports.comparison.statistics import LEVEL, Measured
from vae.reports.comparison.words import grouped, name_entries


def chain(entry: Entry) -> str:
    return f"{entry.name}: {describe(entry)}."


def all_chains(entries: Sequence[Entry]) -> list[str]:
    groups = grouped((describe(entry), entry.name) for entry in entries)
    return [f"{name_entries(names, entries)}: {statement}." for statement, names in groups]


def limit_distance(entry: Entry) -> Measured | None:
    """KL(limit ‖ prior) in nats over the trainings, inf without a limit; None where unknown."""
    kls = [training.limit.kl for training in entry.trainings]
    if any(math.isnan(kl) for kl in kls):
        return None
    errors = [training.limit.se for training in entry.trainings]
    return Measured.from_values(kls, max(errors))


def describe(entry: Entry) -> str:
    """The limiting law of the chain against the prior: exact, simulated, or not known."""
    diverged = [t.trace for t in entry.trainings if t.trace.diverged]
    if diverged:
        step, n = min(trace.finite_steps for trace in diverged), len(entry.trainings)
        which = f" in {len(diverged)} of {n} trainings" if n > 1 else ""
        return (
            f"the chain leaves the data for good{which}: "
            f"not all of its {CHAINS} chains are finite from step {step} on"
        )
    limits, kl = [training.limit for training in entry.trainings], limit_distance(entry)
    left = [limit for limit in limits if limit.ran_away]
    if left:
        first = min(left, key=lambda limit: limit.steps)
        return (
            f"the chain leaves the data for good: of {first.chains} chains in the evaluation not "
            f"all are finite from step {first.steps} on"
        )
    if any(limit.has_limit is False for limit in limits):
        return (
            "the chain has no limit: its spectral radius is at least 1 (computed from the weights)"
        )
    if kl is None:
        return f"how far the limit of the chain is from the prior is not known; {rejected(limits)}"
    if all(limit.method == "exact" for limit in limits):
        return describe_exact(kl, limits)
    return describe_simulated(kl, limits)


def describe_exact(kl: Measured, limits: Sequence[Limit]) -> str:
    error = "stationary law of the linear encoder and decoder, without sampling error"
    if kl.sd is not None:
        error += f"; sd over {kl.trainings} trainings {kl.sd:.2f}"
    if all(limit.p == 1 for limit in limits):
        return f"the limit of the chain is the prior ({error})"
    return f"the limit of the chain is {kl.mean:.2f} nats from the prior ({error})"


def describe_simulated(kl: Measured, limits: Sequence[Limit]) -> str:
    distance = f"{max(0.0, kl.mean):.2f} ± {kl.se:.2f}"
    if kl.sd is not None:
        distance += f" (sd over {kl.trainings} trainings {kl.sd:.2f})"
    first = limits[0]
    return (
        f"after {first.steps} steps its states are {distance} nats from the prior by their means "
        f"and full covariance ({first.method}, {first.chains} chains); {rejected(limits)}"
    )


def rejected(limits: Sequence[Limit]) -> str:
    """Whether the prior is rejected as the limit, by the p-values of all trainings."""
    ps = [limit.p for limit in limits if not math.isnan(limit.p)]
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
