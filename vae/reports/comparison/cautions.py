"""What must not be concluded from a comparison."""

import math
from collections.abc import Sequence

from vae.models.elbo import upper_bound
from vae.reports.comparison.entries import Entry, learns_sigma
from vae.reports.comparison.measure import STEPS
from vae.reports.comparison.sample_verdict import MEASURES
from vae.reports.comparison.words import grouped, name_entries

FORGOTTEN = 0.01  # share of the start below which a chain counts as having forgotten it
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
    """Whether the steps shown are the limit of the chain: exact, measured, or not resolved."""
    training = entry.first
    if training.limit.ran_away or training.trace.diverged:
        return None  # the verdict on the chain says so
    mixing, radius = training.mixing, training.trace.spectral_radius
    if math.isinf(mixing.steps):
        return f"the chain has no limit (spectral radius {radius:.4f} ≥ 1)."
    if math.isnan(mixing.steps):
        steps = training.evaluation.get("chain/steps", STEPS)
        return (
            f"{STEPS} steps need not be the limit of the chain: how fast it forgets its start is "
            f"not resolved by {steps} steps."
        )
    left = mixing.memory(STEPS)
    if left < FORGOTTEN:
        return None
    where = "direction" if mixing.method == "exact" else "latent"
    how = f"spectral radius {radius:.3f}, " if radius is not None else ""
    return (
        f"{STEPS} steps are not the limit of the chain: in its slowest {where} {left:.0%} of the "
        f"start is left after them ({how}mixing time {mixing.steps:.0f} steps, {mixing.method})."
    )


def elbo_gap_caution(entry: Entry) -> str | None:
    """How far the ELBO may be below log p(x), from what the evaluation measured."""
    if entry.has("exact/gap"):
        gap = entry.mean("exact/gap")
        return f"the ELBO is {gap:.2f} nats below the exact log p(x)." if gap > 1 else None
    if entry.has("bound/log_p"):
        gap = entry.mean("bound/log_p") - entry.mean("test/elbo")
        if gap <= 1:
            return None
        key = "bound/log_p_subset_se"  # of bound − ELBO, for these test images
        error = entry.mean(key) if entry.has(key) else None
        size = f"{gap:.2f}" + (f" ± {error:.2f}" if error else "")
        images = entry.first.evaluation.get("bound/images", "?")
        return f"the ELBO is at least {size} nats below log p(x) (bound on {images} test images)."
    sizes = [
        int(key.removeprefix("iwae/K="))
        for key in entry.first.evaluation
        if key.removeprefix("iwae/K=").isdigit()
    ]
    if not sizes:
        return "the ELBO is a lower bound; how far log p(x) lies above it was not measured."
    key = f"iwae/K={max(sizes)}"
    if not (entry.has(key) and entry.has(f"{key}_ess")):
        return None
    value, ess = entry.mean(key), entry.mean(f"{key}_ess")
    if ess >= LOOSE_BOUND * max(sizes):
        return None
    return (
        f"the importance-weighted bound {value:.2f} rests on {ess:.1f} effective of {max(sizes)} "
        "samples: it is loose, and log p(x) may lie well above it."
    )


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
