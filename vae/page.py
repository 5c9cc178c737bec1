"""The comparison as one HTML file: pictures, charts and videos inside it, nothing fetched from anywhere."""

import base64
import hashlib
import io
import math
import tempfile
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from PIL import Image
from torch import Tensor

from vae.callbacks.chain_video import MILLISECONDS, write_mp4
from vae.collapse import COLLAPSED
from vae.comparison import IMAGES, SAMPLES, STEPS, TERMS, Compared, paired
from vae.data import SPLITS, ImageDataModule
from vae.figures import COLLAPSED as GREY
from vae.figures import ORACLE, new_figure, tile
from vae.module import INACTIVE
from vae.verdict import number

COLOURS = ["#2b6cb0", "#dd6b20", "#2f855a", "#97266d", "#0e8fa3", "#b7791f", "#553c9a", "#c53030"]
COLOURS += ["#5a7d2a", "#7b4f2c", "#1a365d", "#718096"]  # a run keeps its colour; the second dozen is dashed
STRIP = (0, 1, 3, 10, 30, STEPS)  # steps of the chain that print

DRIFT_SHOWN = 1e4  # nats; a chain that diverges leaves the chart there, with a cross, so that others can be read


class Cell(NamedTuple):
    """A table cell: its text, and the value that the column sorts by."""

    text: str
    value: float | str | None = None


def render(compared: Sequence[Compared], data: ImageDataModule, words: dict[str, list[str]], limits: list[str]) -> str:
    """The page as text. Whatever comes from a run (names, settings, evaluations) is escaped by the template."""
    folder = Path(__file__).parent
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    script = (folder / "page.js").read_text(encoding="utf-8").strip()
    runs = [shown(each, i, compared) for i, each in enumerate(compared)]
    return environment.get_template("page.html").render(
        runs=runs,
        verdict=words,
        cautions=limits,
        at_a_glance=at_a_glance(compared),
        splits={split: finals(compared, split) for split in SPLITS},
        evaluation=evaluation_table(compared),
        curves={"ELBO": curves(compared, "elbo"), "KL": curves(compared, "kl")},
        sizes=size_chart(compared) if len(compared) > 2 and len({each.latent_dim for each in compared}) > 1 else None,
        spectrum=spectrum_chart(compared),
        drift=drift_chart(compared),
        drifts=[[nats(each.course.drifts[t]) for t in STRIP] for each in compared],
        originals=picture(tile(data.images("test", IMAGES), 4)),
        data_name=compared[0].run.config.data.name,
        counts={split: len(data.index[split]) for split in SPLITS},
        oracle=any(each.oracle for each in compared),
        likelihoods=sorted({each.likelihood for each in compared}),
        latent_dims=sorted({each.latent_dim for each in compared}),
        collapsed=COLLAPSED,
        inactive=INACTIVE,
        steps=STEPS,
        strip=STRIP,
        samples=SAMPLES,
        rate=1000 / MILLISECONDS,
        written=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def shown(each: Compared, place: int, compared: Sequence[Compared]) -> dict[str, Any]:
    frames = each.course.frames
    return {
        "name": each.name,
        "colour": colour(place),
        "folder": str(each.run.folder),
        "in_use": each.in_use,
        "latent_dim": each.latent_dim,
        "figures": each.figures,
        "linear": each.linear,
        "notes": each.notes,
        "evaluated": bool(each.evaluation),
        "reconstructions": picture(tile(each.reconstructions, 4)),
        "samples": picture(tile(each.samples, 8)),
        "histogram": histogram(each, colour(place), compared),
        "video": video([tile(frame, 8) for frame in frames]),
        "strip": picture(np.concatenate([row(frames[t][:8]) for t in STRIP])),
        "finite_steps": each.course.finite_steps,
        "oracle_collapsed": each.oracle.collapsed if each.oracle else None,
    }


def colour(place: int) -> str:
    return COLOURS[place % len(COLOURS)]


def dashes(place: int) -> str:
    return "-" if place < len(COLOURS) else "--"


# --- tables ----------------------------------------------------------------------------------------------------


def nats(value: float, se: float | None = None, sign: str = "") -> Cell:
    """Two decimals and the standard error; `sign="+"` for differences."""
    if not math.isfinite(value):
        return Cell("not finite")
    digits = ",.2f" if abs(value) < 1e6 else ".1e"
    return Cell(f"{value:{sign}{digits}}".replace("-", "−") + (f" ± {se:.2f}" if se is not None else ""), value)


def at_a_glance(compared: Sequence[Compared]) -> dict[str, list[Cell]]:
    """Columns of the first table, a cell a run."""
    first = compared[0]

    def difference(each: Compared) -> Cell:
        return Cell("reference", 0.0) if each is first else nats(*paired(first, each, "test/elbo"), "+")

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
        "latents in use": lambda each: Cell(f"{each.in_use} of {each.latent_dim}", each.in_use),
        "chain": chain,
        "drift": lambda each: nats(each.course.drifts[-1]),
    }
    if any(number(each, "samples/fid") is not None for each in compared):
        columns["Fréchet distance"] = lambda each: plain(each.evaluation.get("samples/fid"))
    return {name: [cell(each) for each in compared] for name, cell in columns.items()}


def finals(compared: Sequence[Compared], split: str) -> list[list[Cell]]:
    """A row a run: each term with its standard error, its paired difference to the first run, the linear optimum."""
    rows = []
    for each in compared:
        cells = []
        for term in TERMS:
            key = f"{split}/{term}"
            cells.append(nats(each.figures[key], each.figures[f"{key}_se"]))
            cells.append(Cell("–") if each is compared[0] else nats(*paired(compared[0], each, key), "+"))
        rows.append([*cells, nats(each.figures[f"oracle/{split}_elbo"]) if each.oracle else Cell("–")])
    return rows


def evaluation_table(compared: Sequence[Compared]) -> dict[str, list[Cell]]:
    """The single figures of evaluation.json, a cell a run; a figure's standard error stands beside it.

    Its lists (KL per latent, covariances, classes over time) would widen the table past reading; like the
    differences from one other run, which the page has for all, they are in comparison.json.
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
        key: [plain(each.evaluation.get(key), each.evaluation.get(f"{key}_se")) for each in compared] for key in rows
    }


def plain(value: Any, se: Any = None) -> Cell:
    """Any figure of an evaluation; its exact value stays behind the text."""
    if value is None:
        return Cell("–")
    if isinstance(value, bool) or not isinstance(value, int | float):
        return Cell(str(value), str(value))
    style = ",.0f" if value == int(value) else ",.2f" if abs(value) >= 10 else ",.4g"
    return Cell(f"{value:{style}}" + (f" ± {se:.2g}" if isinstance(se, int | float) else ""), value)


# --- charts ----------------------------------------------------------------------------------------------------


def chart(title: str, x: str, y: str, width: float = 4.7, height: float = 3.2) -> tuple[Figure, Axes]:
    figure = new_figure(width, height, title)
    axes = figure.subplots()
    top = 1 - (0.36 if title else 0.08) / height
    figure.subplots_adjust(left=0.68 / width, right=1 - 0.16 / width, bottom=0.5 / height, top=top)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def svg(figure: Figure) -> str:
    """The chart as a data URI: text stays text, and equal figures make equal bytes."""
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "vae"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return uri("image/svg+xml", buffer.getvalue())


def curves(compared: Sequence[Compared], term: str) -> str:
    figure, axes = chart({"elbo": "ELBO", "kl": "KL(q ‖ prior)"}[term], "epoch", "nats per image")
    for i, each in enumerate(compared):
        epochs = [row["epoch"] for row in each.history]
        axes.plot(epochs, [row[f"train/{term}"] for row in each.history], color=colour(i), linewidth=1, linestyle=":")
        val = [row[f"val/{term}"] for row in each.history]
        marker = "o" if len(epochs) < 2 else None
        axes.plot(epochs, val, color=colour(i), linewidth=1.8, linestyle=dashes(i), marker=marker)
    if term == "elbo":
        optima = {each.oracle.train_elbo for each in compared if each.oracle is not None}
        for optimum in optima:
            axes.axhline(optimum, color=ORACLE, linestyle="--", linewidth=0.9)
        late = [row["val/elbo"] for each in compared for row in each.history[len(each.history) // 10 :]]
        if late:  # the first steep climb stays below the edge, where it would flatten all that follows
            low, high = min(*late, *optima), max(*late, *optima)
            axes.set_ylim(low - 0.05 * (high - low), high + 0.08 * (high - low))
    return svg(figure)


def size_chart(compared: Sequence[Compared]) -> str:
    """Test ELBO over latent_dim, the runs of a model joined, with the best linear pair of each size."""
    figure, axes = chart("test ELBO over latent_dim", "latent_dim", "nats per image")
    for model in dict.fromkeys((each.run.model.name, each.likelihood) for each in compared):
        joined = sorted(
            (e.latent_dim, e.figures["test/elbo"]) for e in compared if (e.run.model.name, e.likelihood) == model
        )
        axes.plot(*zip(*joined, strict=True), color=GREY, linewidth=1.2, zorder=1)
    for i, each in enumerate(compared):
        elbo, se = each.figures["test/elbo"], each.figures["test/elbo_se"]
        axes.errorbar(each.latent_dim, elbo, se, color=colour(i), marker="o", markersize=5, capsize=2)
        if each.oracle is not None:
            axes.plot(each.latent_dim, each.figures["oracle/test_elbo"], "+", color=ORACLE, markersize=8)
    dims = sorted({each.latent_dim for each in compared})
    axes.set_xscale("log", base=2)
    axes.set_xticks(dims, [str(dim) for dim in dims])
    axes.xaxis.set_minor_locator(NullLocator())
    return svg(figure)


def histogram(each: Compared, shade: str, compared: Sequence[Compared]) -> str:
    """KL of the latents on bins and axes that all runs share."""
    most = max(10.0, *(run.kl.max().item() for run in compared))
    bins = np.logspace(-5, math.log10(most), 31)
    counts = [np.histogram(run.kl.clamp_min(1e-5).numpy(), bins)[0].max() for run in compared]
    figure, axes = chart("", "mean KL of a latent, nats (log scale)", "latents", 3.7, 2.5)
    kl = each.kl.clamp_min(1e-5).numpy()
    axes.hist(kl[kl < COLLAPSED], bins.tolist(), color=GREY)
    axes.hist(kl[kl >= COLLAPSED], bins.tolist(), color=shade)
    axes.axvline(COLLAPSED, color=ORACLE, linestyle="--", linewidth=0.9)
    axes.set_xscale("log")
    axes.set_xticks([1e-4, COLLAPSED, 1], ["0.0001", f"{COLLAPSED:g}", "1"])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlim(bins[0], bins[-1])
    axes.set_ylim(0, max(counts) * 1.08)
    return svg(figure)


def spectrum_chart(compared: Sequence[Compared]) -> str:
    figure, axes = chart("", "latents, sorted by KL", "mean KL, nats", 3.7, 2.5)
    for i, each in enumerate(compared):
        kl = each.kl.sort(descending=True).values.tolist()
        places = range(1, len(kl) + 1)
        axes.plot(places, kl, color=colour(i), linestyle=dashes(i), marker="o", markersize=3, linewidth=1.2)
        if each.linear and each.oracle is not None:
            axes.plot(places, each.oracle.kl.tolist(), "+", color=ORACLE, markersize=6, markeredgewidth=0.9)
    return svg(figure)


def drift_chart(compared: Sequence[Compared]) -> str:
    figure, axes = chart("", "step t", "KL(moments of z_t ‖ prior), nats")
    for i, each in enumerate(compared):
        steps = each.course.finite_steps
        axes.plot(range(steps), each.course.drifts[:steps], color=colour(i), linestyle=dashes(i), linewidth=1.6)
        if steps < len(each.course.drifts):
            axes.plot(steps - 1, min(each.course.drifts[steps - 1], DRIFT_SHOWN), "x", color=colour(i), markersize=9)
    for floor in {round(each.course.drifts[0], 6) for each in compared}:
        axes.axhline(floor, color="grey", linestyle=":", linewidth=1)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    low, high = axes.get_ylim()
    axes.set_ylim(low, min(high, DRIFT_SHOWN * 1.3))
    if high < 30 * low:
        axes.yaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:g}"[-1] in "235" else "")
    else:
        axes.yaxis.set_minor_formatter("")
    axes.set_xlim(0, STEPS)
    return svg(figure)


# --- pictures and videos ---------------------------------------------------------------------------------------


def uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def picture(pixels: np.ndarray) -> str:
    """Grey pixels [h, w] as they are; the browser enlarges them."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", optimize=True)
    return uri("image/png", buffer.getvalue())


def row(images: Tensor) -> np.ndarray:
    """Images [n, 1, h, w] side by side, with a white gap below."""
    return np.pad(tile(images, len(images)), ((0, 2), (0, 0)), constant_values=255)


def video(frames: list[np.ndarray]) -> str:
    """Frames [h, w] as H.264. At the size of the images themselves a chain is a few hundred kB."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "chain.mp4"
        write_mp4(path, np.stack(frames))
        return uri("video/mp4", path.read_bytes())
