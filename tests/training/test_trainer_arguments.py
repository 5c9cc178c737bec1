"""The less usual arguments of Lightning's Trainer, its callbacks' YAML files and the debug presets:
each has its effect here too."""

import csv
import logging
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import torch
from conftest import quiet_trainer
from lightning.pytorch.profilers import SimpleProfiler
from test_lightning import Recorder, plain, run

from vae.data.datamodule import ImageDataModule
from vae.runs.checkpoints import LAST
from vae.runs.folder import load_run
from vae.training.history import read_history

__all__ = ["plain"]  # a fixture


class Modes(Recorder):
    """Also what torch was set to within a training step and within the test."""

    def on_train_batch_start(self, *_: Any) -> None:
        self.anomaly = torch.is_anomaly_enabled()
        self.deterministic = torch.are_deterministic_algorithms_enabled()
        self.benchmark = torch.backends.cudnn.benchmark

    def on_test_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        self.profiler = trainer.profiler  # type: ignore[attr-defined]
        self.inference = torch.is_inference_mode_enabled()


def modes(folder: Path, *overrides: str) -> Modes:
    """What torch was set to in a run with these overrides, and how it is left."""
    node = "{_target_: test_trainer_arguments.Modes}"
    recorder, _ = run(folder, "trainer.max_epochs=1", f"+callbacks.modes={node}", *overrides)
    assert isinstance(recorder, Modes)
    return recorder


# --- how long -------------------------------------------------------------------------------------


STOPS_EARLY = [
    "callbacks=[none,early_stopping]",
    "callbacks.early_stopping.min_delta=100000",
    "callbacks.early_stopping.patience=1",
    "trainer.max_epochs=9",
]


def test_min_epochs_keep_early_stopping_waiting(tmp_path: Path) -> None:
    soon, _ = run(tmp_path / "soon", *STOPS_EARLY)
    late, _ = run(tmp_path / "late", *STOPS_EARLY, "+trainer.min_epochs=6")
    assert len(soon.batches) - 1 == 2
    assert len(late.batches) - 1 == len(read_history(tmp_path / "late")) == 6


def test_min_steps_keep_early_stopping_waiting(tmp_path: Path) -> None:
    recorder, _ = run(tmp_path, *STOPS_EARLY, "+trainer.min_steps=37")
    assert recorder.steps == 37


def test_the_timer_ends_a_run_and_saves(tmp_path: Path) -> None:
    recorder, metrics = run(
        tmp_path,
        "callbacks=[none,timer]",
        "callbacks.timer.duration=00:00:00:01",
        "trainer.max_epochs=100000",
    )
    assert 8 < recorder.steps < 100_000
    assert metrics["test/images"] == 300
    assert torch.load(tmp_path / LAST, weights_only=True)["global_step"] == recorder.steps


def test_accumulation_by_the_callbacks_file(tmp_path: Path) -> None:
    recorder, _ = run(
        tmp_path,
        "callbacks=[none,gradient_accumulation]",
        "++callbacks.gradient_accumulation.scheduling={0: 2, 1: 8}",
    )
    assert recorder.steps == 4 + 1


# --- gradients and modes --------------------------------------------------------------------------


def test_gradients_are_clipped_by_value(tmp_path: Path) -> None:
    """Every entry within the bound, so that the norm is beyond it."""
    clip = ["trainer.gradient_clip_val=0.01", "+trainer.gradient_clip_algorithm=value"]
    recorder, _ = run(tmp_path, *clip)
    parameters = sum(p.numel() for p in load_run(tmp_path).model.parameters())
    assert 0.1 < max(recorder.norms) <= 0.01 * parameters**0.5


def test_modes_of_torch_are_those_of_the_trainer(tmp_path: Path) -> None:
    usual = modes(tmp_path / "usual")
    assert (usual.anomaly, usual.deterministic, usual.inference) == (False, False, False)
    asked = modes(
        tmp_path / "asked",
        "trainer.detect_anomaly=true",
        "trainer.deterministic=true",
        "trainer.inference_mode=true",
    )
    assert (asked.anomaly, asked.deterministic, asked.inference) == (True, True, True)
    assert modes(tmp_path / "benchmark", "+trainer.benchmark=true").benchmark
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = False


# --- what is predicted, logged and shown ----------------------------------------------------------


def test_predictions_are_limited(tmp_path: Path) -> None:
    run(tmp_path)
    images = torch.rand(40, 1, 28, 28).split(10)
    trainer = quiet_trainer(limit_predict_batches=3)
    from vae import LitVAE

    module = LitVAE.load_from_checkpoint(tmp_path / LAST, weights_only=True)
    found = trainer.predict(module, torch.utils.data.DataLoader(images, batch_size=None))  # type: ignore[arg-type]
    assert [len(part["mean"]) for part in found or []] == [10, 10, 10]  # type: ignore[call-overload]


def logged(folder: Path) -> dict[str, list[dict[str, str]]]:
    """Rows of csv/metrics.csv by the columns that they fill."""
    rows = [*csv.DictReader((folder / "csv" / "metrics.csv").open())]
    return {key: [row for row in rows if row[key]] for key in rows[0]}


def test_log_every_n_steps_is_how_often_steps_are_logged(tmp_path: Path) -> None:
    monitor = ["logger=csv", "callbacks=[none,lr_monitor]"]
    monitor += ["callbacks.lr_monitor.logging_interval=step"]
    counts = []
    for every in (1, 4):
        folder = tmp_path / str(every)
        run(folder, *monitor, f"trainer.log_every_n_steps={every}")
        counts.append(len(logged(folder)["lr-Adam"]))
    assert counts == [16, 4]


def test_the_devices_use_is_logged(tmp_path: Path) -> None:
    pytest.importorskip("psutil", reason="pip install psutil")
    device = ["callbacks=[none,device_stats]", "callbacks.device_stats.cpu_stats=true"]
    run(tmp_path, "logger=csv", *device, "trainer.log_every_n_steps=2")
    names = [key for key in logged(tmp_path) if key.startswith("DeviceStatsMonitor.")]
    assert any("cpu_percent" in name for name in names)


def test_the_bar_is_richs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("rich", reason="pip install rich")
    run(tmp_path, "callbacks=[none,rich_progress_bar]", "trainer.max_epochs=1")
    shown = capsys.readouterr().out
    assert "Epoch 0/0" in shown
    assert "ELBO train" not in shown


def test_no_bar(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    lines = []
    for enabled in ("true", "false"):
        bar = ["callbacks=default", f"trainer.enable_progress_bar={enabled}"]
        pictures = ("chain", "elbo_curves", "reconstructions", "prior_samples")
        off = [f"callbacks.{name}=null" for name in (*pictures, "posterior_collapse")]
        run(tmp_path / enabled, *bar, *off)
        lines.append(caplog.text.count("ELBO train"))
        caplog.clear()
    assert lines == [2, 0]


def test_checkpoints_beside_the_runs_own(tmp_path: Path) -> None:
    run(tmp_path, "callbacks=[none,model_checkpoint]", "trainer.max_epochs=3")
    own = {"best.ckpt", "last.ckpt"}
    others = [f for f in (tmp_path / "checkpoints").glob("*.ckpt") if f.name not in own]
    assert others
    for path in others:
        assert torch.load(path, weights_only=True)["global_step"] % 8 == 0
    assert own <= {path.name for path in (tmp_path / "checkpoints").iterdir()}


# --- presets --------------------------------------------------------------------------------------


def test_a_dry_run_keeps_nothing(tmp_path: Path) -> None:
    recorder, _ = run(tmp_path, "+debug=fast_dev_run")
    assert recorder.batches[1:] == [1]
    assert [path.name for path in tmp_path.iterdir() if path.suffix in (".json", ".csv")] == []


def test_the_overfitting_preset_learns_its_batches_by_heart(
    tmp_path: Path, plain: tuple[Recorder, dict[str, float]]
) -> None:
    recorder, _ = run(tmp_path, "+debug=overfit", "trainer.max_epochs=60")
    assert recorder.batches[1] == 3
    train = [row["train/elbo"] for row in read_history(tmp_path)]
    assert train[-1] > train[0] + 500


def test_the_limiting_preset_limits(tmp_path: Path) -> None:
    limit = ["+debug=limit", "data.batch_size=4", "data.eval_batch_size=5"]
    recorder, metrics = run(tmp_path, *limit, "trainer.max_epochs=3")
    assert recorder.batches[1:] == [5, 5, 5]  # of 100
    assert metrics["test/images"] == 5  # a batch of 60


def test_the_profiling_preset_profiles(tmp_path: Path) -> None:
    """tests/training/test_lightning.py looks at the report on the screen."""
    profiler = modes(tmp_path, "+debug=profiler").profiler
    assert isinstance(profiler, SimpleProfiler)
    assert len(profiler.recorded_durations["run_training_batch"]) == 8


def test_loaders_are_made_again_when_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    original = ImageDataModule.train_dataloader
    monkeypatch.setattr(
        ImageDataModule, "train_dataloader", lambda self: made.append(1) or original(self)
    )
    run(tmp_path / "once", "trainer.max_epochs=4")
    once = len(made)
    run(tmp_path / "again", "trainer.max_epochs=4", "+trainer.reload_dataloaders_every_n_epochs=2")
    assert len(made) - once == once + 1
