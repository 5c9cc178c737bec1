"""Reconstructions: 16 images beside decode(sample of q(z|x)), the lab's tableau."""

import lightning.pytorch as L
from matplotlib.figure import Figure

from vae.callbacks.figure import FigureCallback
from vae.plots.images import new_figure, show_tile
from vae.training.module import LitVAE


class Reconstructions(FigureCallback):
    """The first 16 images of the split and, place by place, f(z) with one z drawn from q(z|x)
    each."""

    name = "reconstructions"

    def draw(self, trainer: L.Trainer, task: LitVAE, split: str) -> Figure:
        data = trainer.datamodule  # type: ignore[attr-defined]
        images = data.images(split, 16).to(task.device)
        reconstructions = task.model.reconstruct(images, self.generator(task.device))
        figure = new_figure(8, 4.6, self.title(trainer, task, "reconstructions"))
        left, right = figure.subplots(1, 2)
        figure.subplots_adjust(left=0.02, right=0.98, bottom=0.02, top=0.84, wspace=0.05)
        show_tile(left, images, 4, f"16 {'test' if split == 'test' else 'validation'} images")
        show_tile(right, reconstructions, 4, "their reconstructions f(z), z ~ q(z|x)")
        return figure
