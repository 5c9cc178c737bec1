"""history.csv: a row per validation, each once though the run was cut off, read back as written."""

import math
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import torch
from conftest import quiet_trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader

from vae.training.history import COLUMNS, HISTORY, History, read_history, write_history


class Slope(L.LightningModule):
    """A weight that moves by 1 a step, and logs it as val/elbo."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(()))

    def training_step(self, batch: torch.Tensor, _: int) -> torch.Tensor:
        return -self.w

    def validation_step(self, batch: torch.Tensor, _: int) -> None:
        self.log("val/elbo", self.w.detach())
        self.log("elsewhere", 1.0)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1.0)


def fit(
    folder: Path,
    epochs: int,
    resume: Path | None = None,
    module: L.LightningModule | None = None,
    **flags: Any,
) -> L.Trainer:
    loader = DataLoader(torch.zeros(4, 1))
    trainer = quiet_trainer(**{"max_epochs": epochs, "callbacks": [History(folder)]} | flags)
    trainer.fit(module or Slope(), loader, loader, ckpt_path=resume)
    return trainer


def points(folder: Path) -> list[tuple[float, float, float]]:
    return [(row["epoch"], row["step"], row["val/elbo"]) for row in read_history(folder)]


def test_a_row_a_validation_also_within_an_epoch(tmp_path: Path):
    fit(tmp_path, 2, val_check_interval=2)
    assert points(tmp_path) == [(0.5, 2, 2), (1, 4, 4), (1.5, 6, 6), (2, 8, 8)]
    assert (tmp_path / HISTORY).read_text().splitlines()[0] == ",".join(COLUMNS)
    assert math.isnan(read_history(tmp_path)[0]["train/elbo"])  # this module logs none


class Late(Slope):
    """Logs a mean over the epoch, and as the epoch ends, which is after its validation."""

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        self.log("train/mean", float(self.current_epoch), on_step=False, on_epoch=True)
        return super().training_step(batch, batch_idx)

    def on_train_epoch_end(self) -> None:
        self.log("model/end", 10.0 + self.current_epoch)


def test_a_row_has_what_its_own_epoch_logged(tmp_path: Path):
    fit(tmp_path, 3, module=Late())
    rows = read_history(tmp_path)
    assert [(row["train/mean"], row["model/end"]) for row in rows] == [(0, 10), (1, 11), (2, 12)]


def test_a_checkpoint_has_the_whole_row_of_its_epoch(tmp_path: Path):
    """A run that is killed right after it keeps that row."""

    class Killed(History):
        def on_train_end(self, *_: object) -> None:
            pass

    saved = ModelCheckpoint(tmp_path, save_on_train_epoch_end=True)
    fit(tmp_path, 1, module=Late(), callbacks=[Killed(tmp_path), saved], enable_checkpointing=True)
    assert read_history(tmp_path)[-1]["model/end"] == 10


def test_a_resumed_run_drops_the_rows_later_than_its_checkpoint(tmp_path: Path):
    fit(tmp_path, 2).save_checkpoint(tmp_path / "two.ckpt")
    fit(tmp_path, 5, tmp_path / "two.ckpt")
    assert points(tmp_path) == [(e, 4 * e, 4 * e) for e in (1, 2, 3, 4, 5)]
    fit(tmp_path, 3, tmp_path / "two.ckpt")  # rows 4 and 5 are of another future
    assert points(tmp_path) == [(e, 4 * e, 4 * e) for e in (1, 2, 3)]
    fit(tmp_path, 1)  # from the beginning
    assert points(tmp_path) == [(1, 4, 4)]


def test_sanity_checks_and_trial_runs_leave_no_row(tmp_path: Path):
    fit(tmp_path / "sane", 1, num_sanity_val_steps=2)
    assert points(tmp_path / "sane") == [(1, 4, 4)]
    fit(tmp_path / "trial", 1, fast_dev_run=True)
    assert not (tmp_path / "trial").exists()


def test_what_is_written_is_read_back(tmp_path: Path):
    rows = [
        {"epoch": 1, "step": 430, "val/elbo": -328.2969055175781, "model/sigma": 0.25},
        {"epoch": 2, "step": 860, "val/elbo": math.inf, "val/kl": 1e-12},
    ]
    write_history(tmp_path, rows)
    read = read_history(tmp_path)
    assert [row["val/elbo"] for row in read] == pytest.approx([-328.2969055175781, math.inf])
    assert read[1]["val/kl"] == 1e-12
    assert [row["model/sigma"] for row in read] == pytest.approx([0.25, math.nan], nan_ok=True)
    assert read_history(tmp_path / "no-run") == []
    (tmp_path / HISTORY).write_text("not,a,history\n1,2,3\n")
    with pytest.raises(ValueError, match="has no columns epoch and step"):
        read_history(tmp_path)
