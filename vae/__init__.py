"""Gaussian variational autoencoders in PyTorch Lightning.

What a notebook wants: `vae.load_run(folder)` opens a finished run, `vae.load_data(run.config)` its images, and
`traversals` and `interpolations` walk through its latents, with a `…_figure` each. They are imported on first use, so
that `python -m vae.train --help` does not wait for torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vae.latent import interpolation_figure, interpolations, traversal_figure, traversals
    from vae.runs import load_data, load_run

HOMES = {
    "load_run": "vae.runs",
    "load_data": "vae.runs",
    "traversals": "vae.latent",
    "traversal_figure": "vae.latent",
    "interpolations": "vae.latent",
    "interpolation_figure": "vae.latent",
}
__all__ = ["interpolation_figure", "interpolations", "load_data", "load_run", "traversal_figure", "traversals"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name in HOMES:
        return getattr(importlib.import_module(HOMES[name]), name)
    raise AttributeError(f"module 'vae' has no attribute {name!r}")
