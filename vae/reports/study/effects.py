"""Whether depth or width pays, and whether the encoder or the decoder does."""

from collections.abc import Sequence
from typing import NamedTuple

from vae.reports.comparison.words import listed
from vae.reports.study.comparisons import Comparisons
from vae.reports.study.ladder import Architecture
from vae.reports.study.measures import ELBO, Measure
from vae.reports.study.planned import depth_steps, width_steps
from vae.reports.study.sizes import DECODER_ALONE, ENCODER_ALONE, Layers, size_text
from vae.reports.study.words import UNDECIDED, difference_text

MARK = "*"  # of a difference that is not decided


class Effect(NamedTuple):
    """A change of the networks, and what it does to a measure."""

    text: str  # `+57.6 ± 0.7`, marked where it is not decided
    sign: int  # 1 where it is decidedly better, −1 worse, 0 not decided


def effect(found: Comparisons, measure: Measure, a: Architecture, b: Architecture) -> Effect | None:
    comparison = found.find(measure, a, b)
    if comparison is None:
        return None
    sign = found.sign(measure, a, b)
    return Effect(difference_text(comparison.difference) + ("" if sign else MARK), sign)


def summary(effects: Sequence[Effect]) -> str:
    """`pays`, `costs`, both, or not decided."""
    up, down = (any(each.sign == way for each in effects) for way in (1, -1))
    if up and down:
        return "pays here and costs there"
    return "pays" if up else "costs" if down else f"is {UNDECIDED}"


def changes(found: Comparisons, measure: Measure) -> str:
    """What the numbers of a sentence are changes of."""
    target = found.target(measure)
    return measure.title if target is None else f"{measure.title} (distance from {target:.3g})"


def depth_or_width(found: Comparisons, measure: Measure) -> list[str]:
    """Each step in depth at every width, and each step in width at every depth."""
    sides = (
        ("depth", "hidden layers", "units", depth_steps(found.architectures)),
        ("width", "units", "hidden layers", width_steps(found.architectures)),
    )
    sentences = []
    for side, moved, fixed, steps in sides:
        by_step: dict[tuple[int, int], list[tuple[int, Effect]]] = {}
        for step in steps:
            change = effect(found, measure, step.a, step.b)
            if change is not None:
                by_step.setdefault((step.start, step.end), []).append((step.at, change))
        parts = [
            f"{start} → {end} {moved} {step_text(by_step[start, end], fixed)}"
            for start, end in sorted(by_step)
        ]
        if parts:
            sentences.append(f"{changes(found, measure)}, {side}: {'; '.join(parts)}.")
    return sentences


def step_text(effects: Sequence[tuple[int, Effect]], fixed: str) -> str:
    """`pays at 64 and 1024 units (+22.5 ± 0.7 and +80.1 ± 0.6), costs at 256 (−5.4 ± 1.2)`."""
    parts: list[str] = []
    for sign, word in ((1, "pays"), (-1, "costs"), (0, f"is {UNDECIDED}")):
        chosen = [(str(at), each.text) for at, each in effects if each.sign == sign]
        if chosen:
            places, texts = (listed(column) for column in zip(*chosen, strict=True))
            unit = "" if parts else f" {fixed.removesuffix('s') if places == '1' else fixed}"
            parts.append(f"{word} at {places}{unit} ({texts.replace(MARK, '')})")
    return ", ".join(parts)


def encoder_or_decoder(found: Comparisons, measure: Measure) -> str:
    """Each of them alone, from the linear networks, and one against the other at equal sizes."""
    linear = found.linear
    encoders = {each.encoder: each for each in found.architectures if each.ladder == ENCODER_ALONE}
    decoders = {each.decoder: each for each in found.architectures if each.ladder == DECODER_ALONE}
    shared = [size for size in encoders if size is not None and size in decoders]
    shared.sort(key=lambda size: (size.depth, size.widths))
    if linear is None or not shared or linear.measured(measure.key) is None:
        return ""
    alone: list[list[Effect]] = []
    for ladder in (encoders, decoders):
        effects = [effect(found, measure, linear, ladder[size]) for size in shared]
        if None in effects:
            return ""
        alone.append([each for each in effects if each is not None])
    by_encoder, by_decoder = alone
    layers = listed([size_text(size.widths) for size in shared])
    text = (
        f"{changes(found, measure)}, from linear to {layers}: the encoder alone "
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


def together(
    found: Comparisons, measure: Measure, linear: Architecture, shared: Sequence[Layers]
) -> str:
    """What both networks of one size are worth."""
    both = {
        each.encoder: each for each in found.architectures if each.alike and each.encoder in shared
    }
    effects = [effect(found, measure, linear, both[size]) for size in shared if size in both]
    if len(effects) < len(shared) or None in effects:
        return ""
    return f"; both together {listed([e.text for e in effects if e])}"
