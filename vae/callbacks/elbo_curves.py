"""ELBO curves: train and validation in one chart, with the closed-form optimum of the linear
pair."""

from typing import Any

import lightning.pytorch as L
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vae.callbacks.figure import FigureCallback
from vae.plots.images import ORACLE, TRAIN, VAL, new_figure
from vae.theory.ppca import PPCA
from vae.training.module import LitVAE


class ELBOCurves(FigureCallback):
    """ELBO and its KL term over the epochs. train is the mean over the epoch as the weights
    moved."""

    name = "elbo_curves"

    def __init__(self, every_n_epochs: int = 10) -> None:
        super().__init__(every_n_epochs)
        self.history: list[dict[str, float]] = []

    def on_validation_end(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        if trainer.state.fn == "fit":
            names = ("train/elbo", "val/elbo", "train/kl", "val/kl")
            figures = {name: float(trainer.callback_metrics[name]) for name in names}
            self.history.append({"epoch": trainer.current_epoch + 1, **figures})
        super().on_validation_end(trainer, task)

    def state_dict(self) -> dict[str, Any]:
        return {"history": self.history}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history = state_dict["history"]

    def draw(self, trainer: L.Trainer, task: LitVAE, split: str) -> Figure:
        figure = new_figure(10, 4.2, self.title(trainer, task, "ELBO = log-likelihood − KL"))
        left, right = figure.subplots(1, 2)
        figure.subplots_adjust(left=0.08, right=0.98, bottom=0.13, top=0.84, wspace=0.22)
        epochs = [row["epoch"] for row in self.history]
        for axes, term in ((left, "elbo"), (right, "kl")):
            for which, colour in (("train", TRAIN), ("val", VAL)):
                values = [row[f"{which}/{term}"] for row in self.history]
                label = f"{which} {values[-1]:.1f}" if values else which
                axes.plot(epochs, values, color=colour, label=label, marker="o", markersize=2.5)
            axes.set_xlabel("epoch")
            axes.grid(alpha=0.3)
        left.set_ylabel("ELBO, nats per image")
        right.set_ylabel("KL(q ‖ prior), nats per image")
        if task.oracle is not None:
            label = f"optimum of a linear pair, train {task.oracle.train_elbo:.1f}"
            left.axhline(
                task.oracle.train_elbo, color=ORACLE, linestyle="--", linewidth=1, label=label
            )
        self._zoom(left, task.oracle)
        left.legend(loc="lower right")
        right.legend()
        return figure

    def _zoom(self, axes: Axes, oracle: PPCA | None) -> None:
        """Leave the first steep climb below the edge, where it would flatten all that follows."""
        if len(self.history) >= 10:
            seen = [row[f"{split}/elbo"] for row in self.history[2:] for split in ("train", "val")]
            seen += [] if oracle is None else [oracle.train_elbo]
            margin = 0.06 * (max(seen) - min(seen))
            axes.set_ylim(min(seen) - margin, max(seen) + margin)
