"""What must not be concluded from a comparison."""

import math
import re
from collections.abc import Sequence

from vae.analysis.limit import FORGOTTEN
from vae.models.elbo import upper_bound
from vae.reports.comparison.entries import Entry, learns_sigma
from vae.reports.comparison.measure import STEPS, Training
from vae.reports.comparison.sample_verdict import MEASURES
from vae.reports.comparison.words import grouped, name_entries, which_trainings

LOOSE_BOUND = 0.1  # effective samples per sample below which an importance-weighted bound is loose


def cautions(entries: Sequence[Entry]) -> list[str]:
    """What must not be concluded, as far as these metrics tell."""
    found = differing_settings(entries)
    for about in (mixing_caution, elbo_gap_caution):
        for line, names in grouped((about(entry), entry.name) for entry in entries):
            if line is not None:
                found.append(f"{name_entries(names, entries)}: {line}")
    found += single_training_caution(entries)
    if not all(any(entry.has(each.key) for each in MEASURES) for entry in entries):
        found.append(
            "A higher ELBO is no proof of better samples: the ELBO is about test images, not about "
            "f(z)."
        )
    return found


def differing_settings(entries: Sequence[Entry]) -> list[str]:
    """Settings that move the ELBO by themselves, or its room for information."""
    sizes = {entry.latent_dim for entry in entries}
    sigmas = {sigma for entry in entries if (sigma := entry.first.run.model.sigma) is not None}
    pixels = math.prod(entries[0].first.run.model.image_shape)
    found = []
    if len(sigmas) > 1 and not all(map(learns_sigma, entries)):
        caps = ", ".join(f"{upper_bound(pixels, s):.1f} at {s:.4g}" for s in sorted(sigmas))
        found.append(
            f"sigma differs: no ELBO can exceed {caps}, so a difference says as much about sigma "
            "as about the networks."
        )
    if len(sizes) > 1:
        found.append(
            f"model.latent_dim differs ({', '.join(map(str, sorted(sizes)))}): a difference in "
            "ELBO is also one in the room for information, not in the networks alone."
        )
    return found


def mixing_caution(entry: Entry) -> str | None:
    """Whether the steps shown are the limit of the chain, of the trainings for which they are not:
    exact, measured, or not resolved."""
    # The verdict on the chain says which left the finite numbers.
    stayed = [t for t in entry.trainings if not (t.limit.ran_away or t.trace.diverged)]
    if without := [t for t in stayed if math.isinf(t.mixing.steps)]:
        largest = max(t.trace.spectral_radius or math.inf for t in without)
        return f"the chain has no limit (spectral radius {largest:.4f} ≥ 1){share(without, entry)}."
    if unresolved := [t for t in stayed if math.isnan(t.mixing.steps)]:
        steps = min(t.evaluation.get("chain/steps", STEPS) for t in unresolved)
        return (
            f"{STEPS} steps need not be the limit of the chain: how fast it forgets its start is "
            f"not resolved by {steps} steps{share(unresolved, entry)}."
        )
    slow = [t for t in stayed if t.mixing.memory(STEPS) >= FORGOTTEN]
    if not slow:
        return None
    slowest = max(slow, key=lambda t: t.mixing.steps)
    mixing, radius = slowest.mixing, slowest.trace.spectral_radius
    shares = sorted(t.mixing.memory(STEPS) for t in slow)
    left = " to ".join(dict.fromkeys(f"{each:.0%}" for each in (shares[0], shares[-1])))
    where = "direction" if mixing.method == "exact" else "latent"
    longest = "" if len(slow) == 1 else " at most"
    how = f"spectral radius {radius:.3f}{longest}, " if radius is not None else ""
    return (
        f"{STEPS} steps are not the limit of the chain{share(slow, entry)}: in its slowest {where} "
        f"{left} of the start is left after them ({how}mixing time {mixing.steps:.0f} "
        f"steps{longest}, {mixing.method})."
    )


def share(trainings: Sequence[Training], entry: Entry) -> str:
    which = which_trainings(len(trainings), len(entry.trainings))
    return f" {which}" if which else ""


def elbo_gap_caution(entry: Entry) -> str | None:
    """How far the ELBO may be below log p(x), from what the evaluation measured."""
    if entry.has("exact/gap"):
        gap = entry.mean("exact/gap")
        return f"the ELBO is {gap:.2f} nats below the exact log p(x)." if gap > 1 else None
    evaluation = entry.first.evaluation
    method = str(evaluation.get("bound/method", ""))
    if not entry.has("bound/log_p") or method == "ELBO":
        return "the ELBO is a lower bound; how far log p(x) lies above it was not measured."
    value = entry.mean("bound/log_p")
    gap = value - entry.mean("test/elbo")
    # 1. Whether the bound itself is loose.
    loose, samples = "", re.match(r"L_(\d+)", method)
    if samples and entry.has("bound/ess"):
        K, ess = int(samples[1]), entry.mean("bound/ess")
        if ess < LOOSE_BOUND * K:
            loose = (
                f"the importance-weighted bound {value:.2f} rests on {ess:.1f} effective of {K} "
                "samples: it is loose, and log p(x) may lie well above it."
            )
    # 2. How far the ELBO is below it.
    if gap <= 1:
        return loose or None
    key = "bound/log_p_subset_se"  # of bound − ELBO, for these test images
    error = entry.mean(key) if entry.has(key) else None
    size = f"{gap:.2f}" + (f" ± {error:.2f}" if error else "")
    text = f"the ELBO is at least {size} nats below log p(x) (bound on "
    text += f"{evaluation.get('bound/images', '?')} test images)"
    return f"{text}; {loose}" if loose else f"{text}."


def single_training_caution(entries: Sequence[Entry]) -> list[str]:
    """Standard errors over images say nothing about another training with another seed."""
    once = [entry.name for entry in entries if len(entry.trainings) == 1]
    if not once:
        return []
    which = "Each setting was" if len(once) == len(entries) else f"{'; '.join(once)}:"
    return [
        f"{which} trained once: the standard errors are over test images or samples, not over "
        "trainings with other seeds."
    ]
