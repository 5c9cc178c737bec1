"""Gaussian variational autoencoders in PyTorch Lightning.

What a notebook wants: `vae.load_run(folder)` opens a finished run, `vae.load_data(run.config)` its
images, and `traversals` and `interpolations` walk through its latents, with a `…_figure` each. They
are imported on first use, so that `python -m vae.train --help` does not wait for torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vae.analysis.latents import interpolations, traversals
    from vae.plots.latents import interpolation_figure, traversal_figure
    from vae.runs.folder import load_data, load_run

HOMES = {
    "load_run": "vae.runs.folder",
    "load_data": "vae.runs.folder",
    "traversals": "vae.analysis.latents",
    "traversal_figure": "vae.plots.latents",
    "interpolations": "vae.analysis.latents",
    "interpolation_figure": "vae.plots.latents",
}
__all__ = [
    "interpolation_figure",
    "interpolations",
    "load_data",
    "load_run",
    "traversal_figure",
    "traversals",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name in HOMES:
        return getattr(importlib.import_module(HOMES[name]), name)
    raise AttributeError(f"module 'vae' has no attribute {name!r}")
