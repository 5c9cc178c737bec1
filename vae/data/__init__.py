"""Image data sets as one resident tensor, and batches of them."""

from vae.data.batches import Batch, as_batch
from vae.data.datamodule import ImageDataModule
from vae.data.sources import SOURCES, Source

__all__ = ["SOURCES", "Batch", "ImageDataModule", "Source", "as_batch"]
