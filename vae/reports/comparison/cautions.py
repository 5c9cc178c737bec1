"""What must not be concluded from a comparison."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from omegaconf import OmegaConf

from vae.models.elbo import upper_bound
from vae.reports.comparison.measure import Compared
from vae.reports.comparison.selection import LEARNT, STEPS
from vae.reports.comparison.sentences import grouped, name_runs, number


def cautions(compared: Sequence[Compared]) -> list[str]:
    """What must not be concluded, as far as these figures tell."""
    found = differing(compared)
    for about in (mixing_caution, elbo_gap_caution):
        for line, names in grouped((about(each), each.name) for each in compared):
            if line is not None:
                found.append(f"{name_runs(names, compared)}: {line}")
    found += single_training_caution(compared)
    if not all(number(each, "samples/fid") is not None for each in compared):
        found.append(
            "A higher ELBO is no proof of better samples: the ELBO is about test images, not about f(z)."
        )
    return found


def differing(compared: Sequence[Compared]) -> list[str]:
    """Settings that move the ELBO by themselves, or its room for information."""
    sizes = {each.latent_dim for each in compared}
    sigmas = {sigma for each in compared if (sigma := each.run.model.sigma) is not None}
    found = []
    if len(sigmas) > 1:
        caps = ", ".join(
            f"{upper_bound(math.prod(compared[0].run.model.image_shape), sigma):.1f} at {sigma:.4g}"
            for sigma in sorted(sigmas)
        )
        found.append(
            f"sigma differs: no ELBO can exceed {caps}, so a difference says as much about sigma as about the networks."
        )
    if len(sizes) > 1:
        found.append(
            f"model.latent_dim differs ({', '.join(map(str, sorted(sizes)))}): a difference in ELBO is also one in the "
            "room for information, not in the networks alone."
        )
    return found


def mixing_caution(each: Compared) -> str | None:
    """Whether the steps shown are the limiting distribution."""
    if each.course.finite_steps < len(each.course.drifts):
        return None
    radius = each.course.spectral_radius
    if each.linear:
        assert radius is not None
        if radius >= 1:
            return f"the chain has no limiting distribution (spectral radius {radius:.4f} ≥ 1)."
        kept, mixing = radius**STEPS, -1 / math.log(radius)
        if kept < 0.01:
            return None
        return (
            f"{STEPS} steps are not the mixing_caution of the chain: in its slowest direction {kept:.0%} of the start is left "
            f"after them (spectral radius {radius:.3f}, e-fold {mixing:.0f} steps"
            + (f"; λ₁/σ² at the optimum: {each.oracle.mixing_steps:.0f})." if each.oracle else ").")
        )
    if each.oracle is None:
        return f"{STEPS} steps need not be the mixing_caution of the chain: how fast it forgets its start was not measured."
    if 5 * each.oracle.mixing_steps <= STEPS:
        return None
    return (
        f"{STEPS} steps need not be the mixing_caution of the chain: at sigma {each.oracle.sigma:.4g} the best linear pair "
        f"forgets its start over about λ₁/σ² = {each.oracle.mixing_steps:.0f} steps, and takes a few times that."
    )


def elbo_gap_caution(each: Compared) -> str | None:
    """How far the ELBO may be below log p(x), from the strongest importance-weighted
    elbo_gap_caution of the evaluation."""
    exact = number(each, "exact/gap")
    if exact is not None:
        return f"the ELBO is {exact:.2f} nats below the exact log p(x)." if exact > 1 else None
    sizes = [
        int(key.removeprefix("iwae/K="))
        for key in each.evaluation
        if key.removeprefix("iwae/K=").isdigit()
    ]
    if not sizes:
        return (
            "the ELBO is a lower elbo_gap_caution; how far log p(x) lies above it was not measured."
        )
    key = f"iwae/K={max(sizes)}"
    value, ess = number(each, key), number(each, f"{key}_ess")
    if value is None or ess is None or ess >= 0.1 * max(sizes):
        return None
    return (
        f"the importance-weighted elbo_gap_caution {value:.2f} rests on {ess:.1f} effective of {max(sizes)} samples: "
        "it is loose, and log p(x) may lie well above it."
    )


def single_training_caution(compared: Sequence[Compared]) -> list[str]:
    """Standard errors over images say nothing about another training with another seed."""

    def setting(each: Compared) -> str:
        plain: Any = OmegaConf.to_container(each.run.config, resolve=True)
        kept = {
            key: plain.get(key)
            for key in ("model", "objective", "optimizer", "scheduler", "compile")
        }
        kept["trainer"] = {
            k: v for k, v in plain["trainer"].items() if f"trainer.{k}".startswith(LEARNT)
        }
        kept["data"] = {
            k: v for k, v in plain["data"].items() if k not in ("root", "eval_batch_size")
        }
        return repr(kept)

    once = sum(count == 1 for count in Counter(setting(each) for each in compared).values())
    if not once:
        return []
    which = "Each setting was" if once == len(compared) else f"{once} of the settings were"
    return [
        f"{which} trained once: the standard errors are over test images, not over trainings with other single_training_caution."
    ]
