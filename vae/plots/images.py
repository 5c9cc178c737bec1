"""Images as pictures: tiles and grids of any size, grey or in colour; figures as PNG and SVG."""

import base64
import io
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

if TYPE_CHECKING:  # the summary of a sweep plots without waiting for torch
    from torch import Tensor

# A name with dollars is text: as a formula it may not parse, and would end the command.
matplotlib.rcParams["text.parse_math"] = False

PANEL = 6.5  # inches: the width of a picture of the run folder, for a dashboard's card or a slide


def large_text() -> AbstractContextManager[None]:
    """Text that can be read where a picture is shown at half its width."""
    return matplotlib.rc_context({"font.size": 14, "axes.titlesize": 14, "legend.fontsize": 13})


def new_figure(width: float, height: float, title: str) -> Figure:
    """An empty figure (inches, 100 dpi) without pyplot, which keeps every figure alive."""
    figure = Figure(figsize=(width, height), dpi=100)
    FigureCanvasAgg(figure)
    size = max(11.0, float(matplotlib.rcParams["font.size"]))
    figure.suptitle(title, fontsize=size, y=1 - 0.12 / height, va="top")
    return figure


def chart(
    title: str, x: str, y: str, width: float = 4.7, height: float = 3.2
) -> tuple[Figure, Axes]:
    """A figure with one set of axes, their labels and a light grid."""
    figure = new_figure(width, height, title)
    axes = figure.subplots()
    top = 1 - (0.36 if title else 0.08) / height
    figure.subplots_adjust(left=0.68 / width, right=1 - 0.16 / width, bottom=0.5 / height, top=top)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    plain_axes(axes)
    return figure, axes


def plain_axes(axes: Axes) -> None:
    """A light grid, no frame at the top and on the right."""
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def plain_ticks(axis: Axis, form: str = "{x:g}") -> None:
    """Numbers at the large ticks alone: Matplotlib's own labels of a logarithmic axis are formulas,
    which are shown unparsed here."""
    axis.set_major_formatter(form)
    axis.set_minor_formatter(NullFormatter())


def png(figure: Figure) -> bytes:
    """The figure as an encoded PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def svg(figure: Figure) -> str:
    """The figure as a data URI: text stays text, and equal figures make equal bytes."""
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "vae"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return uri("image/svg+xml", buffer.getvalue())


def uri(kind: str, content: bytes) -> str:
    """Bytes of a media type as a data URI."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def tile(images: "Tensor", columns: int, gap: int = 2) -> np.ndarray:
    """Images [n, C, H, W] as one uint8 picture, row by row, white gaps between them.

    Grey [h, w] for one channel, [h, w, 3] for three; any other number of channels is averaged.
    Clipped to [0, 1], NaN black.
    """
    pixels = images.detach().float().cpu().nan_to_num(0.0, 1.0, 0.0).clamp(0, 1)
    if pixels.shape[1] not in (1, 3):
        pixels = pixels.mean(1, keepdim=True)
    shown = (pixels * 255).round().byte().permute(0, 2, 3, 1).numpy()
    n, h, w, channels = shown.shape
    rows = -(-n // columns)
    shape = (rows * (h + gap) - gap, columns * (w + gap) - gap, channels)
    canvas = np.full(shape, 255, dtype=np.uint8)
    for i, image in enumerate(shown):
        top, left = i // columns * (h + gap), i % columns * (w + gap)
        canvas[top : top + h, left : left + w] = image
    return canvas if channels == 3 else canvas[:, :, 0]


def show_picture(axes: Axes, picture: np.ndarray) -> None:
    """Show uint8 pixels [h, w] or [h, w, 3] as they are."""
    axes.imshow(picture, cmap="gray", vmin=0, vmax=255, interpolation="nearest")


def show_tile(axes: Axes, images: "Tensor", columns: int, title: str = "") -> None:
    """Show images [n, C, H, W] as a tile without axes."""
    show_picture(axes, tile(images, columns))
    axes.set_title(title)
    axes.set_axis_off()


def label_tile(
    axes: Axes, shape: Sequence[int], rows: Sequence[str], columns: Sequence[str], **text: Any
) -> None:
    """Name the rows and columns of a tile of images [.., H, W] (gaps of 2 pixels)."""
    h, w = shape[-2:]
    axes.set_xticks([(w + 2) * i + w / 2 - 0.5 for i in range(len(columns))], columns, **text)
    axes.set_yticks([(h + 2) * i + h / 2 - 0.5 for i in range(len(rows))], rows, **text)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def show_grid(
    figure: Figure, images: "Tensor", rows: list[str], columns: list[str], below: str
) -> None:
    """Show images [rows, columns, C, H, W], rows and columns named; `below` names the columns."""
    axes = figure.subplots()
    show_picture(axes, tile(images.flatten(0, 1), len(columns)))
    label_tile(axes, images.shape, rows, columns, fontsize=9)
    axes.set_xlabel(below)
    width, height = figure.get_size_inches()
    figure.subplots_adjust(
        left=1.2 / width, right=0.99, bottom=0.55 / height, top=1 - 0.35 / height
    )
