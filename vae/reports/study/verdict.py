"""What a study's metrics say, in words that follow from them and their errors."""

from collections.abc import Mapping, Sequence
from typing import Any

from vae.reports.comparison.statistics import LEVEL
from vae.reports.comparison.words import listed
from vae.reports.study.comparisons import Comparisons
from vae.reports.study.effects import MARK, changes, depth_or_width, encoder_or_decoder
from vae.reports.study.fitting import length_of_training, overfitting, trained_too_little
from vae.reports.study.ladder import Architecture
from vae.reports.study.measures import GAP, GENERATIVE, MAIN, Measure
from vae.reports.study.planned import (
    alike,
    depth_steps,
    other_over_larger,
    others,
    over_linear,
    width_steps,
)
from vae.reports.study.words import UNDECIDED, difference_text, names, value_text


def verdict(found: Comparisons) -> dict[str, list[str]]:
    """Sentences by heading."""
    generative = [m for m in GENERATIVE if m in found.measures]
    main = [m for m in MAIN if m in found.measures]
    flat = [m for m in generative if not set(signs_over_linear(found, m).values()) - {0}]
    sentences = {
        "Does it grow with complexity?": [
            *in_short(found, generative),
            *(growth_sentence(found, m) for m in generative if m not in flat),
        ],
        "Depth or width?": [text for m in main for text in depth_or_width(found, m)],
        "Encoder or decoder?": [t for m in main if (t := encoder_or_decoder(found, m))],
        "Other networks": other_networks(found, main),
        "Over-fitting": [*overfitting(found), *trained_too_little(found)],
        "Chain": without_limit(found.architectures),
        "Inference": [growth_sentence(found, GAP)] if GAP in found.measures else [],
        "Length of training": length_of_training(found.architectures),
    }
    sentences["Suggestive, not decided"] = suggestive(found)
    sentences["Not decided"] = undecided(found, flat, sentences)
    return {
        heading: [text[0].upper() + text[1:] for text in texts]
        for heading, texts in sentences.items()
        if texts
    }


def in_short(found: Comparisons, measures: Sequence[Measure]) -> list[str]:
    """By which measures networks of one size are better than linear ones, by which worse."""
    kinds: dict[str, list[str]] = {}
    for measure in measures:
        signs = set(signs_over_linear(found, measure).values()) - {0}
        kind = {(1,): "better", (-1,): "worse", (-1, 1): "both"}.get(tuple(sorted(signs)), "")
        kinds.setdefault(kind, []).append(measure.title)
    parts = [
        f"{words} {listed(kinds[kind])}"
        for kind, words in (
            ("better", "better than linear at some sizes and worse at none by"),
            ("both", "better at some and worse at others by"),
            ("worse", "worse at some and better at none by"),
        )
        if kind in kinds
    ]
    return [f"Networks with hidden layers are {'; '.join(parts)}."] if parts else []


def signs_over_linear(found: Comparisons, measure: Measure) -> dict[str, int]:
    """1 where a size is decidedly better than linear networks, −1 worse, else 0; by name."""
    return {
        b.name: found.sign(measure, a, b)
        for a, b in over_linear(found.architectures)
        if a.measured(measure.key) and b.measured(measure.key)
    }


# --- one measure over the networks of one size ---------------------------------------------------


def growth_sentence(found: Comparisons, measure: Measure) -> str:
    """Each size of encoder and decoder against linear networks, and the best or worst mean."""
    linear, signs = found.linear, signs_over_linear(found, measure)
    title = best_at(found, measure)
    if linear is None or not signs:
        return f"{measure.title}: {UNDECIDED}, there is nothing to compare with linear networks."
    sizes = [each for each in found.architectures if each.name in signs]
    better, worse, neither = (
        [each for each in sizes if signs[each.name] == sign] for sign in (1, -1, 0)
    )
    if not better and not worse:
        return (
            f"{title}: {UNDECIDED}, none of {len(signs)} sizes differs from linear "
            "networks beyond its error."
        )
    parts = []
    if better:
        best = max(better, key=lambda each: found.goodness(measure, each))
        parts.append(f"{which(better, sizes)} better than linear{extreme(measure, better, best)}")
    if worse:
        worst = min(worse, key=lambda each: found.goodness(measure, each))
        none = "" if better else " than linear and none is better"
        parts.append(f"{which(worse, sizes)} worse{none}{extreme(measure, worse, worst, 'worst')}")
    if neither:
        parts.append(f"{which(neither, sizes)} {UNDECIDED}")
    return f"{title}: {at(measure, linear)}; {'; '.join(parts)}."


def best_at(found: Comparisons, measure: Measure) -> str:
    """`1-NN accuracy of samples (best at 0.5)`; the title alone where more or less is better."""
    target = found.target(measure)
    if target is None:
        return measure.title
    whose = ", what training images score" if measure.best_at_floor else ""
    return f"{measure.title} (best at {target:.3g}{whose})"


def extreme(
    measure: Measure, sizes: Sequence[Architecture], architecture: Architecture, word: str = "best"
) -> str:
    """The value of the best or worst of these sizes, by the mean."""
    if len(sizes) == 1:
        return f", {measured(measure, architecture)}"
    return f", by the mean {word} {at(measure, architecture)}"


def which(chosen: Sequence[Architecture], sizes: Sequence[Architecture]) -> str:
    """`2 × 64 is`, `6 of 9 sizes are`."""
    if len(chosen) > 3:
        return f"{len(chosen)} of {len(sizes)} sizes are"
    return f"{names(chosen)} {'are' if len(chosen) > 1 else 'is'}"


def measured(measure: Measure, architecture: Architecture) -> str:
    value = architecture.measured(measure.key)
    assert value is not None
    return value_text(value)


def at(measure: Measure, architecture: Architecture) -> str:
    """`194.0 ± 0.4 at linear (76,112 parameters)`."""
    return f"{measured(measure, architecture)} at {sized(architecture)}"


def sized(architecture: Architecture) -> str:
    """`linear (76,112 parameters)`."""
    return f"{architecture.name} ({architecture.parameters:,} parameters)"


# --- the rest -------------------------------------------------------------------------------------


def other_networks(found: Comparisons, measures: Sequence[Measure]) -> list[str]:
    """What is not fully connected against the sizes with as many parameters or more."""
    sentences = []
    for architecture in others(found.architectures):
        texts = []
        for measure in measures:
            signs = {
                a.name: found.sign(measure, a, b)
                for a, b in other_over_larger(found.architectures)
                if b is architecture and a.measured(measure.key) and b.measured(measure.key)
            }
            words = ((1, "better than"), (-1, "worse than"), (0, f"{UNDECIDED} against"))
            parts = [
                f"{word} {listed(chosen)}"
                for sign, word in words
                if (chosen := [name for name in signs if signs[name] == sign])
            ]
            if parts:
                texts.append(
                    f"by {measure.title} ({measured(measure, architecture)}) {', '.join(parts)}"
                )
        if texts:
            sentences.append(
                f"{sized(architecture)} against {held_against(found, architecture)}: "
                f"{'; '.join(texts)}."
            )
    return sentences


def held_against(found: Comparisons, architecture: Architecture) -> str:
    """The sizes that `other_over_larger` chooses for an architecture, in words."""
    pairs = other_over_larger(found.architectures)
    fewest = min(a.parameters for a, b in pairs if b is architecture)
    if fewest < architecture.parameters:
        return "the largest fully connected size, with fewer parameters"
    more = "more" if fewest > architecture.parameters else "as many or more"
    return f"the fully connected sizes with {more}"


LEFT = "The chain decode → encode leaves the finite numbers, without a limit"
NO_LAW = "No stationary distribution of the chain decode → encode was found"


def without_limit(architectures: Sequence[Architecture]) -> list[str]:
    """Architectures whose chain decode → encode has no limit, and in how many trainings."""
    sentences = []
    for reason in (LEFT, NO_LAW):
        texts = [
            f"{each.name} ({number} of {len(each.metrics)} trainings)"
            for each in architectures
            if (number := sum(why_no_limit(metrics) == reason for metrics in each.metrics))
        ]
        if texts:
            sentences.append(f"{reason}: {listed(texts)}.")
    return sentences


def why_no_limit(metrics: Mapping[str, Any]) -> str:
    """Of one training; empty where its chain has a limit or none is known to be missing.

    Without a stationary distribution, as at a spectral radius of 1, a chain may well stay finite.
    """
    if metrics.get("chain/finite") == 0:
        return LEFT
    return NO_LAW if metrics.get("chain/has_limit") == 0 else ""


def suggestive(found: Comparisons) -> list[str]:
    """Differences that would be decided alone, and are not among all of their measure."""
    by_measure = {m: differences for m in found.measures if (differences := found.suggestive(m))}
    if not by_measure:
        return []
    number = sum(map(len, by_measure.values()))
    texts = []
    for measure in [m for m in MAIN if m in by_measure] or by_measure:
        largest = max(by_measure[measure], key=lambda each: abs(each.difference.mean))
        texts.append(
            f"{changes(found, measure)} {difference_text(largest.difference)} from "
            f"{largest.a.name} to {largest.b.name}"
        )
    return [
        f"{number} of {found.number} differences have p < {LEVEL:.0%} each and are open once the "
        f"others by their measure are counted; the largest: {'; '.join(texts)}."
    ]


def undecided(
    found: Comparisons, flat: Sequence[Measure], sentences: dict[str, list[str]]
) -> list[str]:
    """What these trainings leave open: measures that are flat, and what `sentences` mark."""
    texts = []
    if flat:
        titles = listed([measure.title for measure in flat])
        texts.append(f"Whether these change with complexity: {titles}.")
    for measure in (m for m in MAIN if m in found.measures):
        near = undecided_neighbours(found, measure)
        if near:
            texts.append(f"No planned comparison by {measure.title} decides between {names(near)}.")
    marked = sum(text.count(MARK) for group in sentences.values() for text in group)
    if marked:
        texts.append(f"The {marked} differences above that are marked {MARK}.")
    if all(len(architecture.folders) < 2 for architecture in found.architectures):
        texts.append(
            "Anything: each architecture was trained once, and how trainings with other seeds "
            "differ is not known."
        )
    return texts


def undecided_neighbours(found: Comparisons, measure: Measure) -> list[Architecture]:
    """The size with the best mean and those that are a step from it and not decided against it."""
    steps = (*depth_steps(found.architectures), *width_steps(found.architectures))
    sizes = [
        architecture
        for architecture in alike(found.architectures)
        if architecture.measured(measure.key)
    ]
    best = max(sizes, key=lambda each: found.goodness(measure, each), default=None)
    near = [
        step.b if step.a is best else step.a
        for step in steps
        if best in (step.a, step.b) and not found.sign(measure, step.a, step.b)
    ]
    return [best, *near] if best is not None and near else []
