"""Gaussian variational autoencoders in PyTorch Lightning.

    import vae

    run = vae.load_run("outputs/…")  # a finished run: its model, its config, its metrics
    data = vae.load_data(run.config)  # the images that it was trained and tested on
    module = vae.LitVAE.load_from_checkpoint("outputs/…/checkpoints/best.ckpt")

All names are imported on first use, so that `python -m vae.train --help` does not wait for torch.
"""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vae.analysis.latents import interpolations, traversals
    from vae.data import ImageDataModule
    from vae.models import VAE, Decoder, Encoder
    from vae.plots.latents import interpolation_figure, traversal_figure
    from vae.reports.sweep.runs import read_sweep
    from vae.runs.folder import Run, load_data, load_run
    from vae.training import LitVAE

__version__ = "0.2.0"
__all__ = [
    "VAE",
    "Decoder",
    "Encoder",
    "ImageDataModule",
    "LitVAE",
    "Run",
    "interpolation_figure",
    "interpolations",
    "load_data",
    "load_run",
    "read_sweep",
    "traversal_figure",
    "traversals",
]
MODULES = {
    "VAE": "vae.models",
    "Decoder": "vae.models",
    "Encoder": "vae.models",
    "ImageDataModule": "vae.data",
    "LitVAE": "vae.training",
    "Run": "vae.runs.folder",
    "interpolation_figure": "vae.plots.latents",
    "interpolations": "vae.analysis.latents",
    "load_data": "vae.runs.folder",
    "load_run": "vae.runs.folder",
    "read_sweep": "vae.reports.sweep.runs",
    "traversal_figure": "vae.plots.latents",
    "traversals": "vae.analysis.latents",
}


def __getattr__(name: str) -> Any:
    if name in MODULES:
        return getattr(importlib.import_module(MODULES[name]), name)
    raise AttributeError(f"module 'vae' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def config_folder() -> str:
    """Absolute path of the configs: conf/ of a checkout, or the copy of it in an installed
    wheel."""
    installed = Path(__file__).parent / "conf"
    return str(installed if installed.is_dir() else Path(__file__).parents[1] / "conf")
