"""Studies without networks: architectures with given metrics."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from vae.reports.study.comparisons import Comparisons
from vae.reports.study.ladder import Architecture
from vae.reports.study.measures import COMPARED
from vae.reports.study.sizes import DECODER_ALONE, ENCODER_ALONE, Layers

SPREAD = (-0.3, 0.0, 0.3)  # of three trainings
SIZES = [(0, 0), (1, 8), (1, 64), (2, 8), (2, 64)]


def architecture(
    depth: int, width: int, ladder: str = "", error: float = 0.1, **values: Any
) -> Architecture:
    """Trainings with these metrics (`test__elbo=(200.0, 201.0)`), each with this error over images.

    Other ladders than those of the encoder or decoder alone are networks not fully connected.
    """
    layers, none = Layers((width,) * depth), Layers(())
    sides = {ENCODER_ALONE: (layers, none), DECODER_ALONE: (none, layers), "": (layers, layers)}
    encoder, decoder = sides.get(ladder, (None, None))
    columns = {key.replace("__", "/"): value for key, value in values.items()}
    metrics: list[dict[str, Any]] = [
        {
            "model/encoder_parameters": 100 * (1 + depth) * (1 + width),
            "model/decoder_parameters": 100,
            **{key: value[i] for key, value in columns.items()},
            **{f"{key}_se": error for key in columns},
        }
        for i in range(len(next(iter(columns.values()))))
    ]
    size = "linear" if not depth else f"{depth} × {width}"
    name = f"{ladder} {size}".strip()
    return Architecture(name, ladder or name, encoder, decoder, [Path()] * len(metrics), metrics)


def around(mean: float, spread: float = 1.0) -> tuple[float, ...]:
    return tuple(mean + spread * step for step in SPREAD)


def compared(architectures: list[Architecture], **options: Any) -> Comparisons:
    return Comparisons(sorted(architectures, key=lambda p: p.parameters), COMPARED, **options)


def grid(elbo: Callable[[int, int], float], key: str = "test__elbo") -> Comparisons:
    """Linear, and depths 1 and 2 at widths 8 and 64; `elbo` of depth and width."""
    return compared([architecture(d, w, **{key: around(elbo(d, w))}) for d, w in SIZES])


def seventeen(values: Callable[[int], dict[str, Any]], error: float = 0.1) -> list[Architecture]:
    """The architectures of `make study`; metrics by their number."""
    places = [(0, 0, ""), *((d, w, "") for d in (1, 2, 3) for w in (64, 256, 1024))]
    places += [(d, 256, side) for side in (ENCODER_ALONE, DECODER_ALONE) for d in (1, 2, 3)]
    places += [(1, 600, "conv")]
    return [architecture(d, w, side, error, **values(i)) for i, (d, w, side) in enumerate(places)]
