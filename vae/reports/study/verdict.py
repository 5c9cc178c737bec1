"""What a study's metrics say, in words that follow from them and their errors.

A comparison is decided where chance makes a difference as large in fewer than LEVEL of all studies:
the level is divided by the number of comparisons that a sentence looks at (Bonferroni).
"""

import math
from collections.abc import Mapping, Sequence
from itertools import permutations

from vae.reports.comparison.statistics import LEVEL, Difference, Measured, difference, two_sided_p
from vae.reports.study.ladder import DECODER_ALONE, ENCODER_ALONE, LINEAR, Point
from vae.reports.study.measures import MEASURES, Measure

UNDECIDED = "not decided"


def verdict(points: Sequence[Point]) -> dict[str, list[str]]:
    """Sentences by heading."""
    judged = [m for m in MEASURES if m.better and measured_points(points, m) > 1]
    grows = {m.title: trend(points, m) for m in judged if m.key != "overfit"}
    found = {
        "Does it grow with complexity?": list(grows.values()),
        "Depth or width?": [s for m in judged[:3] if (s := depth_or_width(points, m))],
        "Encoder or decoder?": [s for m in judged[:3] if (s := encoder_or_decoder(points, m))],
        "Over-fitting": overfitting(points),
        "Length of training": length_of_training(points),
        "Not decided": undecided(grows),
    }
    return {heading: sentences for heading, sentences in found.items() if sentences}


def measured_points(points: Sequence[Point], measure: Measure) -> int:
    return sum(point.measured(measure.key) is not None for point in points)


# --- one measure over the ladder ------------------------------------------------------------------


def compared(points: Sequence[Point], measure: Measure) -> dict[tuple[str, str], Difference]:
    """Differences of all architectures of which one is at most as complex as the other."""
    found = {}
    for a, b in permutations(points, 2):
        first, second = a.measured(measure.key), b.measured(measure.key)
        if a.alike and b.alike and a.at_most_as_complex_as(b) and first and second:
            found[a.name, b.name] = difference(first, second)
    return found


def decided(found: Difference, comparisons: int) -> bool:
    return found.p < LEVEL / max(1, comparisons)


def trend(points: Sequence[Point], measure: Measure) -> str:
    """Whether a measure gets better from the simpler to the more complex networks, and how far."""
    pairs = compared(points, measure)
    signs = {
        names: measure.better * math.copysign(1, found.mean)
        for names, found in pairs.items()
        if decided(found, len(pairs))
    }
    up, down = ({n for n, sign in signs.items() if sign == way} for way in (1, -1))
    if not pairs:
        return f"{measure.title}: {UNDECIDED}, there are no two sizes to compare."
    if not signs:
        return (
            f"{measure.title}: {UNDECIDED}, no two of {len(pairs)} pairs of sizes differ beyond "
            "their errors."
        )
    if up and not down:
        return f"{measure.title} gets better with complexity: {reach(points, measure, 1)}."
    if down and not up:
        return f"{measure.title} gets worse with complexity: {reach(points, measure, -1)}."
    return (
        f"{measure.title}: {UNDECIDED} as a trend, it gets better in {len(up)} and worse in "
        f"{len(down)} of {len(pairs)} pairs of a smaller and a larger size; "
        f"{reach(points, measure, 1)}."
    )


def reach(points: Sequence[Point], measure: Measure, way: int) -> str:
    """The extreme architecture, and the smallest that is not decidedly short of it."""
    known = [(p, m) for p in points if p.alike and (m := p.measured(measure.key))]
    sign = way * measure.better
    start, (top, most) = known[0], max(known, key=lambda each: sign * each[1].mean)
    enough = next(p for p, m in known if p is top or not decided(difference(m, most), len(known)))
    word = "best" if way > 0 else "worst"
    text = f"{with_errors(start[1])} at {start[0].name}, {word} {with_errors(most)} at {top.name}"
    if enough is not top:
        text += f", from which {enough.name} is not told apart"
    return text


# --- contrasts ------------------------------------------------------------------------------------


def contrast(weighted: Sequence[tuple[float, Measured]]) -> Difference:
    """Σ c_i m_i with its error over trainings and images; Welch and Satterthwaite's freedom."""
    mean = sum(c * m.mean for c, m in weighted)
    spreads = [(c * (m.trainings_se or 0.0)) ** 2 for c, m in weighted]
    known = all(m.trainings_se is not None for _, m in weighted)
    estimates = [(c * (m.se or 0.0)) ** 2 for c, m in weighted]
    total = sum(spreads) + sum(estimates)
    counts = (weighted[0][1].trainings, weighted[-1][1].trainings)
    if not known or total == 0:
        return Difference(mean, None, math.nan, known, counts)
    freedom = sum(v**2 / (m.trainings - 1) for v, (_, m) in zip(spreads, weighted, strict=True))
    dof = total**2 / freedom if freedom else math.inf
    se = math.sqrt(total)
    return Difference(mean, se, two_sided_p(mean / se, dof), True, counts)


def depth_or_width(points: Sequence[Point], measure: Measure) -> str:
    """From the shallowest to the deepest at each width, against the narrowest to the widest."""
    grid = {
        (p.encoder.depth, p.encoder.width): m
        for p in points
        if p.alike and p.encoder and p.encoder.depth and (m := p.measured(measure.key))
    }
    depths, widths = sorted({d for d, _ in grid}), sorted({w for _, w in grid})
    if len(depths) < 2 or len(widths) < 2 or len(grid) < len(depths) * len(widths):
        return ""
    low, high, narrow, wide = depths[0], depths[-1], widths[0], widths[-1]
    deeper = {(high, w): 1 / len(widths) for w in widths}
    deeper |= {(low, w): -1 / len(widths) for w in widths}
    wider = {(d, wide): 1 / len(depths) for d in depths}
    wider |= {(d, narrow): -1 / len(depths) for d in depths}
    by_depth, by_width = of(deeper, grid), of(wider, grid)
    both = of({k: deeper.get(k, 0) - wider.get(k, 0) for k in {*deeper, *wider}}, grid)
    text = (
        f"{measure.title}: {shift(by_depth)} from {low} to {high} hidden layers (mean over "
        f"widths), {shift(by_width)} from width {narrow} to {wide} (mean over depths)"
    )
    if not decided(both, 3):
        return f"{text}; which of the two pays more is {UNDECIDED}."
    winner = "depth" if measure.better * both.mean > 0 else "width"
    return f"{text}; {winner} pays more."


def of(
    weights: Mapping[tuple[int, int], float], grid: Mapping[tuple[int, int], Measured]
) -> Difference:
    return contrast([(c, grid[key]) for key, c in weights.items() if c])


def encoder_or_decoder(points: Sequence[Point], measure: Measure) -> str:
    """The largest encoder alone and the largest decoder alone, of one size, from the linear VAE."""
    by_size = {
        (p.ladder, max(p.encoder or (0, 0), p.decoder or (0, 0))): p
        for p in points
        if p.ladder in (ENCODER_ALONE, DECODER_ALONE)
    }
    shared = [
        size
        for ladder, size in by_size
        if (DECODER_ALONE, size) in by_size and ladder == ENCODER_ALONE
    ]
    linear = next((p.measured(measure.key) for p in points if p.ladder == LINEAR), None)
    if not shared or linear is None:
        return ""
    size = max(shared)
    encoder, decoder = (
        by_size[ladder, size].measured(measure.key) for ladder in (ENCODER_ALONE, DECODER_ALONE)
    )
    if encoder is None or decoder is None:
        return ""
    alone = [contrast([(1, each), (-1, linear)]) for each in (encoder, decoder)]
    text = (
        f"{measure.title} with {size[0]} hidden layers of {size[1]}: {shift(alone[0])} from the "
        f"encoder alone, {shift(alone[1])} from the decoder alone"
    )
    found = contrast([(1, decoder), (-1, encoder)])
    if not decided(found, 3):
        return f"{text}; which of the two pays more is {UNDECIDED}."
    winner = "decoder" if measure.better * found.mean > 0 else "encoder"
    return f"{text}; the {winner} pays more."


# --- the rest -------------------------------------------------------------------------------------


def overfitting(points: Sequence[Point]) -> list[str]:
    """The smallest architecture whose train − test ELBO is decidedly above the linear one's."""
    known = [(p, m) for p in points if (m := p.measured("overfit"))]
    linear = next((m for p, m in known if p.ladder == LINEAR), None)
    others = [(p, m) for p, m in known if p.ladder != LINEAR]
    if linear is None or not others:
        return []
    for point, measured in others:
        found = difference(linear, measured)
        if found.mean > 0 and decided(found, len(others)):
            return [
                f"It begins at {point.name} ({point.parameters:,} parameters): train − test ELBO "
                f"is {shift(found)} nats above the linear networks'."
            ]
    return [
        f"{UNDECIDED.capitalize()}: no architecture's train − test ELBO is above the linear "
        "networks' beyond its error."
    ]


def length_of_training(points: Sequence[Point]) -> list[str]:
    """How far the linear networks are from their own optimum, which only training can close."""
    for point in points:
        elbo, best = point.measured("test/elbo"), point.measured("oracle/test_elbo")
        if point.ladder == LINEAR and elbo and best:
            short = best.mean - elbo.mean
            return [
                f"The linear networks end {short:.1f} nats below the optimum of a linear VAE "
                f"({best.mean:.1f}): so much belongs to the length of training, not to complexity."
            ]
    return []


def undecided(grows: Mapping[str, str]) -> list[str]:
    names = [title for title, sentence in grows.items() if UNDECIDED in sentence]
    return [f"Whether these grow with complexity: {', '.join(names)}."] if names else []


def with_errors(measured: Measured) -> str:
    """`283.4 ± 0.4 (sd over 3 trainings 0.7)`."""
    text = f"{measured.mean:.4g}" + (f" ± {measured.se:.2g}" if measured.se is not None else "")
    if measured.sd is not None:
        text += f" (sd over {measured.trainings} trainings {measured.sd:.2g})"
    return text


def shift(found: Difference) -> str:
    """`+12.3 ± 0.5`, and whether that is decided by itself."""
    error = f" ± {found.se:.2g}" if found.se is not None else ""
    text = f"{found.mean:+.3g}{error}".replace("-", "−")
    return text if decided(found, 3) else f"{text} (no difference beyond its error)"
