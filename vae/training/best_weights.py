"""Which weights of a run are tested and opened afterwards: the best validated ones, if any."""

import logging
from pathlib import Path

import lightning.pytorch as L
from lightning.pytorch.callbacks import BatchSizeFinder, StochasticWeightAveraging

from vae.runs.checkpoints import BEST, LAST, read_checkpoint
from vae.training.history import History, is_sanity_or_dev_run

log = logging.getLogger(__name__)


def save_swa_average(trainer: L.Trainer, module: L.LightningModule, folder: Path) -> None:
    """Validate the average that StochasticWeightAveraging leaves, and keep it as the best.

    Lightning puts the average into the module as training ends, when nothing is validated or saved
    any more.
    """
    swa = [c for c in trainer.callbacks if isinstance(c, StochasticWeightAveraging)]  # type: ignore[attr-defined]
    averaged = bool(swa) and swa[0].n_averaged is not None
    if not averaged or is_sanity_or_dev_run(trainer) or not trainer.checkpoint_callbacks:
        return
    trainer.save_checkpoint(folder / BEST, weights_only=True)
    trainer.validate(module, trainer.datamodule, verbose=False)  # type: ignore[attr-defined]
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, History):
            callback.validated_again(trainer)
    log.info(
        "the average of StochasticWeightAveraging is kept as the best checkpoint, val ELBO %.2f",
        trainer.callback_metrics["val/elbo"],
    )


def load_best_weights(trainer: L.Trainer, module: L.LightningModule, folder: Path) -> str:
    """Load the weights to test into the module, and say which they are.

    Not by the Trainer's own `ckpt_path`: with WeightAveraging among the callbacks Lightning 2.6
    tests other weights than the file's.
    """
    # it would look for the largest batch of each test loader too
    trainer.callbacks = [c for c in trainer.callbacks if not isinstance(c, BatchSizeFinder)]  # type: ignore[attr-defined]
    for name, words in ((BEST, "the best checkpoint"), (LAST, "the last checkpoint")):
        path = folder / name
        if path.is_file() and trainer.checkpoint_callbacks and not is_sanity_or_dev_run(trainer):
            checkpoint = read_checkpoint(path)
            module.load_state_dict(checkpoint["state_dict"])
            if name == LAST:
                log.info("nothing was validated: the last checkpoint is tested and kept")
            return f"{words}, step {checkpoint['global_step']}"
    log.info("no checkpoint was kept: the weights at the end of training are tested")
    return "the weights at the end of training"
