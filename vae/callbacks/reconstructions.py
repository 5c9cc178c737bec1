"""Reconstructions: 16 images next to f(z), z ~ q(z|x)."""

import lightning.pytorch as L
from matplotlib.figure import Figure

from vae.callbacks.figure import FigureCallback
from vae.plots.images import PANEL, new_figure, show_tile
from vae.training.module import LitVAE


class Reconstructions(FigureCallback):
    """The first 16 images of the split and, place by place, f(z) with one sample z of q(z|x)."""

    name = "reconstructions"

    def plot(self, trainer: L.Trainer, module: LitVAE, split: str) -> Figure:
        images = self.images(trainer, module, split, 16)
        reconstructions = module.model.reconstruct(images, self.generator(module.device))
        figure = new_figure(PANEL, 4.2, self.title(trainer, module, "reconstructions"))
        left, right = figure.subplots(1, 2)
        figure.subplots_adjust(left=0.02, right=0.98, bottom=0.02, top=0.78, wspace=0.06)
        show_tile(left, images, 4, f"{'test' if split == 'test' else 'validation'} images x")
        show_tile(right, reconstructions, 4, "f(z), z ~ q(z|x)")
        return figure
