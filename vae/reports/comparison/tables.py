"""The tables of the comparison page."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from vae.reports.comparison.chain_verdict import limit_distance
from vae.reports.comparison.entries import Entry, compare
from vae.reports.comparison.measure import TERMS
from vae.reports.comparison.statistics import Measured
from vae.reports.comparison.words import which_trainings


class Cell(NamedTuple):
    """A table cell: its text, the value that the column sorts by, and a second line."""

    text: str
    value: float | str | None = None
    below: str = ""


NOTHING = Cell("–")


def nats(value: float, se: float | None = None, sign: str = "") -> Cell:
    """Two decimals and the standard error; `sign="+"` for differences."""
    if not math.isfinite(value):
        return Cell("not finite")
    digits = ",.2f" if abs(value) < 1e6 else ".1e"
    text = f"{value:{sign}{digits}}".replace("-", "−")
    return Cell(text + (f" ± {se:.2f}" if se is not None else ""), value)


def metric_cell(entry: Entry, key: str, digits: str | None = None) -> Cell:
    """The mean with its standard error; below it the standard deviation over trainings."""
    if not entry.has(key):
        return NOTHING
    metric = entry.metric(key)
    cell = nats(metric.mean, metric.se) if digits is None else plain(metric.mean, metric.se)
    return cell._replace(below=spread(metric))


def spread(metric: Measured) -> str:
    if metric.sd is None or metric.sd <= 1e-9 * abs(metric.mean):  # a closed form
        return ""
    return f"sd {metric.sd:.2g} over {metric.trainings} trainings"


def difference_cell(first: Entry, entry: Entry, key: str) -> Cell:
    """The difference with its whole error; below it the parts of that error."""
    found = compare(first, entry, key)
    cell = nats(found.mean, found.se, "+")
    if found.estimate_se is None or found.trainings_se is None:
        return cell
    parts = f"images ± {found.estimate_se:.2f}\ntrainings ± {found.trainings_se:.2f}"
    return cell._replace(below=parts)


def at_a_glance(entries: Sequence[Entry]) -> dict[str, list[Cell]]:
    """Columns of the first table, a cell per entry."""
    first = entries[0]

    def difference(entry: Entry) -> Cell:
        if entry is first:
            return Cell("reference", 0.0)
        return difference_cell(first, entry, "test/elbo")

    def parameters(entry: Entry) -> Cell:
        parts = [int(entry.mean(f"model/{part}_parameters")) for part in ("encoder", "decoder")]
        return Cell(f"{parts[0]:,} + {parts[1]:,}", sum(parts))

    def latents(entry: Entry) -> Cell:
        collapsed = entry.metric("test/collapsed")
        used = entry.latent_dim - collapsed.mean
        return Cell(f"{used:.3g} of {entry.latent_dim}", used, spread(collapsed))

    columns: dict[str, Callable[[Entry], Cell]] = {
        "parameters (encoder + decoder)": parameters,
        "trainings": lambda entry: Cell(str(len(entry.trainings)), len(entry.trainings)),
        "latent_dim": lambda entry: Cell(str(entry.latent_dim), entry.latent_dim),
        "p(x|z)": lambda entry: Cell(entry.likelihood, entry.first.run.model.sigma or 0.0),
        "test ELBO": lambda entry: metric_cell(entry, "test/elbo"),
        f"difference to {first.name}": difference,
        "test ELBO at refitted sigma": lambda entry: metric_cell(entry, "test/refit_elbo"),
        "latents in use": latents,
        "chain from the prior, nats": limit_cell,
    }
    if len({entry.latent_dim for entry in entries}) == 1:
        del columns["latent_dim"]
    if all(len(entry.trainings) == 1 for entry in entries):  # the page's first lines say so
        del columns["trainings"]
    if not any(entry.has("test/refit_elbo") for entry in entries):
        del columns["test ELBO at refitted sigma"]
    if any(entry.has("samples/fid") for entry in entries):
        columns["Fréchet distance"] = lambda entry: metric_cell(entry, "samples/fid", "plain")
    return {name: [cell(entry) for entry in entries] for name, cell in columns.items()}


def limit_cell(entry: Entry) -> Cell:
    """KL of the chain's limit to the prior in nats, of its last simulated state where no closed
    form is known, or why there is none."""
    n, distance = len(entry.trainings), limit_distance(entry.trainings)
    diverged = [t.trace for t in entry.trainings if t.trace.diverged]
    if diverged:
        step = min(trace.finite_steps for trace in diverged)
        return Cell(f"diverged at {step}", math.inf, which_trainings(len(diverged), n))
    if distance is None:
        return Cell("not known")
    if without := sum(training.limit.has_limit is False for training in entry.trainings):
        return Cell("no limit", math.inf, which_trainings(without, n))
    if all(training.limit.method == "exact" for training in entry.trainings):
        text = f"{distance.mean:.2f} (closed form)"
    else:
        steps = max(training.limit.steps for training in entry.trainings)
        text = f"{nats(distance.mean, distance.se).text} after {steps:,} steps"
    return Cell(text, distance.mean, spread(distance))


def finals(entries: Sequence[Entry], split: str) -> list[list[Cell]]:
    """A row per entry: each term, its paired difference to the first entry, the linear optimum."""
    rows = []
    for entry in entries:
        cells = []
        for term in TERMS:
            key = f"{split}/{term}"
            cells.append(metric_cell(entry, key))
            cells.append(
                NOTHING if entry is entries[0] else difference_cell(entries[0], entry, key)
            )
        key = f"oracle/{split}_elbo"
        rows.append([*cells, nats(entry.mean(key)) if entry.has(key) else NOTHING])
    return rows


def sigma_table(entries: Sequence[Entry]) -> list[list[Cell]]:
    """A row per entry: sigma and test ELBO as trained and refitted, and the linear optimum at both.

    Empty where no entry has a sigma.
    """
    if not any(entry.has("refit/sigma") for entry in entries):
        return []
    rows = []
    for entry in entries:
        sigma = entry.first.run.model.sigma
        rows.append(
            [
                Cell(f"{sigma:.4g}", sigma) if sigma is not None else NOTHING,
                metric_cell(entry, "test/elbo"),
                metric_cell(entry, "oracle/test_elbo"),
                sigma_cell(entry, "refit/sigma"),
                metric_cell(entry, "test/refit_elbo"),
                sigma_cell(entry, "refit/oracle_sigma"),
                metric_cell(entry, "refit/oracle_test_elbo"),
            ]
        )
    return rows


def sigma_cell(entry: Entry, key: str) -> Cell:
    if not entry.has(key):
        return NOTHING
    metric = entry.metric(key)
    return Cell(f"{metric.mean:.4f}", metric.mean, spread(metric))


def evaluation_table(entries: Sequence[Entry]) -> dict[str, list[Cell]]:
    """The single metrics of evaluation.json, a cell per entry, with their errors.

    Its lists (KL per latent, covariances, classes over time) would widen the table past reading;
    like the differences to one other run, which the page has for all, they are in comparison.json.
    """
    found = {key: v for e in entries for t in e.trainings for key, v in t.evaluation.items()}
    keys = [
        key
        for key, value in found.items()
        if not isinstance(value, list | dict)
        and not key.startswith(("against", "time/", "settings"))
        and key not in ("checkpoint", "run")
        and not (key.endswith("_se") and key.removesuffix("_se") in found)
    ]
    return {key: [evaluation_cell(entry, key) for entry in entries] for key in keys}


def evaluation_cell(entry: Entry, key: str) -> Cell:
    """A metric with its errors, or a text that all trainings share."""
    values = [training.evaluation.get(key) for training in entry.trainings]
    if all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
        errors = [training.evaluation.get(f"{key}_se") for training in entry.trainings]
        known = [float(e) for e in errors if isinstance(e, int | float)]
        se = sum(known) / len(known) if len(known) == len(errors) else None
        if len(values) == 1:
            return plain(values[0], se)
        metric = Measured.from_values([float(v) for v in values], se)  # type: ignore[arg-type]
        return plain(metric.mean, se)._replace(below=spread(metric))
    texts = list(dict.fromkeys("–" if v is None else str(v) for v in values))
    return Cell(", ".join(texts), None if texts == ["–"] else texts[0])


def plain(value: Any, se: Any = None) -> Cell:
    """Any metric of an evaluation; its exact value stays behind the text."""
    if value is None:
        return NOTHING
    if isinstance(value, bool) or not isinstance(value, int | float):
        return Cell(str(value), str(value))
    if not math.isfinite(value):
        return Cell("not finite")
    style = ",.0f" if value == int(value) else ",.2f" if abs(value) >= 10 else ",.4g"
    error = f" ± {se:.2g}" if isinstance(se, int | float) else ""
    return Cell(f"{value:{style}}{error}", value)
