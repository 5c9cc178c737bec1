"""Over-fitting, and training that has not found what the networks can represent."""

from collections.abc import Sequence

from vae.reports.comparison.words import listed
from vae.reports.study.comparisons import Comparisons
from vae.reports.study.ladder import Architecture
from vae.reports.study.measures import ELBO, OVERFIT, OVERFIT_PARTS, TRAIN
from vae.reports.study.planned import depth_steps, over_linear, width_steps
from vae.reports.study.sizes import LINEAR
from vae.reports.study.words import UNDECIDED, difference_text, names


def overfitting(found: Comparisons) -> list[str]:
    """Where train − test is above the linear one's, and whether it costs test ELBO."""
    linear = found.linear
    if OVERFIT not in found.measures or linear is None or not found.families[OVERFIT.key]:
        return []
    # 1. Where the gap begins.
    others = [b for a, b in over_linear(found.architectures) if b.measured(OVERFIT.key)]
    wider = [each for each in others if found.sign(OVERFIT, linear, each) < 0]
    if not wider:
        text = "no size's train − test ELBO is above the linear networks' beyond its error"
        sentences = [f"Where it begins is {UNDECIDED}: {text}"]
    else:
        first, last = wider[0], min(wider, key=lambda each: found.goodness(OVERFIT, each))
        sentences = [
            f"Train − test ELBO is above the linear networks' from {first.name} "
            f"({first.parameters:,} parameters) on, by {gap_over(found, linear, first)} nats there "
            f"and by up to {gap_over(found, linear, last)} at {last.name}"
        ]
        exceptions = [
            each for each in others if each.parameters > first.parameters and each not in wider
        ]
        if exceptions:
            sentences[0] += f"; {UNDECIDED} for the larger {names(exceptions)}"
    paired = all(
        architecture.name in found.per_image.get(part, {})
        for architecture in (linear, *others)
        for part in OVERFIT_PARTS
    )
    sentences[0] += (
        ". Its error counts trainings and the images of both splits, "
        f"{'' if paired else 'not '}paired between architectures"
        f"{'' if paired else ', so it is an upper bound'}."
    )
    # 2. Whether it costs anything: more on train and less on test.
    costs = [
        f"from {a.name} to {b.name}"
        for a, b in steps(found)
        if found.sign(TRAIN, a, b) > 0 and found.sign(ELBO, a, b) < 0
    ]
    if costs:
        sentences.append(f"It costs test ELBO while training ELBO rises {listed(costs)}.")
    elif wider and TRAIN in found.measures:
        sentences.append(
            "No step in depth or width is decided to raise training ELBO and to lower test ELBO."
        )
    return sentences


def gap_over(found: Comparisons, a: Architecture, b: Architecture) -> str:
    comparison = found.find(OVERFIT, a, b)
    assert comparison is not None
    return difference_text(comparison.difference, sign="")


def steps(found: Comparisons) -> list[tuple[Architecture, Architecture]]:
    """From one size to the next deeper or wider one, where both ELBOs are known."""
    if TRAIN not in found.measures or ELBO not in found.measures:
        return []
    all_steps = (*depth_steps(found.architectures), *width_steps(found.architectures))
    return [(step.a, step.b) for step in all_steps]


def trained_too_little(found: Comparisons) -> list[str]:
    """Steps to larger sizes that are worse on training images too: not over-fitting.

    With hidden layers the larger of two sizes contains the smaller, or comes as close as one likes:
    further units may have weights of 0, and a further layer of as many units may be the identity
    where its activation is straight. Linear networks are in none with hidden layers: these may have
    fewer units than there are latents, and their output is another.
    """
    lower = [
        (a, b)
        for a, b in steps(found)
        if found.sign(TRAIN, a, b) < 0 and found.sign(ELBO, a, b) < 0
    ]
    contained = [f"{b.name} than {a.name}" for a, b in lower if a.ladder != LINEAR]
    others = [f"{b.name} than {a.name}" for a, b in lower if a.ladder == LINEAR]
    sentences = []
    if contained:
        sentences.append(
            f"{lower_on_train(contained)}, though the larger contains the smaller: that is "
            "training, which has not found what the larger networks can represent, and no "
            "over-fitting."
        )
    if others:
        sentences.append(f"{lower_on_train(others)}: that is no over-fitting.")
    return sentences


def lower_on_train(texts: Sequence[str]) -> str:
    return f"Lower on training images too {'are' if len(texts) > 1 else 'is'} {listed(texts)}"


def length_of_training(architectures: Sequence[Architecture]) -> list[str]:
    """How far the linear networks are from their own optimum, which only training can close."""
    for architecture in architectures:
        elbo, best = architecture.measured("test/elbo"), architecture.measured("oracle/test_elbo")
        if architecture.ladder == LINEAR and elbo and best:
            short = best.mean - elbo.mean
            return [
                f"The linear networks end {abs(short):.1f} nats "
                f"{'below' if short > 0 else 'above'} the optimum of a linear VAE on these images "
                f"({best.mean:.1f}, closed form): "
                "differences of that size may belong to the length of training."
            ]
    return []
