"""ELBO curves: train and validation in one chart, with the closed-form optimum of a linear VAE."""

from pathlib import Path

import lightning.pytorch as L
from matplotlib.figure import Figure

from vae.callbacks.figure import FigureCallback
from vae.plots.curves import RunCurves, curves_figure
from vae.training.history import read_history
from vae.training.module import LitVAE


class ELBOCurves(FigureCallback):
    """ELBO and its KL term over the epochs, from `history.csv`.

    train is the mean over the epoch, as the weights moved.
    """

    name = "elbo_curves"

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Too early for this picture: the history has no row of this validation yet."""

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.is_due(trainer):
            self.try_make(trainer, pl_module, "val")

    def plot(self, trainer: L.Trainer, module: LitVAE, split: str) -> Figure:
        rows = read_history(Path(trainer.default_root_dir))
        oracle = self.oracle(trainer, module)
        optimum = None if oracle is None else oracle.train_elbo
        title = self.title(trainer, module, "ELBO = log-likelihood − KL")
        return curves_figure(title, RunCurves(rows, optimum=optimum))
