"""The images: one resident uint8 tensor, and batches that are slices of it by index.

Pixels stay in memory as uint8 on the training device; a batch is one indexing operation, with no
image library, no per-image transform and no worker processes. Against torchvision's usual loader
this is most of what makes an epoch of a small pair five times as fast.
"""

from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from vae.data.batches import ImageBatches, IndexBatches, as_images, identity
from vae.data.sources import SOURCES, fetch, read_idx
from vae.theory.ppca import Spectrum

SPLITS = ("train", "val", "test")


class ImageDataModule(L.LightningDataModule):
    """Train, validation and test batches (pixels uint8 [B, 1, 28, 28], index [B]) of a data set of
    SOURCES.

    Training batches come in blocks of `batches_per_block`, which the training step takes apart.
    `pixels` says what the model sees: grey x/255; dequantised (x + u)/256; binarised, 1 with
    probability x/255. The noise u ~ U[0, 1) is fresh in every training step and fixed for each
    image elsewhere. The validation split is `val_size` training images drawn with `val_seed`, the
    same for every run whatever its own seed. The test files are opened by testing alone. Raises
    ValueError for another name and for sizes that do not fit the data, and `prepare_data` RunError
    where the files cannot be had.
    """

    def __init__(
        self,
        name: str,
        root: str,
        pixels: str = "grey",
        batch_size: int = 128,
        batches_per_block: int = 64,
        eval_batch_size: int = 1000,
        val_size: int = 5000,
        val_seed: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if name not in SOURCES:
            raise ValueError(f"data.name={name} must be {' | '.join(SOURCES)}")
        self.source, self.root = SOURCES[name], Path(root)
        train_size = self.source.train_images - val_size
        if train_size < 1:
            raise ValueError(
                f"data.val_size={val_size} leaves none of {self.source.train_images} images to train on"
            )
        if batch_size > train_size:
            raise ValueError(
                f"data.batch_size={batch_size} is more than the {train_size} images to train on"
            )
        self.kind = pixels
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.batches_per_block = batches_per_block
        self.val_size, self.val_seed, self.seed = val_size, val_seed, seed
        self.pixels: dict[str, Tensor] = {}  # uint8 [N, 1, 28, 28]; train and val share one tensor
        self.labels: dict[str, Tensor] = {}  # uint8 [N]
        self.index: dict[str, Tensor] = {}  # int64, the images of each split in its pixels
        self._uniform: dict[str, Tensor] = {}  # the fixed noise of one split

    def prepare_data(self) -> None:
        fetch(self.source, self.root)

    def setup(self, stage: str) -> None:
        if stage in ("fit", "validate", "test") and "train" not in self.index:
            self._load(("train", "val"), train=True)
            count = len(self.labels["train"])
            order = torch.randperm(count, generator=torch.Generator().manual_seed(self.val_seed))
            self.index["val"] = order[: self.val_size].sort().values
            self.index["train"] = order[self.val_size :].sort().values
        if stage == "test" and "test" not in self.index:
            self._load(("test",), train=False)
            self.index["test"] = torch.arange(len(self.labels["test"]))

    def split_pixels(self, split: str, stop: int | None = None) -> Tensor:
        """The first `stop` images of a split, uint8 [n, 1, 28, 28]; all of them without it."""
        return self.pixels[split].index_select(
            0, self.index[split][:stop].to(self.pixels[split].device)
        )

    def images(self, split: str, n: int | None = None) -> Tensor:
        """The first n images of a split, or all of them, as a model sees them: float in [0, 1], [n,
        1, 28, 28]."""
        return self.fixed_images(split, self.split_pixels(split, n), self.index[split][:n])

    def fixed_images(self, split: str, pixels: Tensor, index: Tensor) -> Tensor:
        """Images of these uint8 pixels [B, 1, 28, 28], with the noise that belongs to their places
        `index` [B]."""
        if self.kind == "grey":
            return as_images(pixels)
        if split not in self._uniform:
            generator = torch.Generator().manual_seed(0)
            self._uniform = {split: torch.rand(self.pixels[split].shape, generator=generator)}
        uniform = self._uniform[split][index.cpu()].to(pixels.device)
        return as_images(pixels, self.kind, uniform)

    def spectrum(self) -> Spectrum:
        """Of the training split, over all noise: what the closed form of a linear pair needs."""
        return Spectrum.cached(self.split_pixels("train"), self.kind)

    def train_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        return self.loader("train", shuffle_seed=self.seed)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        return self.loader("val")

    def test_dataloader(self) -> list[DataLoader[tuple[Tensor, Tensor]]]:
        """All three splits: the final figures of the kept checkpoint on each."""
        return [self.loader(split) for split in SPLITS]

    def loader(
        self, split: str, shuffle_seed: int | None = None
    ) -> DataLoader[tuple[Tensor, Tensor]]:
        rank, world_size = 0, 1
        if self.trainer is not None:
            rank, world_size = self.trainer.global_rank, self.trainer.world_size
            self._move_to(self.trainer.strategy.root_device)
        # Under DDP one backward pass belongs to one call of the training step, so a block is one
        # batch there.
        blocks = self.batch_size * (self.batches_per_block if world_size == 1 else 1)
        batch_size = self.eval_batch_size if shuffle_seed is None else blocks
        batches = IndexBatches(self.index[split], batch_size, shuffle_seed, rank, world_size)
        if shuffle_seed is not None:
            batches.position = self._position
        # batch_size=None: the sampler's tensors go to the dataset as they are, and its batches come
        # out as they are. A generator of its own: an ordinary loader draws from the global one
        # whenever an epoch starts.
        return DataLoader(
            ImageBatches(self.pixels[split]),
            batch_size=None,
            sampler=batches,
            collate_fn=identity,
            generator=torch.Generator(),
        )

    def _position(self) -> tuple[int, int]:
        """The Trainer's epoch, and the blocks of it that a checkpoint has behind it."""
        if self.trainer is None:
            return 0, 0
        return (
            self.trainer.current_epoch,
            self.trainer.fit_loop.epoch_loop.batch_progress.current.ready,
        )

    def transfer_batch_to_device(
        self, batch: Any, device: torch.device, dataloader_idx: int
    ) -> Any:
        return batch  # the pixels are resident on the device already

    def _load(self, splits: tuple[str, ...], train: bool) -> None:
        images, labels = (read_idx(path) for path in self.source.files(self.root, train))
        images = images.unsqueeze(1)
        for split in splits:
            self.pixels[split], self.labels[split] = images, labels

    def _move_to(self, device: torch.device) -> None:
        moved: dict[int, Tensor] = {}  # train and val stay one tensor
        for split, pixels in self.pixels.items():
            self.pixels[split] = moved.setdefault(id(pixels), pixels.to(device))
