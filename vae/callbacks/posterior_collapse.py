"""Posterior collapse: KL per latent averaged over a batch of 256, as a histogram and sorted."""

import lightning.pytorch as L
from matplotlib.figure import Figure
from torch import Tensor

from vae.analysis.latents import COLLAPSE_BATCH
from vae.callbacks.figure import FigureCallback
from vae.models.elbo import kl_to_prior
from vae.plots.latents import collapse_figure
from vae.theory.linear import affine_weights
from vae.training.history import is_sanity_or_dev_run
from vae.training.loggers import FaultTolerantLogger
from vae.training.module import LitVAE


class PosteriorCollapse(FigureCallback):
    """Latents whose mean KL is below 0.01 nats carry nothing; pPCA gives those of a linear VAE.

    A logger that takes histograms gets one of the KL per latent at every validation.
    """

    name = "posterior_collapse"

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.is_intermediate(trainer):
            self.log_histogram(trainer, pl_module, "val")
        super().on_validation_epoch_end(trainer, pl_module)

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.log_histogram(trainer, pl_module, "test")
        super().on_test_end(trainer, pl_module)

    def log_histogram(self, trainer: L.Trainer, pl_module: L.LightningModule, split: str) -> None:
        """KL per latent; cheap next to the picture, so at every validation."""
        loggers = [lg for lg in trainer.loggers if isinstance(lg, FaultTolerantLogger)]
        if not trainer.is_global_zero or is_sanity_or_dev_run(trainer) or not loggers:
            return
        with self.failures_counted():
            assert isinstance(pl_module, LitVAE), "it needs a LitVAE"
            kl = self.kl(trainer, pl_module, split)
            for logger in loggers:
                name = "posterior_collapse/kl_per_latent"
                logger.log_histogram(name, kl, trainer.global_step)

    def plot(self, trainer: L.Trainer, module: LitVAE, split: str) -> Figure:
        linear = affine_weights(module.model) is not None
        oracle = self.oracle(trainer, module) if linear else None
        heading = self.title(trainer, module, "KL per latent")
        return collapse_figure(self.kl(trainer, module, split), heading, COLLAPSE_BATCH, oracle)

    def kl(self, trainer: L.Trainer, module: LitVAE, split: str) -> Tensor:
        """KL of each latent averaged over the first 256 images of the split, [m]."""
        images = self.images(trainer, module, split, COLLAPSE_BATCH)
        return kl_to_prior(module.model.encode(images)).mean(0)
