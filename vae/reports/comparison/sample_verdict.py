"""Whose samples are closer to test images: by every measure, with its error."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from vae.reports.comparison.entries import Entry, compare
from vae.reports.comparison.statistics import LEVEL, Difference, Measured, difference
from vae.reports.comparison.words import listed, which_error


class Measure(NamedTuple):
    """A measure of samples in evaluation.json."""

    key: str
    name: str
    best: float | None  # the value of a perfect model; None: what training images score, or no end
    sign: int  # +1 where higher is better, −1 where lower is
    sensitive_to: str


REALISM = "whether single samples look like test images"
VARIETY = "whether all kinds of test images are among the samples"
BOTH = "both at once"
MEASURES = (
    Measure("samples/fid", "Fréchet distance", None, -1, BOTH),
    Measure("samples/kid", "KID", None, -1, BOTH),
    Measure("samples/precision", "precision", None, 1, REALISM),
    Measure("samples/density", "density", None, 1, REALISM),
    Measure("samples/recall", "recall", None, 1, VARIETY),
    Measure("samples/coverage", "coverage", None, 1, VARIETY),
    Measure("samples/nn_real", "1-NN accuracy of test images", 0.5, -1, BOTH),
    Measure("samples/nn_fake", "1-NN accuracy of samples", 0.5, -1, BOTH),
)


class Judgement(NamedTuple):
    """What one measure says about the entries: the best against the second."""

    measure: Measure
    ranked: list[Entry]
    found: Difference

    @property
    def winner(self) -> Entry | None:
        return self.ranked[0] if self.found.significant else None

    @property
    def text(self) -> str:
        """`Fréchet distance (38.1 ± 0.5 against 45.2 ± 0.6)`."""
        values = [short(entry.metric(self.measure.key)) for entry in self.ranked[:2]]
        floor = f"{self.measure.key}_floor"
        first = self.ranked[0]
        best = f"; training images {first.mean(floor):.3g}" if first.has(floor) else ""
        return f"{self.measure.name} ({' against '.join(values)}{best})"


def short(metric: Measured) -> str:
    """A mean with its error over samples, and the spread over trainings."""
    text = f"{metric.mean:.3g}" + (f" ± {one_digit(metric.se)}" if metric.se is not None else "")
    return text if metric.sd is None else f"{text} (sd {one_digit(metric.sd)})"


def one_digit(error: float) -> str:
    """An error to its first digit, or to the unit where it is larger."""
    return f"{error:.1g}" if error < 9.5 else f"{error:.0f}"


def target(measure: Measure, entries: Sequence[Entry]) -> float | None:
    """The value that a perfect model has; None where the measure has no such end.

    Precision and density of samples that repeat a few easy images exceed those of real images, so
    there more is better only up to what training images score.
    """
    floor = f"{measure.key}_floor"
    if measure.sensitive_to != REALISM or not all(entry.has(floor) for entry in entries):
        return measure.best
    return sum(entry.mean(floor) for entry in entries) / len(entries)


def judge(measure: Measure, entries: Sequence[Entry]) -> Judgement:
    """Best against second, where all entries have the measure."""
    best_value = target(measure, entries)
    if best_value is None:
        ranked = sorted(entries, key=lambda entry: -measure.sign * entry.mean(measure.key))
        return Judgement(measure, ranked, compare(ranked[1], ranked[0], measure.key))
    # distance from the best value, with the same errors
    ranked = sorted(entries, key=lambda entry: abs(entry.mean(measure.key) - best_value))
    best, second = ranked[:2]
    a, b = (
        metric._replace(mean=abs(metric.mean - best_value))
        for metric in (second.metric(measure.key), best.metric(measure.key))
    )
    return Judgement(measure, ranked, difference(a, b, distances_se(measure, best, second)))


def distances_se(measure: Measure, best: Entry, second: Entry) -> float | None:
    """The error, over samples, of the difference of two distances from what training images score.

    That score has an error of its own: it cancels between entries on one side of it, and counts
    twice between entries on both.
    """
    floor = f"{measure.key}_floor"
    metrics = [entry.metric(measure.key) for entry in (best, second)]
    errors = [metric.se for metric in metrics if metric.se is not None]
    if len(errors) < 2 or not (best.has(floor) and best.has(f"{floor}_se")):
        return None
    sides = [metric.mean > best.mean(floor) for metric in metrics]
    if measure.sensitive_to == REALISM and sides[0] != sides[1]:
        errors.append(2 * best.mean(f"{floor}_se"))
    return math.hypot(*errors)


def samples(entries: Sequence[Entry]) -> list[str]:
    """A difference is claimed only beyond its errors; where measures disagree, what each sees."""
    # 1. Who was judged, and by which measures.
    judged = [entry for entry in entries if any(entry.has(each.key) for each in MEASURES)]
    missing = [entry for entry in entries if entry not in judged]
    common = [each for each in MEASURES if all(entry.has(each.key) for entry in judged)]
    sentences = []
    settings = {how for entry in judged for how in sample_settings(entry)}
    if len(settings) > 1:
        ways = listed(sorted(f"{n} {kind} images, k = {k}" for n, kind, k in settings))
        return [f"Not judged: the evaluations are of {ways}, and such measures do not compare."]
    if len(judged) > 1 and common:
        judgements = [judge(measure, judged) for measure in common]
        sentences = state(judgements)
    # 2. Who was not.
    if missing:
        names = f" for {'; '.join(entry.name for entry in missing)}" if judged else ""
        sentences.append(
            f"Not judged{names}: no measures of samples; python -m vae.evaluate run=… makes them."
        )
    return sentences


def sample_settings(entry: Entry) -> set[tuple[str, str, str]]:
    """How samples were judged, of each training: their number, kind and nearest neighbours."""
    keys = ("samples/n", "samples/kind", "samples/k")
    found = {tuple(str(t.evaluation.get(key)) for key in keys) for t in entry.trainings}
    return {(n, kind, k) for n, kind, k in found}


def state(judgements: Sequence[Judgement]) -> list[str]:
    """Who is better by which measures, which of them decide nothing, and whether they disagree."""
    sentences, winners = [], list(dict.fromkeys(j.winner.name for j in judgements if j.winner))
    superlative = "best" if len(judgements[0].ranked) > 2 else "better"
    # 1. What each winner wins.
    for name in winners:
        won = [each for each in judgements if each.winner and each.winner.name == name]
        sentences.append(f"{name} is {superlative} by {'; by '.join(seen(won))}.")
    # 2. What is within the errors.
    undecided = [each for each in judgements if each.winner is None]
    if undecided:
        start = (
            "Not told apart beyond the error:"
            if winners
            else ("No measure tells the samples apart beyond its error:")
        )
        sentences.append(f"{start} {listed([each.text for each in undecided])}.")
    # 3. What follows.
    if len(winners) > 1:
        sentences.append(
            "The measures disagree: none of them is better in every respect, and which one counts "
            "depends on whether realism or variety is wanted."
        )
    errors = list(dict.fromkeys(which_error(j.found, "samples") for j in judgements))
    sentences.append(
        f"Errors: {'; '.join(errors)}. A difference is claimed where chance makes it in fewer "
        f"than {LEVEL:.0%} of comparisons."
    )
    return sentences


def seen(judgements: Sequence[Judgement]) -> list[str]:
    """The measures by what they are sensitive to, with their values."""
    found = []
    for kind in (REALISM, VARIETY, BOTH):
        texts = [each.text for each in judgements if each.measure.sensitive_to == kind]
        if texts:
            found.append(f"{listed(texts)}, which {'sees' if len(texts) == 1 else 'see'} {kind}")
    return found
