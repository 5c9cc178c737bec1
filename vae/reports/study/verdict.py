"""What a study's metrics say, in words that follow from them and their errors."""

from collections.abc import Sequence

from vae.reports.comparison.words import listed
from vae.reports.study.comparisons import Comparisons
from vae.reports.study.effects import MARK, depth_or_width, encoder_or_decoder
from vae.reports.study.fitting import length_of_training, overfitting, trained_too_little
from vae.reports.study.ladder import Point
from vae.reports.study.measures import (
    ELBO,
    FRECHET,
    GAP,
    GENERATIVE,
    LOG_P,
    MEASURES,
    REFITTED,
    Measure,
)
from vae.reports.study.words import UNDECIDED, names, value_text

MAIN = (ELBO, REFITTED, LOG_P, FRECHET)  # those with sentences on depth, width, encoder, decoder
COMPARED = tuple(measure for measure in MEASURES if measure.better)


def verdict(found: Comparisons) -> dict[str, list[str]]:
    """Sentences by heading."""
    generative = [m for m in GENERATIVE if m in found.measures]
    main = [m for m in MAIN if m in found.measures]
    growth = {m: growth_sentence(found, m) for m in generative}
    sentences = {
        "Does it grow with complexity?": [
            *in_short(found, generative),
            *(text for text in growth.values() if UNDECIDED not in text),
        ],
        "Depth or width?": [t for m in main if (t := depth_or_width(found, m))],
        "Encoder or decoder?": [t for m in main if (t := encoder_or_decoder(found, m))],
        "Other networks": other_networks(found, main),
        "Over-fitting": [*overfitting(found), *trained_too_little(found)],
        "Chain": without_limit(found.points),
        "Inference": [growth_sentence(found, GAP)] if GAP in found.measures else [],
        "Length of training": length_of_training(found.points),
    }
    open_ones = [measure for measure, text in growth.items() if UNDECIDED in text]
    sentences["Not decided"] = undecided(found, open_ones, sentences)
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
    linear = found.linear
    if linear is None or linear.measured(measure.key) is None:
        return {}
    return {
        p.name: found.sign(measure, linear, p)
        for p in found.points
        if p.alike and p is not linear and p.measured(measure.key)
    }


# --- one measure over the networks of one size ---------------------------------------------------


def growth_sentence(found: Comparisons, measure: Measure) -> str:
    """From the linear networks to the best of those with an encoder and a decoder of one size."""
    linear = found.linear
    others = [p for p in found.points if p.alike and p is not linear and p.measured(measure.key)]
    if linear is None or linear.measured(measure.key) is None or not others:
        return f"{measure.title}: {UNDECIDED}, there is nothing to compare with linear networks."
    signs = signs_over_linear(found, measure)
    better = [point for point in others if signs[point.name] > 0]
    worse = [point for point in others if signs[point.name] < 0]
    if better:
        text = best_of(found, measure, linear, better)
        if worse:
            text += f"; but {names(worse)} {'are' if len(worse) > 1 else 'is'} worse than linear"
        return f"{text}."
    if worse:
        worst = min(worse, key=lambda point: found.goodness(measure, point))
        return (
            f"{measure.title}: {at(measure, linear)}, worst {at(measure, worst)}; "
            f"decided for {len(worse)} of {len(others)} sizes, and none is better than linear."
        )
    return (
        f"{measure.title}: {UNDECIDED}, none of {len(others)} sizes differs from linear networks "
        "beyond its error."
    )


def best_of(found: Comparisons, measure: Measure, linear: Point, better: Sequence[Point]) -> str:
    """The best size, the smallest that is not decidedly short of it, and what larger ones do."""
    best = max(better, key=lambda point: found.goodness(measure, point))
    smaller = [
        point
        for point in better
        if point.parameters < best.parameters and found.open(measure, point, best)
    ]
    larger = [
        point
        for point in found.points
        if point.alike and point.parameters > best.parameters and found.sign(measure, best, point)
    ]
    text = f"{measure.title}: {at(measure, linear)}, best {at(measure, best)}"
    if smaller:
        text += f", from which the smaller {names(smaller)} cannot be told"
    if larger:
        values = [f"{p.name} ({measured(measure, p)})" for p in larger]
        text += f"; the larger {listed(values)} {'are' if len(values) > 1 else 'is'} worse again"
    return text


def measured(measure: Measure, point: Point) -> str:
    value = point.measured(measure.key)
    assert value is not None
    return value_text(value)


def at(measure: Measure, point: Point) -> str:
    """`194.0 ± 0.4 at linear (76,112 parameters)`."""
    return f"{measured(measure, point)} at {point.name} ({point.parameters:,} parameters)"


# --- the rest -------------------------------------------------------------------------------------


def other_networks(found: Comparisons, measures: Sequence[Measure]) -> list[str]:
    """What is not fully connected against the best that is, measure by measure."""
    sentences = []
    for point in (p for p in found.points if p.encoder is None or p.decoder is None):
        parts: dict[str, list[str]] = {}
        for measure in measures:
            rivals = [p for p in found.points if p.alike and p.measured(measure.key)]
            if not rivals or point.measured(measure.key) is None:
                continue
            best = max(rivals, key=lambda p: found.goodness(measure, p))
            sign = found.sign(measure, best, point)
            unlike = f"differs, {UNDECIDED} beyond all comparisons, from"
            even = "cannot be told from" if found.open(measure, best, point) else unlike
            word = {1: "is better than", -1: "is worse than", 0: even}[sign]
            values = f"{measured(measure, point)} against {measured(measure, best)} at {best.name}"
            parts.setdefault(word, []).append(f"{measure.title} ({values})")
        for word, texts in parts.items():
            sentences.append(
                f"{point.name} ({point.parameters:,} parameters) {word} the best fully "
                f"connected size by {listed(texts)}."
            )
    return sentences


def without_limit(points: Sequence[Point]) -> list[str]:
    """Architectures whose chain decode → encode has no limit, and in how many trainings."""
    counts = {
        point.name: f"{number} of {len(point.metrics)}"
        for point in points
        if (number := sum(metrics.get("chain/has_limit") == 0 for metrics in point.metrics))
    }
    if not counts:
        return []
    texts = [f"{name} ({number} trainings)" for name, number in counts.items()]
    return [
        f"The chain decode → encode leaves the finite numbers, without a limit: {listed(texts)}."
    ]


def undecided(
    found: Comparisons, growth: Sequence[Measure], said: dict[str, list[str]]
) -> list[str]:
    """What these trainings leave open."""
    sentences = []
    if growth:
        titles = listed([measure.title for measure in growth])
        sentences.append(f"Whether these change with complexity: {titles}.")
    for measure in (m for m in MAIN if m in found.measures):
        rivals = [p for p in found.points if p.measured(measure.key)]
        best = max(rivals, key=lambda point: found.goodness(measure, point))
        near = [p for p in rivals if p is not best and found.open(measure, p, best)]
        if near:
            sentences.append(f"Which is best by {measure.title}: {names([best, *near])}.")
    marked = sum(text.count(MARK) for texts in said.values() for text in texts)
    if marked:
        sentences.append(f"The {marked} differences above that are marked {MARK}.")
    if all(len(point.folders) < 2 for point in found.points):
        sentences.append(
            "Anything: each architecture was trained once, and how trainings with other seeds "
            "differ is not known."
        )
    return sentences
