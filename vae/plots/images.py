"""What the pictures share: colours, tiles of images, PNG bytes."""

import base64
import io
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from vae.plots.palette import COLLAPSED as COLLAPSED_COLOUR
from vae.plots.palette import ORACLE, TRAIN, VAL

__all__ = [
    "COLLAPSED_COLOUR",
    "ORACLE",
    "TRAIN",
    "VAL",
]  # old names, until all users import the palette

if TYPE_CHECKING:  # the summary of a sweep draws without waiting for torch
    from torch import Tensor


def new_figure(width: float, height: float, title: str) -> Figure:
    """An empty figure (inches, 100 dpi) without pyplot, which keeps every figure alive."""
    figure = Figure(figsize=(width, height), dpi=100)
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=11, y=1 - 0.12 / height, va="top")
    return figure


def png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def tile(images: "Tensor", columns: int, gap: int = 2) -> np.ndarray:
    """Images [n, 1, h, w] as one uint8 picture, row by row, white gaps between; clipped to [0, 1],
    NaN black."""
    pixels = images.detach().float().cpu().nan_to_num(0.0, 1.0, 0.0).clamp(0, 1).squeeze(1)
    n, h, w = pixels.shape
    rows = -(-n // columns)
    canvas = np.full((rows * (h + gap) - gap, columns * (w + gap) - gap), 255, dtype=np.uint8)
    for i, image in enumerate((pixels * 255).round().byte().numpy()):
        top, left = i // columns * (h + gap), i % columns * (w + gap)
        canvas[top : top + h, left : left + w] = image
    return canvas


def show_tile(axes: Axes, images: "Tensor", columns: int, title: str = "") -> None:
    """Draw a tile of images without axes."""
    axes.imshow(tile(images, columns), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axes.set_title(title, fontsize=10)
    axes.set_axis_off()


def show_grid(
    figure: Figure, images: "Tensor", rows: list[str], columns: list[str], below: str
) -> None:
    """Draw images [rows, columns, 1, h, w], each row and column with its name, `below` what the
    columns are."""
    h, w = images.shape[-2:]
    axes = figure.subplots()
    axes.imshow(
        tile(images.flatten(0, 1), len(columns)),
        cmap="gray",
        vmin=0,
        vmax=255,
        interpolation="nearest",
    )
    axes.set_xticks([(w + 2) * i + w / 2 - 0.5 for i in range(len(columns))], columns, fontsize=9)
    axes.set_yticks([(h + 2) * i + h / 2 - 0.5 for i in range(len(rows))], rows, fontsize=9)
    axes.set_xlabel(below)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    width, height = figure.get_size_inches()
    figure.subplots_adjust(
        left=1.2 / width, right=0.99, bottom=0.55 / height, top=1 - 0.35 / height
    )


def uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
