"""The comparison in words, each sentence computed from the figures, and what must not be concluded from them."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from omegaconf import OmegaConf

from vae.callbacks.chain_video import CHAINS
from vae.comparison import LEARNT, STEPS, Compared, paired
from vae.elbo import upper_bound
from vae.networks import PIXELS

FEW = 4  # runs up to which each gets sentences of its own
CLEAR = 3  # standard errors from which a difference is called one
STAYS = 3  # times the drift of draws from the prior itself, up to which a chain is said to stay
RISES = 1.15  # growth of the drift, from the second quarter of the steps to the last, that is called rising
# evaluation's measures of samples against test images, and the sign of better
MEASURES = {"samples/fid": ("Fréchet distance", -1), "samples/kid": ("KID", -1)}


def verdict(compared: Sequence[Compared]) -> dict[str, list[str]]:
    """Sentences by heading; beyond FEW runs those that are about one run are put together."""
    few = len(compared) <= FEW
    return {
        "ELBO": elbo(compared),
        "Latents in use": [latents(each) for each in compared] if few else [all_latents(compared)],
        "Samples": samples(compared),
        "Chain": [chain(each) for each in compared] if few else all_chains(compared),
    }


def elbo(compared: Sequence[Compared]) -> list[str]:
    best, second, *rest = sorted(compared, key=lambda each: -each.figures["test/elbo"])
    gain, se = paired(second, best, "test/elbo")
    apart = gain / se if se > 0 else math.inf if gain else 0.0
    a, b = (f"{each.figures['test/elbo']:.2f}" for each in (best, second))
    if apart >= CLEAR:
        said = f"{best.name} has the {'highest' if rest else 'higher'} test ELBO: {a} against {b} nats per image"
        said += f" for {second.name}; the paired difference is {gain:.2f} ± {se:.2f}, {apart:.0f} standard errors."
    else:
        said = f"{best.name} and {second.name} cannot be told apart by test ELBO: {a} and {b} nats per image, "
        said += f"a paired difference of {gain:.2f} ± {se:.2f} ({apart:.1f} standard errors)."
    sentences = [said]
    if rest:
        sentences.append(f"The lowest is {rest[-1].name} with {rest[-1].figures['test/elbo']:.2f}.")
    if len({each.likelihood for each in compared}) > 1:
        sentences.append("But p(x|z) is not the same in all of them, which moves the ELBO by itself.")
    told = compared if len(compared) <= FEW else [best, rest[-1]]
    return sentences + [against_linear(each, each.oracle.train_elbo) for each in told if each.oracle is not None]


def against_linear(each: Compared, optimum: float) -> str:
    """How far a run is from what the best linear pair reaches, on the training split where the closed form holds."""
    reached = each.figures["train/elbo"]
    if each.linear:
        where = f"{abs(optimum - reached):.2f} nats {'below' if reached <= optimum else 'above'}"
        said = f"{each.name} is linear and ends {where} its closed-form optimum {optimum:.2f} (train)"
        impossible = reached - optimum > CLEAR * each.figures["train/elbo_se"]
        return f"{said}, which cannot be: something is wrong." if impossible else f"{said}."
    if reached > optimum:
        return (
            f"{each.name} is {reached - optimum:.2f} nats above what any linear pair of its size can reach "
            f"({optimum:.2f}, train): a gain of the networks, not of the training."
        )
    return (
        f"{each.name} ends {optimum - reached:.2f} nats below the best linear pair of its size ({optimum:.2f}, train): "
        "trained too little, or something is wrong."
    )


def latents(each: Compared) -> str:
    collapsed, inactive = int(each.figures["test/collapsed"]), int(each.figures["test/inactive"])
    said = f"{each.name} uses {each.in_use} of {each.latent_dim} for {each.figures['test/kl']:.1f} nats of KL"
    said += f" ({collapsed} collapsed" + (f", {inactive} inactive by Burda" if inactive != collapsed else "")
    return said + (f"; closed form: {each.oracle.collapsed})." if each.linear and each.oracle else ").")


def all_latents(compared: Sequence[Compared]) -> str:
    return "; ".join(f"{each.name}: {each.in_use} of {each.latent_dim}" for each in compared) + "."


def samples(compared: Sequence[Compared]) -> list[str]:
    """Whose samples are closer to the test images, by the measures that all evaluations have."""
    without = [each for each in compared if not any(number(each, key) is not None for key in MEASURES)]
    judged = [each for each in compared if each not in without]
    sentences, winners = [], set()
    if len(judged) > 1:
        for key, (name, sign) in MEASURES.items():
            if all(number(each, key) is not None for each in judged):
                ranked = sorted(judged, key=lambda each: -sign * float(each.evaluation[key]))
                winners.add(ranked[0].name)
                values = "; ".join(f"{each.name} {each.evaluation[key]:.4g}" for each in ranked)
                floor = number(ranked[0], f"{key}_floor")
                told = f" (floor, training against test images: {floor:.4g})" if floor is not None else ""
                closer = "closer" if len(ranked) == 2 else "closest"
                sentences.append(f"By {name} the samples of {ranked[0].name} are {closer} to the data: {values}{told}.")
        if len(winners) > 1:
            sentences.append("The measures disagree, so nothing follows.")
    if without:
        whom = f" for {'; '.join(each.name for each in without)}" if judged else ""
        sentences.append(f"Not judged{whom}: no figures of samples; python -m vae.evaluate run=… makes them.")
    return sentences


def fate(each: Compared) -> str:
    """What became of a chain: it diverged, it stays with the prior, or its codes settle or move on elsewhere."""
    drifts = each.course.drifts
    if each.course.finite_steps < len(drifts):
        return f"leaves the data for good: not all of its {CHAINS} chains are finite"
    if drifts[-1] <= STAYS * drifts[0]:
        return "stays with the prior that it came from"
    quarter = len(drifts) // 4
    middle, late = (sum(part) / len(part) for part in (drifts[quarter : 2 * quarter], drifts[-quarter:]))
    return "stays finite, but its codes " + (
        "keep moving away from the prior" if late > RISES * middle else "settle away from the prior"
    )


def chain(each: Compared) -> str:
    drifts, steps = each.course.drifts, each.course.finite_steps
    if steps < len(drifts):
        return f"{each.name} {fate(each)} from step {steps} on."
    radius = f"{'spectral radius' if each.linear else 'median local gain'} {each.course.spectral_radius:.3f}"
    drift = f"drift from the prior {drifts[-1]:.2f} nats after {STEPS} steps, where fresh draws have {drifts[0]:.2f}"
    return f"{each.name} {fate(each)}: {drift}; {radius}."


def all_chains(compared: Sequence[Compared]) -> list[str]:
    groups = grouped((fate(each), each.name) for each in compared)
    return [f"{whom(names, compared)}: each {what}." for what, names in groups]


def whom(names: Sequence[str], compared: Sequence[Compared]) -> str:
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


def cautions(compared: Sequence[Compared]) -> list[str]:
    """What must not be concluded, as far as these figures tell."""
    found = differing(compared)
    for about in (limit, bound):
        for line, names in grouped((about(each), each.name) for each in compared):
            if line is not None:
                found.append(f"{whom(names, compared)}: {line}")
    found += seeds(compared)
    if not all(number(each, "samples/fid") is not None for each in compared):
        found.append("A higher ELBO is no proof of better samples: the ELBO is about test images, not about f(z).")
    return found


def differing(compared: Sequence[Compared]) -> list[str]:
    """Settings that move the ELBO by themselves, or its room for information."""
    sizes = {each.latent_dim for each in compared}
    sigmas = {sigma for each in compared if (sigma := each.run.model.sigma) is not None}
    found = []
    if len(sigmas) > 1:
        caps = ", ".join(f"{upper_bound(PIXELS, sigma):.1f} at {sigma:.4g}" for sigma in sorted(sigmas))
        found.append(
            f"sigma differs: no ELBO can exceed {caps}, so a difference says as much about sigma as about the networks."
        )
    if len(sizes) > 1:
        found.append(
            f"model.latent_dim differs ({', '.join(map(str, sorted(sizes)))}): a difference in ELBO is also one in the "
            "room for information, not in the networks alone."
        )
    return found


def limit(each: Compared) -> str | None:
    """Whether the steps shown are the limiting distribution."""
    if each.course.finite_steps < len(each.course.drifts):
        return None
    radius = each.course.spectral_radius
    if each.linear:
        if radius >= 1:
            return f"the chain has no limiting distribution (spectral radius {radius:.4f} ≥ 1)."
        kept, mixing = radius**STEPS, -1 / math.log(radius)
        if kept < 0.01:
            return None
        return (
            f"{STEPS} steps are not the limit of the chain: in its slowest direction {kept:.0%} of the start is left "
            f"after them (spectral radius {radius:.3f}, e-fold {mixing:.0f} steps"
            + (f"; λ₁/σ² at the optimum: {each.oracle.mixing_steps:.0f})." if each.oracle else ").")
        )
    if each.oracle is None:
        return f"{STEPS} steps need not be the limit of the chain: how fast it forgets its start was not measured."
    if 5 * each.oracle.mixing_steps <= STEPS:
        return None
    return (
        f"{STEPS} steps need not be the limit of the chain: at sigma {each.oracle.sigma:.4g} the best linear pair "
        f"forgets its start over about λ₁/σ² = {each.oracle.mixing_steps:.0f} steps, and takes a few times that."
    )


def bound(each: Compared) -> str | None:
    """How far the ELBO may be below log p(x), from the strongest importance-weighted bound of the evaluation."""
    exact = number(each, "exact/gap")
    if exact is not None:
        return f"the ELBO is {exact:.2f} nats below the exact log p(x)." if exact > 1 else None
    sizes = [int(key.removeprefix("iwae/K=")) for key in each.evaluation if key.removeprefix("iwae/K=").isdigit()]
    if not sizes:
        return "the ELBO is a lower bound; how far log p(x) lies above it was not measured."
    key = f"iwae/K={max(sizes)}"
    value, ess = number(each, key), number(each, f"{key}_ess")
    if value is None or ess is None or ess >= 0.1 * max(sizes):
        return None
    return (
        f"the importance-weighted bound {value:.2f} rests on {ess:.1f} effective of {max(sizes)} samples: "
        "it is loose, and log p(x) may lie well above it."
    )


def seeds(compared: Sequence[Compared]) -> list[str]:
    """Standard errors over images say nothing about another training with another seed."""

    def setting(each: Compared) -> str:
        plain: Any = OmegaConf.to_container(each.run.config, resolve=True)
        kept = {key: plain.get(key) for key in ("model", "objective", "optimizer", "scheduler", "compile")}
        kept["trainer"] = {k: v for k, v in plain["trainer"].items() if f"trainer.{k}".startswith(LEARNT)}
        kept["data"] = {k: v for k, v in plain["data"].items() if k not in ("root", "eval_batch_size")}
        return repr(kept)

    once = sum(count == 1 for count in Counter(setting(each) for each in compared).values())
    if not once:
        return []
    which = "Each setting was" if once == len(compared) else f"{once} of the settings were"
    return [f"{which} trained once: the standard errors are over test images, not over trainings with other seeds."]
