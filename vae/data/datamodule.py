"""A LightningDataModule that serves a data set of images from memory."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import lightning.pytorch as L
import torch
from annotated_types import Ge, Le
from torch import Tensor
from torch.utils.data import DataLoader

from vae.data.batches import (
    Batch,
    BatchLoader,
    ImageBatches,
    IndexBatches,
    PixelTransform,
    as_images,
)
from vae.data.sources import SOURCES, fetch, read_idx, wrong_files
from vae.models.networks import MNIST_SHAPE, ImageShape
from vae.models.vae import VAE
from vae.runs.errors import RunError, UserError
from vae.runs.signatures import signature_of, value_problems
from vae.runs.types import Seed
from vae.theory.ppca import PPCA, Spectrum, best_linear

SPLITS = ("train", "val", "test")

Images = Annotated[int, Ge(1), Le(10**7)]


class ImageDataModule(L.LightningDataModule):
    """Batches of the training, validation and test images of a data set of SOURCES.

    `pixels` says what the model sees: grey x/255; dequantised (x + u)/256; binarised, 1 with
    probability x/255. The noise u ~ U[0, 1) is fresh in every training step and fixed for each
    image elsewhere. The validation split is `val_size` training images drawn with `val_seed`, the
    same for every run whatever its own `seed`, which shuffles. The test files are opened by testing
    alone. For your own data set override `prepare_data` and `read`.

    Raises ValueError for an unknown name or kind of pixels and for sizes that do not fit the data,
    and `prepare_data` RunError where the files cannot be had.
    """

    def __init__(
        self,
        name: str,
        root: str,
        image_shape: ImageShape = MNIST_SHAPE,
        pixels: PixelTransform = "grey",
        batch_size: Images = 128,
        eval_batch_size: Images = 1000,
        val_size: Images = 5000,
        val_seed: Seed = 0,
        seed: Seed = 0,
    ) -> None:
        super().__init__()
        self.source_name, self.root, self.image_shape = name, Path(root), tuple(image_shape)
        self.transform: PixelTransform = pixels
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.val_size, self.val_seed, self.seed = val_size, val_seed, seed
        self.batches_per_block = 1  # more for vae.training.blocks alone
        self.test_splits: Sequence[str] = ("test",)  # what test_dataloader serves
        self.pixels: dict[str, Tensor] = {}  # uint8 [N, C, H, W]; train and val share one tensor
        self.labels: dict[str, Tensor] = {}  # uint8 [N]
        self.index: dict[str, Tensor] = {}  # int64 [n], the images of each split in its pixels
        self._uniform: dict[str, Tensor] = {}  # the fixed noise of one split
        self.check_sizes()

    def check_sizes(self) -> None:
        """Raise ValueError for a name, pixels or sizes that cannot be served."""
        given = {
            "pixels": self.transform,
            "batch_size": self.batch_size,
            "eval_batch_size": self.eval_batch_size,
            "val_size": self.val_size,
            "val_seed": self.val_seed,
            "seed": self.seed,
        }
        parameters = signature_of(ImageDataModule).parameters
        for name, value in given.items():
            for problem in value_problems(f"data.{name}", value, parameters[name].annotation):
                raise ValueError(problem)
        if self.source_name in SOURCES:
            self.check_sizes_for(SOURCES[self.source_name].train_images)
        elif type(self).read is ImageDataModule.read:  # a subclass reads what it likes
            raise ValueError(f"data.name={self.source_name} must be {' | '.join(SOURCES)}")

    def check_sizes_for(self, count: int) -> None:
        """Raise ValueError where `count` training images are too few for the sizes asked for."""
        if count <= self.val_size:
            raise ValueError(f"data.val_size={self.val_size} leaves none of {count} images")
        if self.batch_size > count - self.val_size:
            raise ValueError(
                f"data.batch_size={self.batch_size} is more than the {count - self.val_size} "
                "images to train on"
            )

    def prepare_data(self) -> None:
        fetch(SOURCES[self.source_name], self.root)

    def is_prepared(self) -> bool:
        """Whether the files are in `root` and whole, so that nothing is to be fetched."""
        source = SOURCES.get(self.source_name)  # None for a class that reads its own images
        return source is None or not wrong_files(source, self.root / source.folder / "raw")

    def read(self, train: bool) -> tuple[Tensor, Tensor]:
        """Pixels uint8 [N, C, H, W] and labels uint8 [N] of the training or the test file."""
        images, labels = (read_idx(p) for p in SOURCES[self.source_name].files(self.root, train))
        return images.unsqueeze(1), labels

    def setup(self, stage: str | None = None) -> None:
        if "train" not in self.index:
            self._load(("train", "val"), train=True)
            count = len(self.labels["train"])
            try:
                self.check_sizes_for(count)
            except ValueError as error:
                raise UserError(str(error)) from error
            order = torch.randperm(count, generator=torch.Generator().manual_seed(self.val_seed))
            self.index["val"] = order[: self.val_size].sort().values
            self.index["train"] = order[self.val_size :].sort().values
        if stage in (None, "test", "predict") and "test" not in self.index:
            self._load(("test",), train=False)
            self.index["test"] = torch.arange(len(self.labels["test"]))

    # --- images -----------------------------------------------------------------------------

    def split_indices(self, split: str) -> Tensor:
        """Which pixels are the split's, int64 [n]; RuntimeError before `setup` has read them, and
        ValueError for no split."""
        if split not in SPLITS:
            raise ValueError(f"no split {split!r}: train, val or test")
        if split not in self.index:
            stage = "test" if split == "test" else "fit"
            raise RuntimeError(
                f"the {split} images are not read: prepare_data() and setup({stage!r}) come first"
            )
        return self.index[split]

    def split_pixels(self, split: str, stop: int | None = None) -> Tensor:
        """The first `stop` images of a split, uint8 [n, C, H, W]; all of them without it."""
        return self.pixels[split].index_select(0, self.split_indices(split)[:stop])

    def split_labels(self, split: str, stop: int | None = None) -> Tensor:
        """The labels of `split_pixels`, uint8 [n]."""
        return self.labels[split].index_select(0, self.split_indices(split)[:stop])

    def images(self, split: str, n: int | None = None) -> Tensor:
        """The first n images of a split, or all, as a model sees them: float [n, C, H, W]."""
        index = self.split_indices(split)[:n]
        return as_images(
            self.split_pixels(split, n), self.transform, self.fixed_noise(split, index)
        )

    def fixed_noise(self, split: str, index: Tensor) -> Tensor | None:
        """The transform's noise [B, C, H, W] that belongs to the images `index` of a split."""
        if self.transform == "grey":
            return None
        pixels = self.pixels[split]
        if split not in self._uniform:
            noise = torch.rand(pixels.shape, generator=torch.Generator().manual_seed(0))
            self._uniform = {split: noise.to(pixels.device)}
        return self._uniform[split].index_select(0, index)

    def spectrum(self) -> Spectrum:
        """Eigenvalues of the training split, over all noise: what the closed forms need."""
        return Spectrum.cached(self.split_pixels("train"), self.transform)

    def best_linear(self, model: VAE) -> PPCA | None:
        """The optimum of a linear encoder and decoder with the model's likelihood and latents; None
        where it has no closed form."""
        return best_linear(model.likelihood, self.spectrum(), model.latent_dim)

    # --- batches ----------------------------------------------------------------------------

    def train_dataloader(self) -> DataLoader[Batch]:
        in_order = self.trainer is not None and self.trainer.overfit_batches > 0  # type: ignore[attr-defined]
        return self.loader("train", shuffle_seed=None if in_order else self.seed, training=True)

    def val_dataloader(self) -> DataLoader[Batch]:
        return self.loader("val")

    def test_dataloader(self) -> list[DataLoader[Batch]]:
        return [self.loader(split) for split in self.test_splits]

    def predict_dataloader(self) -> DataLoader[Batch]:
        return self.loader("test")

    def loader(
        self, split: str, shuffle_seed: int | None = None, training: bool = False
    ) -> DataLoader[Batch]:
        """Batches of a split: in its order without a seed, and with fixed noise unless training."""
        rank, world_size = 0, 1
        if self.trainer is not None:
            rank, world_size = self.trainer.global_rank, self.trainer.world_size
            self._move_to(self.trainer.strategy.root_device)
        # Under DDP a backward pass belongs to one call of the training step: a block is one batch.
        blocks = self.batches_per_block if world_size == 1 else 1
        places = self.split_indices(split)
        batches = IndexBatches(
            places,
            self.batch_size * blocks if training else self.eval_batch_size,
            shuffle_seed,
            rank,
            world_size,
            position=self._position if training and self.trainer is not None else None,
        )
        images = ImageBatches(
            len(places),
            self.pixels[split],
            self.labels[split],
            split_name=split,
            rank=rank,
            world_size=world_size,
            transform=self.transform,
        )
        if not training:
            images.fixed_noise = lambda index: self.fixed_noise(split, index)
        return BatchLoader(images, batch_size=None, sampler=batches)

    def transfer_batch_to_device(
        self, batch: Any, device: torch.device, dataloader_idx: int
    ) -> Any:
        return batch  # the pixels are on the device already

    def _position(self) -> tuple[int, int]:
        """The Trainer's epoch, and the batches of it that a checkpoint has behind it.

        Only the Trainer's own first pass after a restart leaves those out.
        """
        epoch_loop = self.trainer.fit_loop.epoch_loop  # type: ignore[union-attr]
        done = epoch_loop.batch_progress.current.ready if epoch_loop.restarting else 0
        return self.trainer.current_epoch, done  # type: ignore[union-attr]

    def _load(self, splits: tuple[str, ...], train: bool) -> None:
        images, labels = self.read(train)
        if images.shape[1:] != self.image_shape:
            shape = list(images.shape[1:])
            raise RunError(f"data.image_shape={list(self.image_shape)}: the files hold {shape}")
        for split in splits:
            self.pixels[split], self.labels[split] = images, labels

    def _move_to(self, device: torch.device) -> None:
        """Everything that batches are made of, once: nothing is copied within a step."""
        for tensors in (self.pixels, self.labels, self.index):
            moved: dict[int, Tensor] = {}  # train and val stay one tensor
            for split, tensor in tensors.items():
                if id(tensor) not in moved:
                    moved[id(tensor)] = tensor.to(device)
                tensors[split] = moved[id(tensor)]
