"""The tables of the comparison page."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from vae.reports.comparison.measure import TERMS, Compared, paired
from vae.reports.comparison.sentences import number


class Cell(NamedTuple):
    """A table cell: its text, and the value that the column sorts by."""

    text: str
    value: float | str | None = None


# --- tables ----------------------------------------------------------------------------------------------------


def nats(value: float, se: float | None = None, sign: str = "") -> Cell:
    """Two decimals and the standard error; `sign="+"` for differences."""
    if not math.isfinite(value):
        return Cell("not finite")
    digits = ",.2f" if abs(value) < 1e6 else ".1e"
    return Cell(
        f"{value:{sign}{digits}}".replace("-", "−") + (f" ± {se:.2f}" if se is not None else ""),
        value,
    )


def at_a_glance(compared: Sequence[Compared]) -> dict[str, list[Cell]]:
    """Columns of the first table, a cell a run."""
    first = compared[0]

    def difference(each: Compared) -> Cell:
        return (
            Cell("reference", 0.0)
            if each is first
            else nats(*paired(first, each, "test/elbo"), "+")
        )

    def chain(each: Compared) -> Cell:
        steps, length = each.course.finite_steps, len(each.course.drifts)
        return Cell("finite" if steps == length else f"diverged at {steps}", steps)

    def parameters(each: Compared) -> Cell:
        parts = [int(each.figures[f"model/{part}_parameters"]) for part in ("encoder", "decoder")]
        return Cell(f"{parts[0]:,} + {parts[1]:,}", sum(parts))

    columns: dict[str, Callable[[Compared], Cell]] = {
        "parameters (encoder + decoder)": parameters,
        "latent_dim": lambda each: Cell(str(each.latent_dim), each.latent_dim),
        "p(x|z)": lambda each: Cell(each.likelihood, each.run.model.sigma or 0.0),
        "test ELBO": lambda each: nats(each.figures["test/elbo"], each.figures["test/elbo_se"]),
        f"difference to {first.name}": difference,
        "latents in use": lambda each: Cell(f"{each.active} of {each.latent_dim}", each.active),
        "chain": chain,
        "drift": lambda each: nats(each.course.drifts[-1]),
    }
    if any(number(each, "samples/fid") is not None for each in compared):
        columns["Fréchet distance"] = lambda each: plain(each.evaluation.get("samples/fid"))
    return {name: [cell(each) for each in compared] for name, cell in columns.items()}


def finals(compared: Sequence[Compared], split: str) -> list[list[Cell]]:
    """A row a run: each term with its standard error, its paired difference to the first run, the
    linear optimum."""
    rows = []
    for each in compared:
        cells = []
        for term in TERMS:
            key = f"{split}/{term}"
            cells.append(nats(each.figures[key], each.figures[f"{key}_se"]))
            cells.append(
                Cell("–") if each is compared[0] else nats(*paired(compared[0], each, key), "+")
            )
        rows.append(
            [*cells, nats(each.figures[f"oracle/{split}_elbo"]) if each.oracle else Cell("–")]
        )
    return rows


def evaluation_table(compared: Sequence[Compared]) -> dict[str, list[Cell]]:
    """The single figures of evaluation.json, a cell a run; a figure's standard error stands beside
    it.

    Its lists (KL per latent, covariances, classes over time) would widen the table past reading;
    like the differences from one other run, which the page has for all, they are in
    comparison.json.
    """
    found = {key: value for each in compared for key, value in each.evaluation.items()}
    rows = [
        key
        for key, value in found.items()
        if not isinstance(value, list | dict)
        and not key.startswith(("against", "time/"))
        and not (key.endswith("_se") and key.removesuffix("_se") in found)
    ]
    return {
        key: [
            plain(each.evaluation.get(key), each.evaluation.get(f"{key}_se")) for each in compared
        ]
        for key in rows
    }


def plain(value: Any, se: Any = None) -> Cell:
    """Any figure of an evaluation; its exact value stays behind the text."""
    if value is None:
        return Cell("–")
    if isinstance(value, bool) or not isinstance(value, int | float):
        return Cell(str(value), str(value))
    style = ",.0f" if value == int(value) else ",.2f" if abs(value) >= 10 else ",.4g"
    return Cell(f"{value:{style}}" + (f" ± {se:.2g}" if isinstance(se, int | float) else ""), value)
