"""What goes with many optimiser steps per call of Lightning, and what is refused in a line."""

import lightning.pytorch as L
import pytest
import torch
from conftest import build_model, quiet_trainer, settings
from lightning.pytorch import callbacks
from omegaconf import OmegaConf

from vae.data.datamodule import ImageDataModule
from vae.runs.errors import UserError
from vae.train import train
from vae.training.blocks import (
    UNAVAILABLE,
    BlockTraining,
    counts_blocks,
    is_everything,
    needs_single_batches,
)

BASE = ["learning=blocks", "callbacks=none", "logger=none", "threads=1", "trainer.max_epochs=1"]
BASE += ["trainer.accelerator=cpu", "model.latent_dim=2", "data.batch_size=50"]
REFUSED = {
    "trainer.gradient_clip_val": "1.0",
    "trainer.accumulate_grad_batches": "2",
    "trainer.fast_dev_run": "true",
    "trainer.overfit_batches": "1",
    "trainer.limit_train_batches": "1",
    "trainer.val_check_interval": "1",
    "trainer.max_steps": "3",
    "+trainer.min_steps": "3",
    "optimizer": "lbfgs",
}


@pytest.mark.parametrize("key", REFUSED)
def test_what_needs_single_batches_is_refused_in_a_line(tmp_path, key: str):
    config = settings(*BASE, f"{key}={REFUSED[key]}")
    with pytest.raises(UserError) as refused:
        train(config, tmp_path)
    lines = refused.value.problems
    assert any(line.startswith(key.lstrip("+")) for line in lines)
    assert all("does not go with learning=blocks" in line for line in lines)


class Plateau(BlockTraining):
    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters())
        schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "monitor": "val/elbo"},
        }


def test_a_plateau_of_ones_own_is_refused_before_training(digits: ImageDataModule):
    module = Plateau(build_model("model.latent_dim=2"))
    trainer = quiet_trainer(max_epochs=1)
    with pytest.raises(UserError, match="ReduceLROnPlateau"):
        trainer.fit(module, digits)
    assert trainer.global_step == 0


def test_every_refused_setting_is_tried_here():
    tried = {key.lstrip("+") for key in REFUSED} | {"trainer.precision=16-mixed"}  # needs a GPU
    assert {*UNAVAILABLE} <= tried


def test_one_batch_is_not_every_batch():
    assert is_everything(1.0)
    assert is_everything(None)
    assert not is_everything(1)
    assert not is_everything(0.5)


class CountsBatches(L.Callback):
    def on_train_batch_end(self, *args, **kwargs):
        pass


class HooksIntoSteps(L.Callback):
    def on_before_optimizer_step(self, *args, **kwargs):
        pass


class CountsEpochs(L.Callback):
    def on_train_epoch_end(self, *args, **kwargs):
        pass


@pytest.mark.parametrize(
    ("callback", "refused"),
    [
        (HooksIntoSteps(), True),
        (CountsEpochs(), False),
        (callbacks.Timer("00:00:00:05"), False),
        (callbacks.TQDMProgressBar(), False),
        (callbacks.EarlyStopping("val/elbo"), False),
        (callbacks.LearningRateMonitor("epoch"), False),
        (callbacks.LearningRateMonitor("step"), True),
        (callbacks.ModelCheckpoint(), False),
        (callbacks.ModelCheckpoint(every_n_train_steps=3), True),
        (callbacks.DeviceStatsMonitor(), False),
        (callbacks.EMAWeightAveraging(), True),
        (callbacks.StochasticWeightAveraging(0.01), True),
    ],
    ids=lambda value: type(value).__name__,
)
def test_callbacks_that_hook_into_single_steps(callback: L.Callback, refused: bool):
    assert needs_single_batches(callback) is refused


def test_callbacks_that_count_blocks_are_named():
    assert counts_blocks(CountsBatches())
    assert counts_blocks(callbacks.DeviceStatsMonitor())
    assert not counts_blocks(callbacks.ModelCheckpoint())
    assert not counts_blocks(CountsEpochs())


def test_blocks_depend_on_nothing_that_the_setting_says(tmp_path):
    """The same metrics whatever the number of batches in a block."""
    found = []
    for size in (1, 3):
        config = settings(*BASE, f"learning.batches_per_block={size}")
        found.append(train(config, tmp_path / str(size))["test/elbo"])
        assert OmegaConf.select(config, "learning.batches_per_block") == size
    assert found[0] == found[1]
