"""What every picture does: its schedule, its file in the run folder, the file to the logger."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from matplotlib.figure import Figure
from torch import Tensor

from vae.data.batches import as_batch
from vae.plots.images import large_text, png
from vae.runs.checkpoints import BEST
from vae.theory.ppca import PPCA
from vae.training.history import is_sanity_or_dev_run
from vae.training.loggers import FaultTolerantLogger
from vae.training.module import LitVAE

log = logging.getLogger(__name__)


class FigureCallback(L.Callback):
    """A picture of the model, every `every_n_epochs` epochs (0: never), and of the best checkpoint.

    While training it shows validation images; the test images are for the end. It draws its noise
    from a generator of its own, so that a run trains the same with it and without. A picture that
    fails warns once, is counted, and never ends the run. Sanity checks and fast_dev_run leave none.

    In validation it is made in `on_validation_epoch_end`, while a WeightAveraging callback after it
    still has the averaged weights in the model, which validation measured.
    """

    name: str
    shown: str | None = None  # the file of the run folder that the logger gets; None: the figure

    def __init__(self, every_n_epochs: int = 10) -> None:
        self.every_n_epochs = every_n_epochs
        self.failures = 0
        self._pictures = 0  # that the epochs up to now called for

    def plot(self, trainer: L.Trainer, module: LitVAE, split: str) -> Figure:
        """The figure, with images of `split`. The model is in eval mode, gradients are off."""
        raise NotImplementedError

    # --- when ---------------------------------------------------------------------------------

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._pictures = trainer.current_epoch // max(1, self.every_n_epochs)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.is_due(trainer):
            self.try_make(trainer, pl_module, "val")

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.try_make(trainer, pl_module, "test")

    def is_due(self, trainer: L.Trainer) -> bool:
        """Whether this validation is the first since an epoch that calls for a picture."""
        if not self.every_n_epochs or not self.is_intermediate(trainer):
            return False
        before = self._pictures
        self._pictures = (trainer.current_epoch + 1) // self.every_n_epochs
        return self._pictures > before

    def is_intermediate(self, trainer: L.Trainer) -> bool:
        """Whether this is a fit's validation, but the last: the test's pictures replace its own."""
        last = trainer.current_epoch + 1 == trainer.max_epochs
        return trainer.state.fn == "fit" and not trainer.sanity_checking and not last

    # --- how ----------------------------------------------------------------------------------

    def try_make(self, trainer: L.Trainer, pl_module: L.LightningModule, split: str) -> None:
        """`make`, on rank zero, where a failure warns and no more."""
        if trainer.is_global_zero and not is_sanity_or_dev_run(trainer):
            with self.failures_counted(), large_text():
                assert isinstance(pl_module, LitVAE), "it needs a LitVAE"
                self.make(trainer, pl_module, split)

    def make(self, trainer: L.Trainer, module: LitVAE, split: str) -> None:
        """Plot, write `figures/<name>.png`, log."""
        folder = Path(trainer.default_root_dir)
        path = folder / "figures" / f"{self.name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(self.plot(trainer, module, split)))
        shown = folder / self.shown if self.shown else path
        for logger in trainer.loggers:
            if isinstance(logger, FaultTolerantLogger):
                logger.log_picture(self.name, shown, trainer.global_step)

    @contextlib.contextmanager
    def failures_counted(self) -> Iterator[None]:
        """Warn of the first exception within, and count all."""
        try:
            yield
        except Exception as error:
            self.failures += 1
            if self.failures == 1:
                kind = type(error).__name__
                log.warning("callbacks.%s: no picture (%s: %s)", self.name, kind, error)

    # --- of what ------------------------------------------------------------------------------

    def images(self, trainer: L.Trainer, module: LitVAE, split: str, n: int) -> Tensor:
        """The first n images of a split, float [n, C, H, W], where the model is."""
        data: Any = getattr(trainer, "datamodule", None)
        if hasattr(data, "images"):
            return data.images(split, n).to(module.device)
        loader: Any = trainer.val_dataloaders if split == "val" else trainer.test_dataloaders
        batches, count = [], 0
        for batch in loader[0] if isinstance(loader, list) else loader:
            batches.append(as_batch(batch).images())
            count += len(batches[-1])
            if count >= n:
                break
        return torch.cat(batches)[:n].to(module.device)

    def oracle(self, trainer: L.Trainer, module: LitVAE) -> PPCA | None:
        """The closed-form optimum of linear networks on the training split, where there is one."""
        data: Any = getattr(trainer, "datamodule", None)
        return data.best_linear(module.model) if hasattr(data, "best_linear") else None

    def generator(self, device: torch.device) -> torch.Generator:
        """The same noise every time."""
        return torch.Generator(device).manual_seed(0)

    def title(self, trainer: L.Trainer, module: LitVAE, what: str) -> str:
        """The model and when in a first line, `what` in a second."""
        kept = (Path(trainer.default_root_dir) / BEST).exists()
        when = "best checkpoint" if kept else "end of training"
        if trainer.state.fn == "fit":
            when = f"epoch {trainer.current_epoch + 1}"
        return f"{module.model.title}, {when}\n{what}"
