"""Means over the images of a split, exact whatever the batches and processes were."""

from collections.abc import Callable

import torch
from torch import Tensor
from torchmetrics import Metric

from vae.analysis.latents import COLLAPSE_THRESHOLD, INACTIVE_THRESHOLD
from vae.data.batches import Batch
from vae.models.elbo import ELBOTerms, noise_per_image

CHUNK = 1000  # images whose noise is drawn together
FOLD = 64  # training steps whose terms are kept before they are added up


class ELBOMetric(Metric):
    """ELBO, its terms and the unused latents of a split, in nats per image.

    Sums are in `dtype`, which should be float64 where the device has it.
    """

    full_state_update = False
    images: Tensor  # [], a sum as the next ones
    log_likelihood: Tensor  # []
    kl: Tensor  # [m]
    mean: Tensor  # [m]
    square: Tensor  # [m]

    def __init__(self, latent_dim: int, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        for name in ("images", "log_likelihood"):
            self.add_state(name, torch.zeros((), dtype=dtype), dist_reduce_fx="sum")
        for name in ("kl", "mean", "square"):
            self.add_state(name, torch.zeros(latent_dim, dtype=dtype), dist_reduce_fx="sum")

    def update(self, terms: ELBOTerms, mean: Tensor) -> None:
        """Add a batch: its ELBO terms and the posterior means [B, m]."""
        self.images += len(mean)  # 0 where a process's last batch is empty
        self.log_likelihood += terms.log_likelihood.sum()
        self.kl += terms.kl.sum(0)
        self.mean += mean.sum(0)
        self.square += mean.square().sum(0)

    def compute(self) -> dict[str, Tensor]:
        """Means over the images of all processes."""
        kl = self.kl / self.images  # [m]
        log_likelihood = self.log_likelihood / self.images
        variance = self.square / self.images - (self.mean / self.images).square()  # of E[z_i|x]
        return {
            "elbo": log_likelihood - kl.sum(),
            "log_likelihood": log_likelihood,
            "kl": kl.sum(),
            "collapsed": (kl < COLLAPSE_THRESHOLD).sum(),
            "inactive": (variance < INACTIVE_THRESHOLD).sum(),
            "images": self.images,
        }

    def pop(self, split: str) -> dict[str, float]:
        """`{split}/…` of what was added since the last call; empty where nothing was."""
        if not self.update_called:
            return {}
        values = {f"{split}/{name}": float(value) for name, value in self.compute().items()}
        self.reset()
        return values


class TrainMetric:
    """Means of the terms that training steps return, weighted by images, over all processes."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.recent: list[dict[str, Tensor]] = []
        self.dtype = torch.float64  # of the sums

    def append(self, terms: dict[str, Tensor]) -> None:
        """Keep the terms [B] of a step; a step without any adds nothing."""
        if terms:
            self.recent.append(terms)
        if len(self.recent) >= FOLD:
            self.fold()

    def fold(self) -> None:
        """Add up the recent steps: one reduction for many of them."""
        for name in self.recent[0] if self.recent else ():
            values = torch.cat([terms[name] for terms in self.recent])
            total = torch.stack([values.to(self.dtype).sum(), values.new_full((), len(values))])
            self.sums[name] = self.sums.get(name, 0) + total.to(self.dtype)
        self.recent.clear()

    def state(self, reduce: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """[sum, images] of each term over all processes; `reduce` adds up a tensor over them."""
        self.fold()
        return {name: reduce(total.clone()) for name, total in self.sums.items()}

    def pop(self, reduce: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """`train/…`, the means since the last call; empty where no image was trained on."""
        totals = {name: reduce(t).tolist() for name, t in self.state(lambda t: t).items()}
        means = {f"train/{name}": total / n for name, (total, n) in totals.items() if n}
        if {"train/log_likelihood", "train/kl"} <= means.keys():
            means["train/elbo"] = means["train/log_likelihood"] - means["train/kl"]
        self.sums.clear()
        return means


class FixedNoise:
    """Standard normal draws [B, m] that belong to the images of a batch, whatever the batches."""

    def __init__(self, latent_dim: int, seed: int) -> None:
        self.latent_dim, self.seed = latent_dim, seed
        self.of_file = torch.empty(0, latent_dim)
        self.in_turn = torch.empty(0, latent_dim)
        self.seen = 0  # images of this process since its first batch

    def __call__(self, batch: Batch, batch_idx: int, rank: int = 0, world_size: int = 1) -> Tensor:
        """By the images' places in their file; where these are unknown, by their places in the
        loader, which deals them out to the processes in turns."""
        device = batch.pixels.device
        if batch.index is None:
            first = self.seen if batch_idx else 0
            self.seen = first + len(batch.pixels)
            while len(self.in_turn) < self.seen * world_size:
                seed = self.seed * 1_000_003 + len(self.in_turn)
                more = noise_per_image(CHUNK, self.latent_dim, seed)
                self.in_turn = torch.cat([self.in_turn.to(device), more.to(device)])
            return self.in_turn[rank::world_size][first : self.seen]
        if len(self.of_file) != batch.file_size:
            self.of_file = noise_per_image(batch.file_size, self.latent_dim, self.seed).to(device)
        return self.of_file.index_select(0, batch.index)
