"""The comparison in words, each sentence computed from metrics and their errors."""

from collections.abc import Sequence

from vae.reports.comparison.chain_verdict import all_chains, chain
from vae.reports.comparison.entries import Entry, compare, learns_sigma
from vae.reports.comparison.likelihood_verdict import log_likelihood
from vae.reports.comparison.sample_verdict import samples
from vae.reports.comparison.statistics import Difference, Measured, difference
from vae.reports.comparison.words import (
    MAX_INDIVIDUAL_ENTRIES,
    listed,
    signed,
    which_error,
    with_error,
)

NUMERICAL_ERROR = 0.01  # nats that rounding may add to a mean ELBO
ALARM_SE = 3  # paired standard errors above the linear optimum that cannot be


def verdict(entries: Sequence[Entry]) -> dict[str, list[str]]:
    """Sentences by heading; with many entries those about a single one are put together."""
    few = len(entries) <= MAX_INDIVIDUAL_ENTRIES
    found = {
        "ELBO": elbo(entries),
        "ELBO and sigma": sigma(entries),
        "Log-likelihood": log_likelihood(entries),
        "Latents in use": [latents(e) for e in entries] if few else [all_latents(entries)],
        "Samples": samples(entries),
        "Chain": [chain(e) for e in entries] if few else all_chains(entries),
    }
    return {heading: sentences for heading, sentences in found.items() if sentences}


# --- ELBO -------------------------------------------------------------------------------------


def elbo(entries: Sequence[Entry]) -> list[str]:
    best, second, *rest = sorted(entries, key=lambda entry: -entry.mean("test/elbo"))
    found = compare(second, best, "test/elbo")
    values = [with_error(entry.metric("test/elbo")) for entry in (best, second)]
    if found.significant:
        sentences = [
            f"{best.name} has the {'highest' if rest else 'higher'} test ELBO: {values[0]} against "
            f"{values[1]} nats per image for {second.name}; the {paired(found)} is "
            f"{signed(found)} ({which_error(found)})."
        ]
    else:
        sentences = [
            f"{best.name} and {second.name} cannot be told apart by test ELBO: {values[0]} and "
            f"{values[1]} nats per image, a {paired(found)} of {signed(found)} "
            f"({which_error(found)})."
        ]
    if rest:
        lowest = rest[-1]
        sentences.append(
            f"The lowest is {lowest.name} with {with_error(lowest.metric('test/elbo'))}."
        )
    if len({entry.likelihood for entry in entries}) > 1 and not all(map(learns_sigma, entries)):
        sentences.append(
            "But p(x|z) is not the same in all of them, which moves the ELBO by itself."
        )
    shown = entries if len(entries) <= MAX_INDIVIDUAL_ENTRIES else [best, rest[-1]]
    return sentences + [against_linear(each) for each in shown if each.first.oracle is not None]


def against_linear(entry: Entry) -> str:
    """How far an entry is from the best linear encoder and decoder of its size.

    A linear one on the training images, where the closed form is its upper bound, exact in z; any
    other on the held-out test images.
    """
    oracle = entry.first.oracle
    assert oracle is not None
    name = entry.name
    if entry.first.linear:
        excess = entry.metric("train/over_linear")
        where = with_error(excess._replace(mean=abs(excess.mean), se=None))
        where += f" nats {'below' if excess.mean <= 0 else 'above'}"
        text = f"{name} is linear and ends {where} its closed-form optimum {oracle.train_elbo:.2f}"
        text += " (training images, expectation over z exact)"
        if alarm := [t for t in entry.trainings if beats_optimum(t.metrics)]:
            worst = max(alarm, key=lambda t: t.metrics["train/over_linear"])
            metrics = worst.metrics
            return (
                f"{text}. A training lies {metrics['train/over_linear']:.2f} ± "
                f"{metrics['train/over_linear_se']:.2f} nats above it, paired on the same images, "
                "which cannot be: something is wrong."
            )
        return f"{text}."
    gain = entry.metric("test/over_linear")
    exact = Measured(0.0, 0.0, None if gain.sd is None else 0.0, gain.trainings)
    best = entry.mean("oracle/test_elbo")
    optimum = f"the linear encoder and decoder that is best on the training images ({best:.2f})"
    size = f"{with_error(gain._replace(mean=abs(gain.mean)))} nats"
    if not difference(exact, gain).significant:
        return f"{name} cannot be told from {optimum} on test images: {size} apart."
    if gain.mean > 0:
        on_train = difference(exact, entry.metric("train/over_linear"))
        if on_train.significant and on_train.mean > 0:
            return f"{name} is {size} above {optimum} on test images: a gain of the networks."
        return (
            f"{name} is {size} above {optimum} on test images, but not on the training images, "
            "where that is the best of all linear ones: it fits these images less closely, which "
            "is no gain of the networks."
        )
    return (
        f"{name} ends {size} below {optimum} on test images: "
        "trained too little, or something is wrong."
    )


def beats_optimum(metrics: dict[str, float]) -> bool:
    """Whether a linear model's ELBO on train is above its upper bound by more than its errors."""
    excess, se = metrics["train/over_linear"], metrics["train/over_linear_se"]
    return excess > max(NUMERICAL_ERROR, ALARM_SE * se)


def paired(found: Difference) -> str:
    """Differences of several trainings each count their spread: these are not paired."""
    return "difference" if found.of_trainings else "paired difference"


# --- sigma ------------------------------------------------------------------------------------


def sigma(entries: Sequence[Entry]) -> list[str]:
    """The ELBO at the sigma refitted on validation images: the size of a gap belongs to sigma."""
    refitted = [entry for entry in entries if entry.has("test/refit_elbo")]
    learned = learned_sigmas(entries)
    if len(refitted) < 2 or all(map(learns_sigma, entries)):
        return learned
    best, second = sorted(refitted, key=lambda entry: -entry.mean("test/elbo"))[:2]
    shown = refitted if len(refitted) <= MAX_INDIVIDUAL_ENTRIES else [best, second]
    # 1. Each entry with its own best sigma.
    values = listed(
        [
            f"{with_error(entry.metric('test/refit_elbo'))} for {entry.name} "
            f"(sigma {entry.mean('refit/sigma'):.3f})"
            for entry in shown
        ]
    )
    sentences = [
        *learned,
        f"With sigma refitted on validation images and the networks unchanged, test ELBO is "
        f"{values} nats per image.",
    ]
    # 2. The same gap at both.
    at_fixed, at_best = (compare(second, best, f"test/{k}") for k in ("elbo", "refit_elbo"))
    fixed = sorted({f"{s:.4g}" for entry in (best, second) if (s := sigma_of(entry)) is not None})
    if not at_best.significant and not at_fixed.significant:
        sentences.append(
            f"{best.name} and {second.name} cannot be told apart at either sigma: "
            f"{signed(at_fixed)} and {signed(at_best)} nats apart ({which_error(at_best)})."
        )
        return sentences + linear_sentences(shown)
    if not at_best.significant:
        gap = f"cannot be told from zero at the refitted ones ({signed(at_best)})"
    else:
        ahead = best if at_best.mean > 0 else second
        gap = f"{signed(at_best)} in favour of {ahead.name} at the refitted ones"
    at = f"cannot be told from zero ({signed(at_fixed)} nats)"
    if at_fixed.significant:
        at = f"is {signed(at_fixed)} nats in favour of {best.name}"
    sentences.append(
        f"The gap between {best.name} and {second.name} {at} at sigma {listed(fixed)} and {gap} "
        f"({which_error(at_best)}): a gap belongs to its sigma."
    )
    return sentences + linear_sentences(shown)


def linear_sentences(shown: Sequence[Entry]) -> list[str]:
    """What a linear encoder and decoder of each size could reach, with a free sigma."""
    sentences = []
    for m in dict.fromkeys(entry.latent_dim for entry in shown):
        entry = next(entry for entry in shown if entry.latent_dim == m)
        if entry.has("refit/oracle_test_elbo"):
            sentences.append(
                f"The best linear encoder and decoder with latent_dim {m} and a free sigma has "
                f"{entry.mean('refit/oracle_test_elbo'):.1f} on test images, at sigma "
                f"{entry.mean('refit/oracle_sigma'):.4f} (closed form, best on training images)."
            )
    return sentences


def sigma_of(entry: Entry) -> float | None:
    """The sigma of p(x|z), the mean over trainings where it is learned."""
    sigmas = [training.run.model.sigma for training in entry.trainings]
    known = [sigma for sigma in sigmas if sigma is not None]
    return sum(known) / len(known) if len(known) == len(sigmas) else None


def learned_sigmas(entries: Sequence[Entry]) -> list[str]:
    """The sigma that each model learned, next to the closed form of the best linear VAE."""
    found = []
    for entry in entries:
        if learns_sigma(entry) and entry.has("model/sigma"):
            learned = entry.metric("model/sigma")._replace(se=None)
            text = f"{entry.name} learned sigma {with_error(learned, 4)}"
            if entry.has("oracle/sigma"):
                text += f"; that of the best linear VAE is {entry.mean('oracle/sigma'):.4f} "
                text += "(closed form, training images)"
            found.append(f"{text}.")
    return found


# --- latents ----------------------------------------------------------------------------------


def latents(entry: Entry) -> str:
    collapsed, inactive = entry.metric("test/collapsed"), entry.metric("test/inactive")
    text = f"{entry.name} uses {count(entry.latent_dim - collapsed.mean)} of {entry.latent_dim}"
    text += f" for {entry.mean('test/kl'):.1f} nats of KL ({count(collapsed.mean)} collapsed"
    if inactive.mean != collapsed.mean:
        text += f", {count(inactive.mean)} inactive by Burda"
    if collapsed.sd is not None:
        text += f"; mean of {collapsed.trainings} trainings, sd {collapsed.sd:.1f}"
    oracle = entry.first.oracle
    return text + (
        f"; closed form: {oracle.collapsed})." if entry.first.linear and oracle else ")."
    )


def count(number: float) -> str:
    return f"{number:.0f}" if number == round(number) else f"{number:.1f}"


def all_latents(entries: Sequence[Entry]) -> str:
    parts = [
        f"{e.name}: {count(e.latent_dim - e.mean('test/collapsed'))} of {e.latent_dim}"
        for e in entries
    ]
    return "; ".join(parts) + "."
