"""Gaussian variational autoencoders in PyTorch Lightning.

`vae.load_run(folder)` opens a finished run. It is imported on first use, so that
`python -m vae.train --help` does not wait for torch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vae.runs import load_run

__all__ = ["load_run"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "load_run":
        from vae.runs import load_run

        return load_run
    raise AttributeError(f"module 'vae' has no attribute {name!r}")
