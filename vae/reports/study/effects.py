"""Whether depth or width pays, and whether the encoder or the decoder does."""

from collections.abc import Sequence
from typing import NamedTuple

from vae.reports.comparison.words import listed
from vae.reports.study.comparisons import Comparisons
from vae.reports.study.ladder import DECODER_ALONE, ENCODER_ALONE, Layers, Point
from vae.reports.study.measures import ELBO, Measure
from vae.reports.study.words import UNDECIDED, difference_text

MARK = "*"  # of a difference that is not decided


class Effect(NamedTuple):
    """A change of the networks, and what it does to a measure."""

    text: str  # `+57.6 ± 0.7`, marked where it is not decided
    sign: int  # 1 where it is decidedly better, −1 worse, 0 not decided


def effect(found: Comparisons, measure: Measure, a: Point, b: Point) -> Effect | None:
    difference = found.of(measure, a, b)
    if difference is None:
        return None
    sign = found.sign(measure, a, b)
    return Effect(difference_text(difference) + ("" if sign else MARK), sign)


def summary(effects: Sequence[Effect]) -> str:
    """`pays`, `costs`, both, or not decided."""
    up, down = (any(each.sign == way for each in effects) for way in (1, -1))
    if up and down:
        return "pays here and costs there"
    return "pays" if up else "costs" if down else f"is {UNDECIDED}"


def changes(measure: Measure) -> str:
    """What the numbers of a sentence are changes of."""
    if measure.target is None:
        return measure.title
    return f"{measure.title} (distance from {measure.target:g})"


def grid(found: Comparisons, measure: Measure) -> dict[tuple[int, int], Point]:
    """The networks with hidden layers, encoder and decoder alike, by depth and width."""
    return {
        (p.encoder.depth, p.encoder.width): p
        for p in found.points
        if p.alike and p.encoder and p.encoder.depth and p.measured(measure.key)
    }


def depth_or_width(found: Comparisons, measure: Measure) -> str:
    """From the narrowest to the widest at each depth, from the shallowest to the deepest at each
    width; where both pay, the widest shallow network against the narrow deepest one."""
    sizes = grid(found, measure)
    depths, widths = sorted({d for d, _ in sizes}), sorted({w for _, w in sizes})
    if len(depths) < 2 or len(widths) < 2 or len(sizes) < len(depths) * len(widths):
        return ""
    low, high, narrow, wide = depths[0], depths[-1], widths[0], widths[-1]
    wider = [effect(found, measure, sizes[d, narrow], sizes[d, wide]) for d in depths]
    deeper = [effect(found, measure, sizes[low, w], sizes[high, w]) for w in widths]
    by_width, by_depth = ([each for each in part if each is not None] for part in (wider, deeper))
    text = (
        f"{changes(measure)}: width {summary(by_width)}, "
        f"{listed([e.text for e in by_width])} from {narrow} to {wide} units at "
        f"{listed([str(d) for d in depths])} hidden layers; depth {summary(by_depth)}, "
        f"{listed([e.text for e in by_depth])} from {low} to {high} hidden layers at "
        f"{listed([str(w) for w in widths])} units"
    )
    if summary(by_width) == summary(by_depth) == "pays":
        sign = found.sign(measure, sizes[high, narrow], sizes[low, wide])
        text += f"; {low} × {wide} against {high} × {narrow}: "
        text += {1: "width pays more", -1: "depth pays more", 0: UNDECIDED}[sign]
    return f"{text}."


def encoder_or_decoder(found: Comparisons, measure: Measure) -> str:
    """Each of them alone, from the linear networks, and one against the other at equal sizes."""
    linear = found.linear
    encoders = {p.encoder: p for p in found.points if p.ladder == ENCODER_ALONE}
    decoders = {p.decoder: p for p in found.points if p.ladder == DECODER_ALONE}
    shared = sorted(size for size in encoders if size is not None and size in decoders)
    if linear is None or not shared or linear.measured(measure.key) is None:
        return ""
    alone: list[list[Effect]] = []
    for ladder in (encoders, decoders):
        effects = [effect(found, measure, linear, ladder[size]) for size in shared]
        if None in effects:
            return ""
        alone.append([each for each in effects if each is not None])
    by_encoder, by_decoder = alone
    layers = listed([f"{size.depth} × {size.width}" for size in shared])
    text = (
        f"{changes(measure)}, from linear to {layers}: the encoder alone "
        f"{summary(by_encoder)}, {listed([e.text for e in by_encoder])}; the decoder alone "
        f"{summary(by_decoder)}, {listed([e.text for e in by_decoder])}"
    )
    signs = {found.sign(measure, encoders[size], decoders[size]) for size in shared}
    if signs == {1}:
        text += "; the decoder is worth more at each of them"
    elif signs == {-1}:
        text += "; the encoder is worth more at each of them"
    elif signs <= {0}:
        text += f"; which of the two is worth more is {UNDECIDED}"
    text += together(found, measure, linear, shared)
    best = linear.measured(measure.floor) if measure is ELBO and measure.floor else None
    if best is not None:
        text += (
            f". With a linear decoder no encoder reaches more than the linear optimum on the "
            f"training images, whose test ELBO is {best.mean:.1f}"
        )
    return f"{text}."


def together(found: Comparisons, measure: Measure, linear: Point, shared: Sequence[Layers]) -> str:
    """What both networks of one size are worth."""
    both = {p.encoder: p for p in found.points if p.alike and p.encoder in shared}
    effects = [effect(found, measure, linear, both[size]) for size in shared if size in both]
    if len(effects) < len(shared) or None in effects:
        return ""
    return f"; both together {listed([e.text for e in effects if e])}"
