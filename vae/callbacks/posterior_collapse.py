"""Posterior collapse: KL per latent averaged over a batch of 256, as a histogram and sorted."""

import lightning.pytorch as L
import torch
from matplotlib.figure import Figure

from vae.analysis.latents import LAB_BATCH
from vae.callbacks.figure import FigureCallback
from vae.models.elbo import kl_to_prior
from vae.plots.latents import collapse_figure
from vae.theory.linear import affine_weights
from vae.training.loggers import FaultTolerantLogger
from vae.training.module import LitVAE


class PosteriorCollapse(FigureCallback):
    """Latents whose mean KL is below 0.01 nats carry nothing; for a linear pair pPCA says how many
    and which KLs."""

    name = "posterior_collapse"

    def on_validation_end(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        if self.between(trainer):
            self._log_histogram(trainer, task, "val")
        super().on_validation_end(trainer, task)

    def on_test_end(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        self._log_histogram(trainer, task, "test")
        super().on_test_end(trainer, task)

    def _log_histogram(self, trainer: L.Trainer, task: L.LightningModule, split: str) -> None:
        """Cheap beside the picture, so every epoch: the logger shows how latents fall out of
        use."""
        assert isinstance(task, LitVAE)
        dashboards = [
            logger for logger in trainer.loggers if isinstance(logger, FaultTolerantLogger)
        ]
        if trainer.is_global_zero and dashboards:
            with self.failures_counted():
                kl = self._kl(trainer, task, split)
                for dashboard in dashboards:
                    dashboard.log_histogram(
                        "posterior_collapse/kl_per_latent", kl, trainer.global_step
                    )

    def draw(self, trainer: L.Trainer, task: LitVAE, split: str) -> Figure:
        oracle = task.oracle if affine_weights(task.model) is not None else None
        heading = self.title(trainer, task, "KL per latent")
        return collapse_figure(self._kl(trainer, task, split), heading, LAB_BATCH, oracle)

    def _kl(self, trainer: L.Trainer, task: LitVAE, split: str) -> torch.Tensor:
        """KL of each latent averaged over the first 256 images of the split, [m]."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        images = data.images(split, LAB_BATCH).to(task.device)
        return kl_to_prior(task.model.encode(images)).mean(0)
