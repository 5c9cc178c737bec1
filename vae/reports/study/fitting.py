"""Over-fitting, and training that has not found what the networks can represent."""

from collections.abc import Sequence

from vae.reports.comparison.words import listed
from vae.reports.study.comparisons import Comparisons
from vae.reports.study.ladder import LINEAR, Point
from vae.reports.study.measures import ELBO, OVERFIT, TRAIN
from vae.reports.study.words import UNDECIDED, difference_text, names


def overfitting(found: Comparisons) -> list[str]:
    """From which size on train − test is above the linear one's, and whether it costs test ELBO."""
    linear = found.linear
    if OVERFIT not in found.measures or linear is None:
        return []
    # 1. Where the gap begins.
    others = [p for p in found.points if p.alike and p is not linear and p.measured(OVERFIT.key)]
    wider = [point for point in others if found.sign(OVERFIT, linear, point) < 0]
    if not wider:
        text = "no size's train − test ELBO is above the linear networks' beyond its error"
        sentences = [f"Where it begins is {UNDECIDED}: {text}."]
    else:
        first, last = wider[0], max(wider, key=lambda point: -found.goodness(OVERFIT, point))
        sentences = [
            f"Train − test ELBO is above the linear networks' from {first.name} "
            f"({first.parameters:,} parameters) on, by {gap_over(found, linear, first)} nats there "
            f"and by up to {gap_over(found, linear, last)} at {last.name}."
        ]
        exceptions = [p for p in others if p.parameters > first.parameters and p not in wider]
        if exceptions:
            sentences[0] = sentences[0][:-1] + f"; {UNDECIDED} for the larger {names(exceptions)}."
    # 2. Whether it costs anything: more on train and less on test.
    costs = [
        (a, b)
        for a, b in nested(found)
        if found.sign(TRAIN, a, b) > 0 and found.sign(ELBO, a, b) < 0
    ]
    if costs:
        texts = [f"from {a.name} to {b.name}" for a, b in costs]
        sentences.append(f"It costs test ELBO while training ELBO rises {listed(texts)}.")
    elif wider and TRAIN in found.measures:
        sentences.append(
            "It costs nothing yet: no larger size has decidedly more training ELBO and less test "
            "ELBO than one within it."
        )
    return sentences


def gap_over(found: Comparisons, a: Point, b: Point) -> str:
    difference = found.of(OVERFIT, a, b)
    assert difference is not None
    return difference_text(difference, sign="")


def nested(found: Comparisons) -> list[tuple[Point, Point]]:
    """Sizes of which one is within the other: neither deeper nor wider."""
    return [
        (a, b)
        for a in found.points
        for b in found.points
        if a.alike and b.alike and a.at_most_as_complex_as(b)
    ]


def trained_too_little(found: Comparisons) -> list[str]:
    """Larger sizes that are worse on training images too: not over-fitting."""
    if TRAIN not in found.measures:
        return []
    short = {
        b.name: a.name
        for a, b in nested(found)
        if found.sign(TRAIN, a, b) < 0 and found.sign(ELBO, a, b) < 0
    }
    if not short:
        return []
    texts = [f"{b} than {a}" for b, a in short.items()]
    return [
        f"Lower on training images too are {listed(texts)}, which it contains: that is training, "
        "which has not found what the larger networks can represent, and no over-fitting."
    ]


def length_of_training(points: Sequence[Point]) -> list[str]:
    """How far the linear networks are from their own optimum, which only training can close."""
    for point in points:
        elbo, best = point.measured("test/elbo"), point.measured("oracle/test_elbo")
        if point.ladder == LINEAR and elbo and best:
            short = best.mean - elbo.mean
            return [
                f"The linear networks end {abs(short):.1f} nats "
                f"{'below' if short > 0 else 'above'} the optimum of a linear VAE on these images "
                f"({best.mean:.1f}, closed form): "
                "differences of that size may belong to the length of training."
            ]
    return []
