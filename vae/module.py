"""The learning step: a LightningModule around the pair."""

from collections.abc import Callable, Iterable
from typing import Any

import lightning.pytorch as L
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from vae.data import SPLITS, as_images
from vae.elbo import Terms, noise_per_image
from vae.networks import VAE
from vae.ppca import PPCA

COLLAPSED = 0.01  # nats of mean KL below which a latent counts as collapsed
INACTIVE = 0.01  # Var_x(E[z_i|x]) below which a unit counts as inactive (Burda et al., arXiv:1509.00519)
CHECKPOINT_FORMAT = 1

Batch = tuple[Tensor, Tensor]  # pixels uint8 [B, 1, 28, 28], index [B]


class SplitSums:
    """Sums over the images of a split, from which its means follow exactly whatever the batches were."""

    def __init__(self, latent_dim: int, device: torch.device) -> None:
        self.sums = torch.zeros(2 + 3 * latent_dim, dtype=sum_dtype(device), device=device)

    def add(self, terms: Terms, mean: Tensor) -> None:
        """Add a batch: its ELBO terms and the posterior means [B, m]."""
        count = torch.full_like(terms.log_likelihood[:1], len(mean))
        per_latent = [terms.kl.sum(0), mean.sum(0), mean.square().sum(0)]
        self.sums += torch.cat([count, terms.log_likelihood.sum(0, keepdim=True), *per_latent])

    def figures(self, reduce: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Means over the images of all ranks; `reduce` adds up a tensor over the ranks."""
        sums = reduce(self.sums).cpu().double()
        count, log_likelihood = sums[:2].tolist()
        kl, mean, square = sums[2:].view(3, -1) / count
        return {
            "elbo": log_likelihood / count - kl.sum().item(),
            "log_likelihood": log_likelihood / count,
            "kl": kl.sum().item(),
            "collapsed": float((kl < COLLAPSED).sum()),
            "inactive": float((square - mean.square() < INACTIVE).sum()),
        }


def sum_dtype(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64


class LitVAE(L.LightningModule):
    """Trains a VAE by its ELBO; logs `train/*` and `val/*` once a validation, `test/*` once a test.

    `optimizer` takes the parameters, `scheduler` the optimizer; its steps are epochs. `oracle` is the closed-form
    optimum of a linear pair on the same data, which the pictures show. Noise in validation and test is fixed per
    image by `eval_seed`, so these figures depend neither on batches and ranks nor on how the training drew.
    """

    def __init__(
        self,
        model: VAE,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
        scheduler: Callable[[Optimizer], LRScheduler] | None = None,
        oracle: PPCA | None = None,
        eval_seed: int = 0,
    ) -> None:
        super().__init__()
        self.model = model
        self.oracle = oracle
        self.final: dict[str, float] = {}  # figures of the last test, all three splits
        self._optimizer, self._scheduler, self._eval_seed = optimizer, scheduler, eval_seed
        self.images_seen = 0  # by this process in this training
        self._rng: dict[str, Tensor] | None = None
        self._sums: dict[str, SplitSums] = {}
        self._noise: dict[str, Tensor] = {}

    def configure_optimizers(self) -> Any:
        optimizer = self._optimizer(self.parameters())
        if self._scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": self._scheduler(optimizer)}

    def on_train_start(self) -> None:
        self._train_sums = torch.zeros(4, dtype=sum_dtype(self.device), device=self.device)
        if self._rng is not None:
            restore_rng(self._rng)

    def training_step(self, batch: Batch, _: int) -> Tensor:
        pixels, _index = batch
        terms, _posterior = self.model.elbo_terms(as_images(pixels))
        objective = -terms.elbo.mean()
        with torch.no_grad():
            count = len(pixels)
            self.images_seen += count
            log_likelihood, kl = terms.log_likelihood.sum(), terms.kl.sum()
            self._train_sums += torch.stack([torch.full_like(kl, count), objective * count, log_likelihood, kl])
        return objective

    def validation_step(self, batch: Batch, _: int) -> None:
        self._evaluate(batch, "val")

    def test_step(self, batch: Batch, _: int, dataloader_idx: int = 0) -> None:
        self._evaluate(batch, SPLITS[dataloader_idx])

    def on_validation_epoch_end(self) -> None:
        """Both splits at the same step, so that their curves overlay; train is the mean since the last validation."""
        if self.trainer.state.fn == "fit":
            count, objective, log_likelihood, kl = self._over_ranks(self._train_sums).tolist()
            self._train_sums.zero_()
            self.log("train/elbo", (log_likelihood - kl) / count)
            self.log("train/log_likelihood", log_likelihood / count)
            self.log("train/kl", kl / count)
            self.log("train/objective", objective / count)
        val = self._figures("val")
        self.log("val/elbo", val["elbo"], prog_bar=True)
        self.log_dict({f"val/{key}": val[key] for key in ("log_likelihood", "kl", "collapsed")})

    def on_test_epoch_end(self) -> None:
        for split in SPLITS:
            figures = self._figures(split)
            names = ["elbo", "log_likelihood", "kl", "collapsed"] + (["inactive"] if split == "test" else [])
            self.final |= {f"{split}/{name}": figures[name] for name in names}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["vae_format"] = CHECKPOINT_FORMAT
        checkpoint["rng"] = rng_state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._rng = checkpoint["rng"]

    def _evaluate(self, batch: Batch, split: str) -> None:
        pixels, index = batch
        size = len(self.trainer.datamodule.pixels[split])  # type: ignore[attr-defined]
        if len(self._noise.get(split, ())) != size:
            noise = noise_per_image(size, self.model.latent_dim, self._eval_seed)
            self._noise = {split: noise.to(self.device)}
        if split not in self._sums:
            self._sums[split] = SplitSums(self.model.latent_dim, self.device)
        terms, posterior = self.model.elbo_terms(as_images(pixels), self._noise[split][index])
        self._sums[split].add(terms, posterior.loc)

    def _figures(self, split: str) -> dict[str, float]:
        return self._sums.pop(split).figures(self._over_ranks)

    def _over_ranks(self, sums: Tensor) -> Tensor:
        return self.trainer.strategy.reduce(sums, reduce_op="sum")


def rng_state() -> dict[str, Tensor]:
    """Torch's global generators, on the CPU and on the current CUDA device."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore_rng(state: dict[str, Tensor]) -> None:
    torch.set_rng_state(state["cpu"].cpu())
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())
