"""The learning step, and what a run needs around it."""

from vae.training.blocks import BlockTraining
from vae.training.mean_image import StartAtMeanImage
from vae.training.module import LitVAE
from vae.training.progress import Progress
from vae.training.schedules import Schedule, warmup_cosine

__all__ = ["BlockTraining", "LitVAE", "Progress", "Schedule", "StartAtMeanImage", "warmup_cosine"]
