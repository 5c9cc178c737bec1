"""Prior samples: 64 mean images f(z), z ~ N(0, I), from the same codes every time."""

import lightning.pytorch as L
import torch
from matplotlib.figure import Figure

from vae.callbacks.picture import Picture
from vae.figures import new_figure, show_tile
from vae.module import LitVAE


class PriorSamples(Picture):
    name = "prior_samples"

    def draw(self, trainer: L.Trainer, task: LitVAE, split: str) -> Figure:
        samples = task.model.mean_image(prior_codes(64, task.model.latent_dim).to(task.device))
        figure = new_figure(6, 6.5, self.title(trainer, task, "64 samples f(z)"))
        axes = figure.subplots()
        figure.subplots_adjust(left=0.02, right=0.98, bottom=0.02, top=0.92)
        show_tile(axes, samples, 8)
        return figure


def prior_codes(n: int, latent_dim: int) -> torch.Tensor:
    """The same n draws of N(0, I) for every run and device, [n, latent_dim]."""
    return torch.randn(n, latent_dim, generator=torch.Generator().manual_seed(0))
