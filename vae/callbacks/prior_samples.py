"""Prior samples: 64 mean images f(z), z ~ N(0, I), from the same latents every time."""

import lightning.pytorch as L
from matplotlib.figure import Figure

from vae.analysis.chain import prior_latents
from vae.callbacks.figure import FigureCallback
from vae.plots.images import PANEL, new_figure, show_tile
from vae.training.module import LitVAE


class PriorSamples(FigureCallback):
    """64 samples of the decoder's mean, in an 8×8 tile."""

    name = "prior_samples"

    def plot(self, trainer: L.Trainer, module: LitVAE, split: str) -> Figure:
        z = prior_latents(64, module.model.latent_dim).to(module.device)
        title = self.title(trainer, module, "64 samples f(z), z ~ N(0, I)")
        figure = new_figure(PANEL, PANEL + 0.6, title)
        figure.subplots_adjust(left=0.02, right=0.98, bottom=0.02, top=0.9)
        show_tile(figure.subplots(), module.model.mean_image(z), 8)
        return figure
