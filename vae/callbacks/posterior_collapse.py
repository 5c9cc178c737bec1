"""Posterior collapse: KL per latent averaged over a batch of 256, as a histogram and sorted."""

import lightning.pytorch as L
import numpy as np
import torch
from matplotlib.figure import Figure

from vae.callbacks.picture import Picture
from vae.collapse import COLLAPSED
from vae.elbo import kl_to_prior
from vae.figures import COLLAPSED as GREY
from vae.figures import ORACLE, TRAIN, VAL, new_figure
from vae.loggers import Dashboard
from vae.module import LitVAE
from vae.networks import linear_pair
from vae.ppca import PPCA


class PosteriorCollapse(Picture):
    """Latents whose mean KL is below 0.01 nats carry nothing; for a linear pair pPCA says how many and which KLs."""

    name = "posterior_collapse"
    batch = 256

    def on_validation_end(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        if self.between(trainer):
            self._log_histogram(trainer, task, "val")
        super().on_validation_end(trainer, task)

    def on_test_end(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        self._log_histogram(trainer, task, "test")
        super().on_test_end(trainer, task)

    def _log_histogram(self, trainer: L.Trainer, task: L.LightningModule, split: str) -> None:
        """Cheap beside the picture, so every epoch: the logger shows how latents fall out of use."""
        assert isinstance(task, LitVAE)
        dashboards = [logger for logger in trainer.loggers if isinstance(logger, Dashboard)]
        if trainer.is_global_zero and dashboards:
            with self.failures_counted():
                kl = self._kl(trainer, task, split)
                for dashboard in dashboards:
                    dashboard.log_histogram("posterior_collapse/kl_per_latent", kl, trainer.global_step)

    def draw(self, trainer: L.Trainer, task: LitVAE, split: str) -> Figure:
        oracle = task.oracle if linear_pair(task.model) is not None else None
        heading = self.title(trainer, task, "KL per latent")
        return collapse_figure(self._kl(trainer, task, split), heading, self.batch, oracle)

    def _kl(self, trainer: L.Trainer, task: LitVAE, split: str) -> torch.Tensor:
        """KL of each latent averaged over the first 256 images of the split, [m]."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        images = data.images(split, self.batch).to(task.device)
        return kl_to_prior(task.model.encode(images)).mean(0)


def collapse_figure(kl_per_latent: torch.Tensor, heading: str, images: int, oracle: PPCA | None = None) -> Figure:
    """Mean KL per latent [m], in nats over so many images, as a histogram and sorted; `oracle` of a linear pair."""
    kl = kl_per_latent.sort(descending=True).values.cpu().numpy()
    collapsed = int((kl < COLLAPSED).sum())
    what = f"{collapsed} of {len(kl)} latents collapsed"
    if oracle is not None:
        what += f" (closed form: {oracle.collapsed})"
    figure = new_figure(10, 4.2, f"{heading}, {what}")
    left, right = figure.subplots(1, 2)
    figure.subplots_adjust(left=0.07, right=0.98, bottom=0.14, top=0.84, wspace=0.22)

    powers = np.log10(np.maximum(kl, 1e-5))  # drawn as powers: a log axis with its minor ticks is slow
    top = max(1, int(np.ceil(powers.max())))
    bins = np.linspace(-5, top, 6 * (5 + top) + 1)
    # outlines that are filled: a patch a bar is slow too
    of_collapsed, of_used = (np.histogram(powers[which], bins)[0] for which in (kl < COLLAPSED, kl >= COLLAPSED))
    left.stairs(of_collapsed, bins, fill=True, color=GREY, label=f"collapsed: {collapsed}")
    left.stairs(of_used, bins, fill=True, color=TRAIN, label=f"in use: {len(kl) - collapsed}")
    left.axvline(np.log10(COLLAPSED), color=VAL, linestyle="--", label=f"threshold {COLLAPSED:g} nats")
    left.set_xticks(range(-5, top + 1), [f"{10.0**power:g}" for power in range(-5, top + 1)])
    left.set_xlabel("mean KL of a latent, nats (log scale)")
    left.set_ylabel("latents")
    left.locator_params(axis="y", integer=True)

    places, used = np.arange(1, len(kl) + 1), len(kl) - collapsed  # sorted: those in use come first
    label = f"mean over {images} images"
    for shade, part in ((TRAIN, slice(0, used)), (GREY, slice(used, None))):
        if len(kl[part]):
            right.stairs(
                kl[part], np.append(places[part], places[part][-1] + 1) - 0.5, fill=True, color=shade, label=label
            )
            label = ""
    right.axhline(COLLAPSED, color=VAL, linestyle="--", linewidth=1, label=f"threshold {COLLAPSED:g} nats")
    if oracle is not None:
        right.plot(places, oracle.kl, "o", color=ORACLE, markersize=3, label="closed form ½ log(λ/σ²)")
    right.set_xlabel("latents, sorted by KL")
    right.set_ylabel("mean KL, nats")
    for axes in (left, right):
        axes.legend(fontsize=9)
    return figure
