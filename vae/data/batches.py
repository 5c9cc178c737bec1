"""Batches as slices of one resident tensor of pixels, by index.

Pixels stay in memory as uint8 on the training device; a batch is one indexing operation, with no
image library, no per-image transform and no worker processes. Against torchvision's usual loader
this is most of what makes an epoch of a small model five times as fast.
"""

from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, SequentialSampler

PixelTransform = Literal["grey", "dequantised", "binarised"]


class Batch(NamedTuple):
    """Images of one process, and what a learning step has to know of the batch they belong to.

    Under DDP the batch is that of all processes together, and `pixels` are one process's share.
    """

    pixels: Tensor  # [B, C, H, W], uint8, or float images in [0, 1]
    labels: Tensor | None = None  # [B]
    index: Tensor | None = None  # type: ignore[assignment]  # [B], places of the images in their file of `file_size` images
    file_size: int = 0
    split_name: str = ""  # train, val or test
    size: int = 0  # images in the batch of all processes; those of `pixels` where it is 0
    rank: int = 0
    world_size: int = 1
    transform: PixelTransform = "grey"
    uniform: Tensor | None = None  # [B, C, H, W], the transform's noise where it is fixed

    def random(self, draw: Callable[..., Tensor], samples: int, *shape: int) -> Tensor:
        """Noise [samples, B, *shape] by torch.randn or torch.rand from the global generator.

        Each process draws the noise of the whole batch, as one process would, and takes its part.
        """
        noise = draw(samples, self.size, *shape, device=self.pixels.device)
        return noise if self.world_size == 1 else noise[:, self.rank :: self.world_size]

    def pixel_noise(self) -> Tensor | None:
        """Fresh noise [B, C, H, W] for the transform of the pixels; None where it takes none."""
        if self.transform == "grey":
            return None
        return self.random(torch.rand, 1, *self.pixels.shape[1:])[0]

    def training_images(self) -> Tensor:
        """The images as a training step sees them, with fresh noise: float [B, C, H, W]."""
        return as_images(self.pixels, self.transform, self.pixel_noise())

    def images(self) -> Tensor:
        """The images as a model sees them in validation and test: float [B, C, H, W]."""
        return as_images(self.pixels, self.transform, self.uniform)

    def mean(self, values: Tensor) -> Tensor:
        """Mean of `values` [B] over the whole batch, once DDP has averaged over the processes.

        Processes may have unequal shares of the batch, or none. An empty batch has mean 0.
        Raises ValueError for anything else than one value per image.
        """
        if values.ndim != 1:
            raise ValueError(f"expected one value per image, [B], not {[*values.shape]}")
        return values.sum() * (self.world_size / max(self.size, 1))

    def split(self, batch_size: int) -> "list[Batch]":
        """The batches of a block of several, in one process."""
        parts = [None if t is None else t.split(batch_size) for t in self[:3]]
        return [
            self._replace(
                pixels=pixels,
                labels=parts[1] and parts[1][i],
                index=parts[2] and parts[2][i],
                size=len(pixels),
            )
            for i, pixels in enumerate(parts[0] or ())
        ]


def as_batch(batch: Any) -> Batch:
    """A Batch as it is; images [B, C, H, W], alone or with labels after them, become one. Floats
    of another precision, such as numpy's float64, take torch's default one.

    Raises TypeError for anything else, such as a dictionary, or images twice.
    """
    if isinstance(batch, Batch):
        return batch if batch.size else batch._replace(size=len(batch.pixels))
    if isinstance(batch, Tensor):
        return Batch(in_default_precision(batch), size=len(batch))
    if not isinstance(batch, list | tuple):
        raise TypeError(
            f"a batch must be images, or a tuple of images and labels, not {type(batch).__name__}"
        )
    images, *others = batch
    labels = others[0] if others else None
    if all(isinstance(part, Tensor) and part.ndim == 4 for part in (images, labels)):
        raise TypeError("a batch must be images, or images and labels, not two of images")
    return Batch(in_default_precision(images), labels, size=len(images))


def in_default_precision(images: Any) -> Any:
    """Floats in torch's default precision, which Lightning sets; anything else as it is."""
    floats = isinstance(images, Tensor) and images.is_floating_point()
    return images.to(torch.get_default_dtype()) if floats else images


def as_images(
    pixels: Tensor, transform: PixelTransform = "grey", uniform: Tensor | None = None
) -> Tensor:
    """Integer pixels, 0 to 255, as float images in [0, 1]; float and boolean ones are images.

    Transforms other than grey take `uniform`, draws from [0, 1) of the same shape.
    """
    if transform == "grey" or uniform is None:
        if pixels.dtype == torch.bool:
            return pixels.float()
        return pixels if pixels.is_floating_point() else pixels / 255
    if transform == "dequantised":
        return (pixels + uniform) / 256
    return (255 * uniform < pixels).to(uniform)


class ImageBatches(Dataset[Batch]):
    """Maps (indices [B], images in the whole batch) to the Batch of these images."""

    def __init__(self, images: int, pixels: Tensor, labels: Tensor, **constant: Any) -> None:
        self.images = images  # of the split, among these pixels
        self.pixels, self.labels = pixels, labels
        self.constant = {"file_size": len(pixels), **constant}  # fields equal in all batches
        self.fixed_noise: Callable[[Tensor], Tensor | None] | None = None

    def __len__(self) -> int:
        return self.images

    def __getitem__(self, item: tuple[Tensor, int]) -> Batch:
        index, size = item
        return Batch(
            self.pixels.index_select(0, index),  # 20 times as fast as pixels[index]
            self.labels.index_select(0, index),
            index,
            size=size,
            uniform=self.fixed_noise(index) if self.fixed_noise else None,
            **self.constant,
        )


class IndexBatches(DistributedSampler[Tensor], SequentialSampler):
    """Indices into the pixels, a tensor a batch; over all processes each image once an epoch.

    The order depends on (seed, epoch) alone, so a resumed run sees what the uninterrupted one would
    have seen: `position` is asked for the epoch and the batches done in it, and not before the
    first batch is; without it `set_epoch` says the epoch. `batch_size` is that of one process.
    Batch k of all processes together is batch k of one process with world_size times the batch
    size, dealt out in turns; so all have as many batches, and the last may be short, or even empty.
    Its base classes tell Lightning that it is distributed already and, where it does not shuffle,
    in order.
    """

    def __init__(
        self,
        images: Tensor,  # [N], which pixels belong to the split
        batch_size: int,
        shuffle_seed: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        position: Callable[[], tuple[int, int]] | None = None,
    ) -> None:
        super().__init__(images, num_replicas=world_size, rank=rank, shuffle=False)  # type: ignore[arg-type]
        self.images, self.batch_size, self.shuffle_seed = images, batch_size, shuffle_seed
        self.rank, self.world_size = rank, world_size
        self.position = position

    def __len__(self) -> int:
        return -(-len(self.images) // (self.batch_size * self.world_size))

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:  # type: ignore[override]
        epoch, done = self.position() if self.position else (self.epoch, 0)
        order = self.images
        if self.shuffle_seed is not None:
            generator = torch.Generator().manual_seed(self.shuffle_seed * 1_000_003 + epoch)
            # drawn on the CPU, so that every device has the same order; copied once an epoch
            shuffled = torch.randperm(len(order), generator=generator)
            order = order.index_select(0, shuffled.to(order.device))
        for batch in order.split(self.batch_size * self.world_size)[done:]:
            share = batch if self.world_size == 1 else batch[self.rank :: self.world_size]
            yield share, len(batch)


class BatchLoader(DataLoader[Batch]):
    """Batches of a dataset that makes them whole, from what its sampler gives.

    An ordinary loader would look at each for something to collate, enter each in a profile, and
    draw from the global generator whenever an epoch starts.
    """

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        return map(self.dataset.__getitem__, self.sampler)
