"""The comparison in words, each sentence computed from the figures, and what must not be concluded
from them."""

import math
from collections.abc import Sequence

from vae.reports.comparison.measure import Compared, paired
from vae.reports.comparison.sentences import (
    MAX_INDIVIDUAL_RUNS,
    all_chains,
    chain,
    number,
)

SIGNIFICANT_SE = 3  # standard errors from which a difference is called one


# evaluation's measures of samples against test images, and the sign of better
MEASURES = {"samples/fid": ("Fréchet distance", -1), "samples/kid": ("KID", -1)}


def verdict(compared: Sequence[Compared]) -> dict[str, list[str]]:
    """Sentences by heading; beyond MAX_INDIVIDUAL_RUNS runs those that are about one run are put
    together."""
    few = len(compared) <= MAX_INDIVIDUAL_RUNS
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
    if apart >= SIGNIFICANT_SE:
        said = f"{best.name} has the {'highest' if rest else 'higher'} test ELBO: {a} against {b} nats per image"
        said += f" for {second.name}; the paired difference is {gain:.2f} ± {se:.2f}, {apart:.0f} standard errors."
    else:
        said = f"{best.name} and {second.name} cannot be told apart by test ELBO: {a} and {b} nats per image, "
        said += f"a paired difference of {gain:.2f} ± {se:.2f} ({apart:.1f} standard errors)."
    sentences = [said]
    if rest:
        sentences.append(f"The lowest is {rest[-1].name} with {rest[-1].figures['test/elbo']:.2f}.")
    if len({each.likelihood for each in compared}) > 1:
        sentences.append(
            "But p(x|z) is not the same in all of them, which moves the ELBO by itself."
        )
    told = compared if len(compared) <= MAX_INDIVIDUAL_RUNS else [best, rest[-1]]
    return sentences + [
        against_linear(each, each.oracle.train_elbo) for each in told if each.oracle is not None
    ]


def against_linear(each: Compared, optimum: float) -> str:
    """How far a run is from what the best linear pair reaches, on the training split where the
    closed form holds."""
    reached = each.figures["train/elbo"]
    if each.linear:
        where = f"{abs(optimum - reached):.2f} nats {'below' if reached <= optimum else 'above'}"
        said = (
            f"{each.name} is linear and ends {where} its closed-form optimum {optimum:.2f} (train)"
        )
        impossible = reached - optimum > SIGNIFICANT_SE * each.figures["train/elbo_se"]
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
    said = f"{each.name} uses {each.active} of {each.latent_dim} for {each.figures['test/kl']:.1f} nats of KL"
    said += f" ({collapsed} collapsed" + (
        f", {inactive} inactive by Burda" if inactive != collapsed else ""
    )
    return said + (
        f"; closed form: {each.oracle.collapsed})." if each.linear and each.oracle else ")."
    )


def all_latents(compared: Sequence[Compared]) -> str:
    return "; ".join(f"{each.name}: {each.active} of {each.latent_dim}" for each in compared) + "."


def samples(compared: Sequence[Compared]) -> list[str]:
    """Whose samples are closer to the test images, by the measures that all evaluations have."""
    without = [
        each for each in compared if not any(number(each, key) is not None for key in MEASURES)
    ]
    judged = [each for each in compared if each not in without]
    sentences, winners = [], set()
    if len(judged) > 1:
        for key, (name, sign) in MEASURES.items():
            if all(number(each, key) is not None for each in judged):
                ranked = sorted(judged, key=lambda each: -sign * float(each.evaluation[key]))
                winners.add(ranked[0].name)
                values = "; ".join(f"{each.name} {each.evaluation[key]:.4g}" for each in ranked)
                floor = number(ranked[0], f"{key}_floor")
                told = (
                    f" (floor, training against test images: {floor:.4g})"
                    if floor is not None
                    else ""
                )
                closer = "closer" if len(ranked) == 2 else "closest"
                sentences.append(
                    f"By {name} the samples of {ranked[0].name} are {closer} to the data: {values}{told}."
                )
        if len(winners) > 1:
            sentences.append("The measures disagree, so nothing follows.")
    if without:
        name_runs = f" for {'; '.join(each.name for each in without)}" if judged else ""
        sentences.append(
            f"Not judged{name_runs}: no figures of samples; python -m vae.evaluate run=… makes them."
        )
    return sentences
