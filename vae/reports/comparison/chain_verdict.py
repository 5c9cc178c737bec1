"""The chain decode → sample → encode → sample in words: how far its limit is from the prior."""

import math
from collections.abc import Sequence

from vae.analysis.chain import CHAINS
from vae.reports.comparison.entries import Entry
from vae.reports.comparison.statistics import LEVEL, Measured
from vae.reports.comparison.words import grouped, name_entries

EQUAL = 0.005  # nats below which an exact limit is called the prior: 0.00 when printed


def chain(entry: Entry) -> str:
    return f"{entry.name}: {describe(entry)}."


def all_chains(entries: Sequence[Entry]) -> list[str]:
    groups = grouped((describe(entry), entry.name) for entry in entries)
    return [f"{name_entries(names, entries)}: {statement}." for statement, names in groups]


def describe(entry: Entry) -> str:
    """The limiting law of the chain against the prior: exact, simulated, or not known."""
    diverged = [t for t in entry.trainings if t.trace.finite_steps < len(t.trace.drifts)]
    if diverged:
        step = min(t.trace.finite_steps for t in diverged)
        which = "" if len(entry.trainings) == 1 else f" in {len(diverged)} of {len(entry.trainings)}"
        which += " trainings" if which else ""
        return (
            f"the chain leaves the data for good{which}: "
            f"not all of its {CHAINS} chains are finite from step {step} on"
        )
    limits = [training.limit for training in entry.trainings]
    if any(limit.kl is not None and math.isinf(limit.kl) for limit in limits):
        return "the chain has no limiting law: its spectral radius is at least 1 (exact)"
    values = [limit.kl for limit in limits if limit.kl is not None]
    if len(values) < len(limits):
        return "how far the limit of the chain is from the prior was not measured"
    errors = [limit.se for limit in limits if limit.se is not None]
    kl = Measured.of(values, max(errors, default=None))
    if all(limit.method == "exact" for limit in limits):
        return describe_exact(kl)
    return describe_simulated(kl, [limit.p for limit in limits], limits[0].method)


def describe_exact(kl: Measured) -> str:
    spread = "" if kl.sd is None else f", sd over {kl.trainings} trainings {kl.sd:.2f}"
    error = f"exact for a linear encoder and decoder, so without sampling error{spread}"
    if kl.mean < EQUAL:
        return f"the limit of the chain is the prior ({kl.mean:.2f} nats from it; {error})"
    return f"the limit of the chain is {kl.mean:.2f} nats from the prior ({error})"


def describe_simulated(kl: Measured, ps: Sequence[float | None], method: str) -> str:
    distance = f"{kl.mean:.2f}" + (f" ± {kl.se:.2f}" if kl.se is not None else "")
    if kl.sd is not None:
        distance += f" (sd over {kl.trainings} trainings {kl.sd:.2f})"
    tested = [p for p in ps if p is not None]
    if not tested:
        verdict = "whether the prior is the limit was not tested"
    elif max(tested) < LEVEL:
        verdict = f"the prior is rejected as the limit ({p_value(max(tested))})"
    elif min(tested) < LEVEL:
        rejected = sum(p < LEVEL for p in tested)
        verdict = f"the prior is rejected as the limit in {rejected} of {len(tested)} trainings"
    else:
        verdict = f"the prior is not rejected as the limit ({p_value(min(tested))})"
    return (
        f"the chain settles {distance} nats from the prior "
        f"({method}, Gaussian KL with the full covariance); {verdict}"
    )


def p_value(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"
