"""The learning step, and what a run needs around it."""

from vae.training.module import LitVAE
from vae.training.progress import Progress

__all__ = ["LitVAE", "Progress"]
