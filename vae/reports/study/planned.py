"""The comparisons that a study's sentences use, fixed before any metric is seen.

A sentence on any other comparison would not be counted, so Comparisons refuses it.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from vae.reports.study.ladder import Architecture
from vae.reports.study.measures import MAIN, TRAIN, Measure
from vae.reports.study.sizes import DECODER_ALONE, ENCODER_ALONE, LINEAR


class Step(NamedTuple):
    """From one size to the next deeper or wider one, all else alike."""

    a: Architecture
    b: Architecture
    start: int  # hidden layers, or units in each of them
    end: int
    at: int  # units, or hidden layers


def linear_networks(architectures: Sequence[Architecture]) -> Architecture | None:
    return next((each for each in architectures if each.ladder == LINEAR), None)


def alike(architectures: Sequence[Architecture]) -> list[Architecture]:
    """Encoder and decoder fully connected and of one size, linear ones included."""
    return [each for each in architectures if each.alike]


def others(architectures: Sequence[Architecture]) -> list[Architecture]:
    """Networks that are not fully connected."""
    return [each for each in architectures if each.encoder is None or each.decoder is None]


def over_linear(architectures: Sequence[Architecture]) -> list[tuple[Architecture, Architecture]]:
    """Linear networks against each size with hidden layers."""
    linear = linear_networks(architectures)
    return [(linear, each) for each in alike(architectures) if each is not linear] if linear else []


def depth_steps(architectures: Sequence[Architecture]) -> list[Step]:
    """At each width from no hidden layer to one, and on to the next depth that was trained."""
    linear, columns = linear_networks(architectures), by_width(architectures)
    steps = []
    for width, column in columns.items():
        sizes = ([(0, linear)] if linear else []) + sorted(column.items())
        steps += [Step(a, b, low, high, width) for (low, a), (high, b) in pairwise(sizes)]
    return steps


def width_steps(architectures: Sequence[Architecture]) -> list[Step]:
    """At each depth from one width to the next."""
    columns = by_width(architectures)
    depths = sorted({depth for column in columns.values() for depth in column})
    steps = []
    for depth in depths:
        sizes = [(width, column[depth]) for width, column in columns.items() if depth in column]
        steps += [Step(a, b, low, high, depth) for (low, a), (high, b) in pairwise(sizes)]
    return steps


def by_width(architectures: Sequence[Architecture]) -> dict[int, dict[int, Architecture]]:
    """Sizes with hidden layers of one width by width and depth, widths ascending."""
    found: dict[int, dict[int, Architecture]] = {}
    for each in alike(architectures):
        if each.encoder is not None and each.encoder.width:
            found.setdefault(each.encoder.width, {})[each.encoder.depth] = each
    return dict(sorted(found.items()))


def alone(architectures: Sequence[Architecture]) -> list[tuple[Architecture, Architecture]]:
    """Linear networks against those whose encoder alone, or decoder alone, has hidden layers."""
    linear = linear_networks(architectures)
    grown = [each for each in architectures if each.ladder in (ENCODER_ALONE, DECODER_ALONE)]
    return [(linear, each) for each in grown] if linear else []


def encoder_against_decoder(
    architectures: Sequence[Architecture],
) -> list[tuple[Architecture, Architecture]]:
    """One of them alone against the other alone, at equal sizes."""
    decoders = {each.decoder: each for each in architectures if each.ladder == DECODER_ALONE}
    encoders = [
        each for each in architectures if each.ladder == ENCODER_ALONE and each.encoder in decoders
    ]
    return [(each, decoders[each.encoder]) for each in encoders]


def other_over_larger(
    architectures: Sequence[Architecture],
) -> list[tuple[Architecture, Architecture]]:
    """Sizes with at least as many parameters, or else the largest, against each other network."""
    pairs = []
    for b in others(architectures):
        sizes = alike(architectures)
        larger = [a for a in sizes if a.parameters >= b.parameters] or sizes[-1:]
        pairs += [(a, b) for a in larger]
    return pairs


def planned(
    measure: Measure, architectures: Sequence[Architecture]
) -> list[tuple[Architecture, Architecture]]:
    """The comparisons by a measure, each once: one hidden layer against none is in two lists."""
    steps = [(s.a, s.b) for s in (*depth_steps(architectures), *width_steps(architectures))]
    if measure is TRAIN:
        pairs = steps
    elif measure in MAIN:
        pairs = [
            *(*over_linear(architectures), *steps, *alone(architectures)),
            *(*encoder_against_decoder(architectures), *other_over_larger(architectures)),
        ]
    else:
        pairs = over_linear(architectures)
    return list({(a.name, b.name): (a, b) for a, b in pairs}.values())
