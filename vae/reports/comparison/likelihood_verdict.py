"""log p(x) in words: how far the ELBO is below it, why, and how sure that is (evaluation.json)."""

from collections.abc import Sequence

from vae.reports.comparison.entries import Entry, compare
from vae.reports.comparison.statistics import difference
from vae.reports.comparison.words import (
    MAX_INDIVIDUAL_ENTRIES,
    signed,
    which_error,
    with_error,
)


def log_likelihood(entries: Sequence[Entry]) -> list[str]:
    """The two best bounds against each other, then entry by entry what was measured."""
    sentences = []
    bounded = [entry for entry in entries if log_p_key(entry)]
    if len(bounded) > 1:
        sentences.append(best_bounds(bounded))
    if len(entries) <= MAX_INDIVIDUAL_ENTRIES:
        for describe in (inference_gap, bidirectional, predictive_check):
            sentences += [text for entry in entries if (text := describe(entry))]
    return sentences


def log_p_key(entry: Entry) -> str | None:
    """The key of the exact log p(x), else of its tightest lower bound."""
    return next((key for key in ("exact/log_p", "bound/log_p") if entry.has(key)), None)


def best_bounds(entries: Sequence[Entry]) -> str:
    def value(entry: Entry) -> float:
        key = log_p_key(entry)
        assert key is not None
        return entry.mean(key)

    best, second = sorted(entries, key=value, reverse=True)[:2]
    keys = [log_p_key(entry) or "" for entry in (best, second)]
    if keys[0] == keys[1]:
        found = compare(second, best, keys[0])
    else:
        found = difference(second.metric(keys[1]), best.metric(keys[0]))
    texts = [
        f"{entry.name} {'' if key == 'exact/log_p' else 'at least '}"
        f"{with_error(entry.metric(key))}{bound_details(entry, key)}"
        for entry, key in zip((best, second), keys, strict=True)
    ]
    if not found.significant:
        conclusion = f"they cannot be told apart by the difference, {signed(found)}"
    elif keys[1] == "exact/log_p":
        conclusion = f"{best.name} is higher by {'at least ' * (keys[0] != keys[1])}{signed(found)}"
    else:
        conclusion = f"the bounds differ by {signed(found)}, and log p(x) itself may by another"
        conclusion += " amount"
    return (
        f"log p(x) of test images, nats per image: {'; '.join(texts)}; {conclusion} "
        f"({which_error(found)})."
    )


def bound_details(entry: Entry, key: str) -> str:
    if key == "exact/log_p":
        return " (exact)"
    evaluation = entry.first.evaluation
    method, images = evaluation.get("bound/method"), evaluation.get("bound/images")
    ess = entry.mean("bound/ess") if entry.has("bound/ess") else None
    parts = [str(method)] if method else []
    parts += [f"{images} images"] if images else []
    parts += [f"effective samples {ess:.0f}"] if ess is not None else []
    return f" ({', '.join(parts)})" if parts else ""


def inference_gap(entry: Entry) -> str | None:
    if not (entry.has("gap/approximation") and entry.has("gap/amortisation")):
        return None
    exact = entry.first.evaluation.get("gap/method") == "exact"
    about, at_least = ("", "") if exact else ("about ", "at least ")
    approximation, amortisation = (
        with_error(entry.metric(f"gap/{part}")) for part in ("approximation", "amortisation")
    )
    return (
        f"{entry.name}: of the nats between ELBO and log p(x), {about}{approximation} come from q "
        f"being a diagonal Gaussian (approximation gap) and {at_least}{amortisation} from the "
        "encoder not "
        "finding the best one (amortisation gap), on "
        f"{entry.first.evaluation.get('gap/images', '?')} "
        "test images."
    )


def bidirectional(entry: Entry) -> str | None:
    if not entry.has("bdmc/gap"):
        return None
    return (
        f"{entry.name}: on {entry.first.evaluation.get('bdmc/images', '?')} images drawn from the "
        f"model the bounds of bidirectional Monte Carlo are {with_error(entry.metric('bdmc/gap'))} "
        "nats apart: evidence, not a bound, for how far AIS is off on test images, which are not "
        "the model's own."
    )


def predictive_check(entry: Entry) -> str | None:
    if not (entry.has("ppc/log_p_samples") and entry.has("ppc/log_p_test")):
        return None
    own, test = (with_error(entry.metric(f"ppc/log_p_{k}"), 1) for k in ("samples", "test"))
    at_least = "" if entry.first.linear else "at least "
    text = (
        f"{entry.name}: images drawn from the model itself have log p(x) {at_least}{own}, test "
        f"images {at_least}{test}"
    )
    if entry.has("ppc/residual_variance_test") and entry.has("ppc/sigma2"):
        ratio = entry.mean("ppc/sigma2") / entry.mean("ppc/residual_variance_test")
        text += f"; sigma² is {ratio:.1f} times the residual variance of test images"
    return text + "."
