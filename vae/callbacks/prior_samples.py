"""Prior samples: 64 mean images f(z), z ~ N(0, I), from the same codes every time."""

import lightning.pytorch as L
from matplotlib.figure import Figure

from vae.analysis.chain import prior_latents
from vae.callbacks.figure import FigureCallback
from vae.plots.images import new_figure, show_tile
from vae.training.module import LitVAE


class PriorSamples(FigureCallback):
    name = "prior_samples"

    def draw(self, trainer: L.Trainer, task: LitVAE, split: str) -> Figure:
        samples = task.model.mean_image(prior_latents(64, task.model.latent_dim).to(task.device))
        figure = new_figure(6, 6.5, self.title(trainer, task, "64 samples f(z)"))
        axes = figure.subplots()
        figure.subplots_adjust(left=0.02, right=0.98, bottom=0.02, top=0.92)
        show_tile(axes, samples, 8)
        return figure
