"""The learning step: a LightningModule around the pair."""

import math
import time
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import lightning.pytorch as L
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from vae.data.batches import as_images
from vae.data.datamodule import SPLITS, ImageDataModule
from vae.models.elbo import noise_per_image
from vae.models.likelihoods import Gaussian
from vae.models.objectives import ELBO, IWAE
from vae.models.vae import VAE
from vae.runs.errors import RunError
from vae.runs.folder import CHECKPOINT_FORMAT
from vae.theory.ppca import PPCA
from vae.training.metrics import SplitSums, sum_dtype
from vae.training.resume import restore_rng, rng_state

Batch = tuple[
    Tensor, Tensor
]  # pixels uint8 [B, 1, 28, 28], index [B]; in training a block of several batches


class LitVAE(L.LightningModule):
    """Trains a VAE; logs `train/*` and `val/*` once a validation, keeps all figures of a test in
    `final`.

    `optimizer` takes the parameters, `scheduler` the optimizer; its steps are epochs. `oracle` is
    the closed-form optimum of a linear pair on the same data, which the pictures show; `compile`
    fuses the training step. Noise in validation and test is fixed per image by `eval_seed`, so
    these figures depend neither on batches and ranks nor on how the training drew.
    """

    def __init__(
        self,
        model: VAE,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
        scheduler: Callable[[Optimizer], LRScheduler] | None = None,
        objective: ELBO | IWAE | None = None,
        oracle: PPCA | None = None,
        compile: bool = False,
        skip_bad_steps: bool = False,
        eval_seed: int = 0,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.model = model
        self.objective = objective or ELBO()
        self._terms = torch.compile(self._batch_terms) if compile else self._batch_terms
        self.oracle = oracle
        self.final: dict[str, float] = {}  # figures of the last test, all three splits
        self._skip_bad_steps = skip_bad_steps
        self._optimizer, self._scheduler, self._eval_seed = optimizer, scheduler, eval_seed
        self.images_seen, self.seconds, self.skipped_steps = (
            0,
            0.0,
            0,
        )  # of all ranks, over all interruptions
        self._saved: dict[str, Any] = {}
        # DDP seeds once more when it starts; training goes on from here, as it does in one process.
        self._rng: dict[str, Tensor] = {"cpu": torch.get_rng_state()}
        self._sums: dict[str, SplitSums] = {}
        self._noise: dict[str, Tensor] = {}

    def configure_optimizers(self) -> Any:
        optimizer = self._optimizer(self.parameters())
        if self._scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": self._scheduler(optimizer)}

    def on_fit_start(self) -> None:
        self._clock = time.perf_counter()

    def on_train_start(self) -> None:
        self._train_sums = torch.zeros(4, dtype=sum_dtype(self.device), device=self.device)
        if self._saved:
            if self.trainer.is_global_zero:
                self._train_sums += self._saved["train_sums"].to(self._train_sums)
            self._rng = self._saved["rng"]
            self._replay_schedule()
        restore_rng(self._rng, self.device)

    def _replay_schedule(self) -> None:
        """Where a larger trainer.max_epochs has stretched the schedule, go on along the new one
        from this epoch."""
        optimizer: Any = self.optimizers(use_pl_optimizer=False)
        scheduler: Any = self.lr_schedulers()
        if scheduler is None:
            return
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"]
        with warnings.catch_warnings(action="ignore"):  # that no optimiser step comes between
            planned: Any = self._scheduler(optimizer)  # type: ignore[misc]
            for _ in range(scheduler.last_epoch):
                planned.step()
        scheduler.load_state_dict(planned.state_dict())

    def on_fit_end(self) -> None:
        self._update_elapsed()

    def _update_elapsed(self) -> None:
        now = time.perf_counter()
        self.seconds, self._clock = self.seconds + now - self._clock, now

    def training_step(self, block: Batch, batch_idx: int) -> None:
        """One optimiser step for each batch of a block: what Lightning does around a call, it does
        once a block.

        For a small pair that costs as much as the step itself; the steps and their order are the
        same.
        """
        optimizer: Any = self.optimizers(use_pl_optimizer=False)
        ranks = self.trainer.world_size
        # Elsewhere than on a CPU a look at the loss would hold up the device; ranks must not part
        # ways.
        look = ranks == 1 and (self.device.type == "cpu" or self._skip_bad_steps)
        objectives, log_likelihoods, kls = [], [], []
        data = self._data
        for pixels in block[0].split(data.batch_size):
            together = len(pixels)
            if ranks > 1:
                together = self.trainer.train_dataloader.sampler.together(batch_idx)  # type: ignore[union-attr]
            noise = self._rank_slice(
                torch.randn, self.objective.samples, together, self.model.latent_dim
            )
            uniform = None
            if data.kind != "grey":
                uniform = self._rank_slice(torch.rand, 1, together, *pixels.shape[1:])[0]
            each, log_likelihood, kl = self._terms(
                pixels, data.kind, uniform, noise, self.global_step
            )
            # DDP takes the mean of the ranks' gradients, whatever share of the batch each had.
            objective = each.sum() * (ranks / together)
            optimizer.zero_grad()
            if look and not math.isfinite(objective.item()):
                self._on_nonfinite(log_likelihood, kl, objective)
                continue
            if ranks == 1:
                objective.backward()
            else:
                self.manual_backward(objective)
            if look and self._skip_bad_steps and not self._gradients_are_finite():
                self.skipped_steps += 1
                continue
            optimizer.step()
            self._count_step()
            self.images_seen += together
            objectives.append(objective.detach() * (together / ranks))
            log_likelihoods.append(log_likelihood.detach())
            kls.append(kl.detach())
        if objectives:
            sums = [
                torch.stack(objectives).sum(),
                torch.cat(log_likelihoods).sum(),
                torch.cat(kls).sum(),
            ]
            self._train_sums[0] += sum(map(len, kls))
            self._train_sums[1:] += torch.stack(sums)
        if not look and not self._train_sums.isfinite().all():
            objective, log_likelihood, kl = self._train_sums[1:]
            self._on_nonfinite(log_likelihood, kl, objective)

    def _count_step(self) -> None:
        """What Lightning's wrapper of an optimiser does that is needed here: global_step counts
        optimiser steps."""
        progress = self.trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress
        progress.increment_ready()
        progress.increment_completed()

    def _on_nonfinite(self, log_likelihood: Tensor, kl: Tensor, objective: Tensor) -> None:
        """Count a step that is to be skipped, or stop with the first quantity that is not
        finite."""
        networks = {
            part: getattr(self.model, part) for part in ("encoder", "decoder", "likelihood")
        }
        broken = [
            name
            for name, net in networks.items()
            if not all(p.isfinite().all() for p in net.parameters())
        ]
        if self._skip_bad_steps and not broken:
            self.skipped_steps += 1
            return
        terms = (("log-likelihood", log_likelihood), ("KL", kl), ("objective", objective))
        what = [f"the gradient of the {name} was" for name in broken]
        what += [f"the {name} is" for name, term in terms if not term.isfinite().all()]
        raise RunError(
            f"step {self.global_step}, epoch {self.current_epoch + 1}: {what[0]} not finite. The last checkpoint is "
            "good; a lower optimizer.lr, a larger model.sigma or skip_bad_steps=true may help"
        )

    def _gradients_are_finite(self) -> bool:
        return all(
            bool(p.grad.isfinite().all()) for p in self.model.parameters() if p.grad is not None
        )

    def _batch_terms(
        self, pixels: Tensor, kind: str, uniform: Tensor | None, noise: Tensor, step: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Objective, log p(x|z) and KL of each image, each [B]: all that training has to
        differentiate."""
        objective, terms = self.objective(self.model, as_images(pixels, kind, uniform), noise, step)
        return objective, terms.log_likelihood, terms.kl.sum(-1)

    def on_train_epoch_end(self) -> None:
        scheduler: Any = self.lr_schedulers()
        if scheduler is not None:
            scheduler.step()

    def validation_step(self, batch: Batch, _: int) -> None:
        self._evaluate(batch, "val")

    def test_step(self, batch: Batch, _: int, dataloader_idx: int = 0) -> None:
        self._evaluate(batch, SPLITS[dataloader_idx])

    def on_validation_epoch_end(self) -> None:
        """Both splits at the same step, so that their curves overlay; train is the mean since the
        last validation."""
        if self.trainer.state.fn == "fit":
            count, objective, log_likelihood, kl = self._over_ranks(self._train_sums).tolist()
            self._train_sums.zero_()
            if not count:
                raise RunError(
                    "every step since the last validation was skipped; a lower optimizer.lr may help"
                )
            self.log(
                "step", float(self.global_step)
            )  # the logger's step: optimiser steps, not blocks
            self.log("train/elbo", (log_likelihood - kl) / count)
            self.log("train/log_likelihood", log_likelihood / count)
            self.log("train/kl", kl / count)
            self.log("train/objective", objective / count)
            if self._skip_bad_steps:
                self.log("train/skipped_steps", float(self.skipped_steps))
        if isinstance(self.model.likelihood, Gaussian) and self.model.likelihood.learned:
            self.log("model/sigma", self.model.likelihood.sigma)
        val = self._figures("val")
        self.log("val/elbo", val["elbo"], prog_bar=True)
        self.log_dict({f"val/{key}": val[key] for key in ("log_likelihood", "kl", "collapsed")})

    def on_test_epoch_end(self) -> None:
        for split in SPLITS:
            figures = self._figures(split)
            names = ["elbo", "log_likelihood", "kl", "collapsed"] + (
                ["inactive"] if split == "test" else []
            )
            self.final |= {f"{split}/{name}": figures[name] for name in names}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["vae_format"] = CHECKPOINT_FORMAT
        self._update_elapsed()
        checkpoint["rng"] = rng_state(self.device)
        checkpoint["train_sums"] = self._over_ranks(
            self._train_sums.clone()
        )  # all ranks save together
        checkpoint["totals"] = [self.images_seen, self.seconds, self.skipped_steps]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if (
            self.trainer.state.fn == "fit"
        ):  # a test loads the best checkpoint, and what came after it counts too
            self._saved = {key: checkpoint[key] for key in ("rng", "train_sums")}
            self.images_seen, self.seconds, self.skipped_steps = checkpoint["totals"]

    def _evaluate(self, batch: Batch, split: str) -> None:
        pixels, index = batch
        size = len(self._data.pixels[split])
        if len(self._noise.get(split, ())) != size:
            noise = noise_per_image(size, self.model.latent_dim, self._eval_seed)
            self._noise = {split: noise.to(self.device)}
        if split not in self._sums:
            self._sums[split] = SplitSums(self.model.latent_dim, self.device)
        images = self._data.fixed_images(split, pixels, index)
        terms, posterior = self.model.elbo_terms(images, self._noise[split][index])
        self._sums[split].add(terms, posterior.loc)

    @property
    def _data(self) -> ImageDataModule:
        return self.trainer.datamodule  # type: ignore[attr-defined]

    def _rank_slice(self, draw: Callable[..., Tensor], *shape: int) -> Tensor:
        """Each rank draws the noise [K, B, …] of the whole batch, as one process would, and takes
        its images'."""
        return draw(*shape, device=self.device)[
            :, self.trainer.global_rank :: self.trainer.world_size
        ]

    def _figures(self, split: str) -> dict[str, float]:
        return self._sums.pop(split).figures(self._over_ranks)

    def _over_ranks(self, sums: Tensor) -> Tensor:
        return self.trainer.strategy.reduce(sums, reduce_op="sum")
