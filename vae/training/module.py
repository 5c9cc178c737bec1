"""The learning step: a VAE as an ordinary LightningModule, to be trained by any Trainer."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from vae.data.batches import Batch, as_batch
from vae.models import ELBO, VAE
from vae.training.configured import ConfiguredModule
from vae.training.graphed_loss import choose_loss
from vae.training.hyperparameters import Settings, from_settings
from vae.training.metrics import ELBOMetric, FixedNoise, TrainMetric
from vae.training.schedules import Schedule


class LitVAE(ConfiguredModule):
    """Trains `model` by `objective` on batches of images, float [B, C, H, W] in [0, 1].

    A loader may give the images alone, images with labels after them, or this project's Batch.
    `optimizer` takes the parameters; `scheduler` is a torch scheduler that takes the optimizer, or
    a Schedule, which also says when it steps. `compile` fuses the step's mathematics; `cuda_graph`
    replays it on a GPU. The noise of validation and test is fixed for each image by `eval_seed`, so
    these metrics depend neither on batches and processes nor on what training drew.

    Logs `train/*` and `val/*` at each validation, `test/*` in a test; all of a test's metrics are
    in `test_metrics` too, in double precision. `train/*` are means of `self.terms`, which a step
    of your own may set or leave alone.
    """

    def __init__(
        self,
        model: VAE | Settings,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] | Settings | None = None,
        scheduler: Callable[[Optimizer], Any] | Schedule | Settings | None = None,
        objective: Callable[..., Any] | Settings | None = None,
        compile: bool = False,
        cuda_graph: bool | None = False,
        eval_seed: int = 0,
    ) -> None:
        super().__init__(optimizer, scheduler)
        self.save_parts(model=model, optimizer=optimizer, scheduler=scheduler, objective=objective)
        self.model: VAE = from_settings(model)
        self.objective = from_settings(objective) or ELBO()
        self.compute_loss = choose_loss(self, compile, cuda_graph)
        self.fixed_noise = FixedNoise(self.model.latent_dim, eval_seed)
        self.train_metric = TrainMetric()
        self.terms: dict[str, Tensor] = {}  # of the latest training step, [B] each
        self.test_metrics: dict[str, float] = {}

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """The objective averaged over the batch; each image's terms go along, to be logged."""
        batch = as_batch(batch)
        eps = batch.random(torch.randn, self.objective.samples, self.model.latent_dim)  # [K, B, m]
        x = batch.training_images()  # [B, C, H, W]
        objective, log_likelihood, kl = self.compute_loss(x, eps, self.global_step)  # [B] each
        terms = {"objective": objective, "log_likelihood": log_likelihood, "kl": kl}
        self.terms = {name: term.detach() for name, term in terms.items()}
        return {"loss": batch.mean(objective), **self.terms}

    def loss_terms(self, x: Tensor, eps: Tensor, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Objective, log p(x|z) and KL of each image, [B] each: all that is differentiated.

        `eps` [K, B, m] is the noise of q, `step` the number of optimiser steps done.
        """
        objective, terms = self.objective(self.model, x, eps, step)
        return objective, terms.log_likelihood, terms.kl.sum(-1)

    def forward(self, x: Tensor) -> Tensor:
        """f(E[z|x]), the reconstruction of images [B, C, H, W] from their posterior means."""
        return self.model.mean_image(self.model.encode(x).mean)

    def setup(self, stage: str) -> None:
        super().setup(stage)
        device = self.trainer.strategy.root_device
        dtype = torch.float32 if device.type == "mps" else torch.float64  # which mps has not
        self.train_metric.dtype = dtype
        self.eval_metrics = {
            split: ELBOMetric(self.model.latent_dim, dtype).to(device)
            for split in ("train", "val", "test")
        }

    def on_after_backward(self) -> None:
        self.train_metric.append(self.terms)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.evaluate(as_batch(batch), batch_idx, "val")

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        batch = as_batch(batch)
        if dataloader_idx and not batch.split_name:
            raise TypeError(
                "several test loaders: their images would be averaged; test one at a time"
            )
        self.evaluate(batch, batch_idx, batch.split_name or "test")

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """Mean and sd of q(z|x), [B, m] each, and the reconstruction f(E[z|x]), [B, C, H, W]."""
        q = self.model.encode(as_batch(batch).images())
        return {"mean": q.mean, "sd": q.stddev, "reconstruction": self.model.mean_image(q.mean)}

    def evaluate(self, batch: Batch, batch_idx: int, split: str) -> None:
        """Add a batch to the metrics of a split: its ELBO terms with one sample of q an image."""
        place = (batch_idx, self.trainer.global_rank, self.trainer.world_size)
        terms, q = self.model.elbo_terms(batch.images(), self.fixed_noise(batch, *place))
        self.eval_metrics[split].update(terms, q.loc)

    def on_validation_epoch_end(self) -> None:
        """Log both splits at the same step; train is the mean since it was logged last."""
        if not self.trainer.sanity_checking:
            self.log_train_metrics()
        if getattr(self.model.likelihood, "learned", False):
            self.log("model/sigma", self.model.sigma or 0.0)
        for name, value in self.eval_metrics["val"].pop("val").items():
            self.log(name, value, prog_bar=name == "val/elbo")

    def on_train_epoch_end(self) -> None:
        self.log_train_metrics()  # of an epoch without a validation

    def log_train_metrics(self) -> None:
        self.log_dict(self.train_metric.pop(partial(self.trainer.strategy.reduce, reduce_op="sum")))

    def on_test_epoch_end(self) -> None:
        for split, metric in self.eval_metrics.items():
            self.test_metrics |= metric.pop(split)
        self.log_dict(self.test_metrics)
