"""What every picture does: its schedule, its file in the run folder, the same file to the
logger."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

import lightning.pytorch as L
import torch
from matplotlib.figure import Figure

from vae.plots.images import png
from vae.training.loggers import FaultTolerantLogger
from vae.training.module import LitVAE

log = logging.getLogger(__name__)


class FigureCallback(L.Callback):
    """A picture of the model, made every `every_n_epochs` epochs (0: never) and for the kept
    checkpoint at the end.

    While training it shows validation images; the test images are for the end. It draws its noise
    from a generator of its own, so that a run trains the same with it and without. A picture that
    fails warns once, is counted, and never ends the run.
    """

    name: str
    shown: str | None = None  # the file of the run folder that the logger gets; None: the figure

    def __init__(self, every_n_epochs: int = 10) -> None:
        self.every_n_epochs = every_n_epochs
        self.failures = 0

    def between(self, trainer: L.Trainer) -> bool:
        """Between two epochs; what the last one made would be replaced at once by what is made at
        the end."""
        return trainer.state.fn == "fit" and trainer.current_epoch + 1 != trainer.max_epochs

    def draw(self, trainer: L.Trainer, task: LitVAE, split: str) -> Figure:
        """The figure, with images of `split`. The model is in eval mode, gradients are off."""
        raise NotImplementedError

    def on_validation_end(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        due = self.every_n_epochs > 0 and (trainer.current_epoch + 1) % self.every_n_epochs == 0
        if due and self.between(trainer):
            self._make(trainer, task, "val")

    def on_test_end(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        self._make(trainer, task, "test")

    def make(self, trainer: L.Trainer, task: LitVAE, split: str) -> None:
        """Draw, write `figures/<name>.png`, log."""
        folder = Path(trainer.default_root_dir)
        path = folder / "figures" / f"{self.name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(self.draw(trainer, task, split)))
        for logger in trainer.loggers:
            if isinstance(logger, FaultTolerantLogger):
                logger.log_picture(
                    self.name, folder / self.shown if self.shown else path, trainer.global_step
                )

    def generator(self, device: torch.device) -> torch.Generator:
        """The same noise every time."""
        return torch.Generator(device).manual_seed(0)

    def title(self, trainer: L.Trainer, task: LitVAE, what: str) -> str:
        when = (
            f"epoch {trainer.current_epoch + 1}" if trainer.state.fn == "fit" else "kept checkpoint"
        )
        return f"{task.model.title}, {when}: {what}"

    def _make(self, trainer: L.Trainer, task: L.LightningModule, split: str) -> None:
        assert isinstance(task, LitVAE)
        if trainer.is_global_zero:
            with self.failures_counted():
                self.make(trainer, task, split)

    @contextlib.contextmanager
    def failures_counted(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self.failures += 1
            if self.failures == 1:
                log.warning(
                    "callbacks.%s: no picture (%s: %s)", self.name, type(error).__name__, error
                )
