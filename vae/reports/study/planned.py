"""The comparisons that a study's sentences use, fixed before any metric is seen.

A sentence on any other comparison would not be counted, so Comparisons refuses it.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from vae.reports.study.ladder import DECODER_ALONE, ENCODER_ALONE, LINEAR, Point
from vae.reports.study.measures import MAIN, TRAIN, Measure


class Step(NamedTuple):
    """From one size to the next deeper or wider one, all else alike."""

    a: Point
    b: Point
    start: int  # hidden layers, or units in each of them
    end: int
    at: int  # units, or hidden layers


def linear_point(points: Sequence[Point]) -> Point | None:
    return next((point for point in points if point.ladder == LINEAR), None)


def alike(points: Sequence[Point]) -> list[Point]:
    """Encoder and decoder fully connected and of one size, linear ones included."""
    return [point for point in points if point.alike]


def others(points: Sequence[Point]) -> list[Point]:
    """Networks that are not fully connected."""
    return [point for point in points if point.encoder is None or point.decoder is None]


def over_linear(points: Sequence[Point]) -> list[tuple[Point, Point]]:
    """Linear networks against each size with hidden layers."""
    linear = linear_point(points)
    return [(linear, p) for p in alike(points) if p is not linear] if linear else []


def depth_steps(points: Sequence[Point]) -> list[Step]:
    """At each width from no hidden layer to one, and on to the next depth that was trained."""
    linear, columns = linear_point(points), by_width(points)
    steps = []
    for width, column in columns.items():
        rungs = ([(0, linear)] if linear else []) + sorted(column.items())
        steps += [Step(a, b, low, high, width) for (low, a), (high, b) in pairwise(rungs)]
    return steps


def width_steps(points: Sequence[Point]) -> list[Step]:
    """At each depth from one width to the next."""
    columns = by_width(points)
    depths = sorted({depth for column in columns.values() for depth in column})
    steps = []
    for depth in depths:
        rungs = [(width, column[depth]) for width, column in columns.items() if depth in column]
        steps += [Step(a, b, low, high, depth) for (low, a), (high, b) in pairwise(rungs)]
    return steps


def by_width(points: Sequence[Point]) -> dict[int, dict[int, Point]]:
    """Sizes with hidden layers by width and depth, widths ascending."""
    found: dict[int, dict[int, Point]] = {}
    for p in sorted(alike(points), key=lambda p: p.encoder or (0, 0)):
        if p.encoder is not None and p.encoder.depth:
            found.setdefault(p.encoder.width, {})[p.encoder.depth] = p
    return dict(sorted(found.items()))


def alone(points: Sequence[Point]) -> list[tuple[Point, Point]]:
    """Linear networks against those whose encoder alone, or decoder alone, has hidden layers."""
    linear = linear_point(points)
    grown = [p for p in points if p.ladder in (ENCODER_ALONE, DECODER_ALONE)]
    return [(linear, p) for p in grown] if linear else []


def encoder_against_decoder(points: Sequence[Point]) -> list[tuple[Point, Point]]:
    """One of them alone against the other alone, at equal sizes."""
    decoders = {p.decoder: p for p in points if p.ladder == DECODER_ALONE}
    encoders = [p for p in points if p.ladder == ENCODER_ALONE and p.encoder in decoders]
    return [(p, decoders[p.encoder]) for p in encoders]


def other_over_larger(points: Sequence[Point]) -> list[tuple[Point, Point]]:
    """Sizes with at least as many parameters, or else the largest, against each other network."""
    pairs = []
    for b in others(points):
        sizes = alike(points)
        larger = [a for a in sizes if a.parameters >= b.parameters] or sizes[-1:]
        pairs += [(a, b) for a in larger]
    return pairs


def planned(measure: Measure, points: Sequence[Point]) -> list[tuple[Point, Point]]:
    """The comparisons by a measure, each once: one hidden layer against none is in two lists."""
    steps = [(s.a, s.b) for s in (*depth_steps(points), *width_steps(points))]
    if measure is TRAIN:
        pairs = steps
    elif measure in MAIN:
        pairs = [
            *(*over_linear(points), *steps, *alone(points)),
            *(*encoder_against_decoder(points), *other_over_larger(points)),
        ]
    else:
        pairs = over_linear(points)
    return list({(a.name, b.name): (a, b) for a, b in pairs}.values())
