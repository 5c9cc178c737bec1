"""Every logger gets the metrics and the pictures, is resumed with its run, and cannot end one."""

import csv
import json
import os
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import NO_PICTURES, ROOT, settings
from omegaconf import OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from vae.runs.errors import RunError, UserError
from vae.runs.folder import saved_config
from vae.train import expand_resume, train
from vae.training.module import LitVAE

# four optimiser steps an epoch; a picture, a histogram and an animation an epoch
OVERRIDES = ["trainer.accelerator=cpu", "model.latent_dim=4", "scheduler=none"]
OVERRIDES += [
    f"callbacks.{name}=null" for name in ("elbo_curves", "reconstructions", "prior_samples")
]
OVERRIDES += ["callbacks.chain.steps=2", "callbacks.lr_monitor=null"]
OVERRIDES += [f"callbacks.{name}.every_n_epochs=1" for name in ("posterior_collapse", "chain")]


def run(folder: Path, epochs: int, *overrides: str) -> dict[str, float]:
    return train(settings(*OVERRIDES, f"trainer.max_epochs={epochs}", *overrides), folder)


def cut_off_and_resumed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, *overrides: str, saved: int = 4
) -> dict[str, float]:
    """Three epochs; the run dies after the validation of the second, before that epoch's
    checkpoint. The last one is of step `saved`."""

    def dies(task: LitVAE) -> None:
        if task.current_epoch == 1:
            raise SystemExit

    with monkeypatch.context() as patched:
        patched.setattr(LitVAE, "on_train_epoch_end", dies)
        with pytest.raises(SystemExit):
            run(folder, 3, *overrides)
    last = folder / "checkpoints" / "last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == saved
    return run(folder, 3, *overrides)


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "csv" / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_csv_has_every_metric_once_though_the_run_was_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    csv_alone = ["logger=csv", *NO_PICTURES]
    metrics = cut_off_and_resumed(tmp_path / "cut", monkeypatch, *csv_alone)
    run(tmp_path / "whole", 3, *csv_alone)
    rows = rows_of(tmp_path / "cut")
    timeless = [
        [
            {k: v for k, v in row.items() if not k.startswith("time/")}
            for row in rows_of(tmp_path / name)
        ]
        for name in ("cut", "whole")
    ]
    assert timeless[0] == timeless[1]
    assert [row["step"] for row in rows if row["val/elbo"]] == ["3", "7", "11"]
    assert [row["step"] for row in rows if row["test/elbo"]] == ["12"]
    assert float(rows[-1]["test/elbo"]) == metrics["test/elbo"]
    assert float(rows[-1]["final/val/elbo"]) == metrics["val/elbo"]
    assert "model.latent_dim: 4" in (tmp_path / "cut" / "csv" / "hparams.yaml").read_text()
    assert not list(tmp_path.rglob("events*"))
    run(tmp_path / "cut", 4, *csv_alone)  # goes on: its final row is another
    assert [row["step"] for row in rows_of(tmp_path / "cut") if row["test/elbo"]] == ["16"]


@pytest.mark.parametrize(("every", "saved"), [(0, 4), pytest.param(3, 7, marks=pytest.mark.slow)])
def test_tensorboard_shows_every_metric_once_though_the_run_was_cut_off(
    every: int, saved: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """From the end of an epoch, or from the step before the one that was logged last."""
    save = f"save_every_n_steps={every}"
    cut_off_and_resumed(tmp_path, monkeypatch, save, *NO_PICTURES, saved=saved)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    for tag in ("train/elbo", "val/elbo"):
        assert [point.step for point in events.Scalars(tag)] == [3, 7, 11]


def records_with_exit(file: Path) -> list[Any]:
    """The records of a run once W&B's own process has written the last of them."""
    for _ in range(60):
        found = [*records(file)]
        if any(record.HasField("exit") for record in found):
            break
        time.sleep(0.5)
    return found


def test_wandb_has_every_metric_and_picture_at_its_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Read back from what its offline mode leaves to upload: two files of one run, nothing dropped
    for its step."""
    pytest.importorskip("wandb", reason="wandb is not installed: pip install -e .[wandb]")
    monkeypatch.setenv("WANDB_SILENT", "true")
    metrics = cut_off_and_resumed(
        tmp_path / "run", monkeypatch, "logger=wandb", "logger.wandb.offline=true"
    )
    files = sorted((tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb"))
    first, second = (records_with_exit(file) for file in files)
    name = json.loads((tmp_path / "run" / "logger.json").read_text())["WandbLogger"]
    assert {record.run.run_id for record in (*first, *second) if record.HasField("run")} == {name}
    assert [record.exit.exit_code for record in (*first, *second) if record.HasField("exit")] == [
        1,
        0,
    ]
    rows = [history(record) for record in (*first, *second) if record.HasField("history")]
    steps = {
        key: [row["trainer/global_step"] for row in rows if key in row]
        for key in set().union(*rows)
    }
    for key in (
        "val/elbo",
        "train/kl",
    ):  # what was logged after the checkpoint comes again, with the same value
        assert steps[key] == [3, 7, 7, 11]
    pictures = (
        "posterior_collapse/filenames",
        "posterior_collapse/kl_per_latent/bins",
        "chain/videos",
    )
    assert all(steps[key] == [4, 8, 8, 12] for key in pictures)
    assert steps["test/elbo"] == steps["final/val/elbo"] == [12]
    assert rows[-1]["test/elbo"] == metrics["test/elbo"]
    assert [row["_step"] for row in rows] == [
        *range(10),
        *range(10),
    ]  # W&B's own count of what it took
    config = {
        update.key: json.loads(update.value_json)
        for record in first
        for update in record.config.update
    }
    assert config["model.latent_dim"] == 4
    chain = [*tmp_path.rglob("media/videos/*.gif")]
    assert (tmp_path / "run" / "videos" / "chain.gif").read_bytes() in [
        path.read_bytes() for path in chain
    ]


def records(file: Path) -> Iterator[Any]:
    """The records of a .wandb file: LevelDB's log format after a header of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, whole = file.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack(
            "<IHB", data[at : at + 7]
        )  # kind: 1 whole, 2 first, 3 middle, 4 last
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield Record.FromString(whole)
            whole = b""


def history(record: Any) -> dict[str, Any]:
    return {
        "/".join(item.nested_key) or item.key: json.loads(item.value_json)
        for item in record.history.item
    }


@pytest.mark.slow
def test_wandb_without_a_login_is_refused_in_a_line(tmp_path: Path):
    pytest.importorskip("wandb", reason="wandb is not installed: pip install -e .[wandb]")
    command = [
        sys.executable,
        "-m",
        "vae.train",
        "data=digits",
        f"data.root={ROOT / 'data'}",
        "logger=wandb",
    ]
    env = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")} | {
        "HOME": str(tmp_path)
    }
    done = subprocess.run(
        [*command, f"hydra.run.dir={tmp_path / 'run'}"],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 2
    said = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(said) == 1
    assert "wandb login" in said[0]
    assert "logger=none" in said[0]
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_mlflow_has_every_metric_and_picture_at_its_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """In one run of its database, though the run was cut off, and trained longer than its settings
    had said."""
    pytest.importorskip("mlflow", reason="mlflow is not installed: pip install -e .[mlflow]")
    pytest.importorskip(
        "sqlalchemy", reason="sqlalchemy is not installed: pip install -e .[mlflow]"
    )
    from mlflow.tracking import MlflowClient

    uri = f"sqlite:///{tmp_path / 'all.db'}"
    logger = ("logger=mlflow", f"logger.mlflow.tracking_uri={uri}")
    cut_off_and_resumed(tmp_path / "a-run", monkeypatch, *logger)
    metrics = run(tmp_path / "a-run", 4, *logger)
    client = MlflowClient(uri)
    (found,) = client.search_runs([client.get_experiment_by_name("vae-lightning").experiment_id])
    steps = {
        key: [point.step for point in client.get_metric_history(found.info.run_id, key)]
        for key in found.data.metrics
    }
    assert steps["val/elbo"] == [3, 7, 7, 11, 15]
    assert steps["chain/drift"] == [4, 8, 8, 12, 16]
    assert steps["test/elbo"] == steps["final/val/elbo"] == [12, 16]
    assert found.data.metrics["test/elbo"] == metrics["test/elbo"]
    assert (found.info.status, found.info.run_name) == ("FINISHED", "a-run")
    assert found.data.params["model.latent_dim"] == "4"
    pictures = tmp_path / "all" / found.info.run_id / "artifacts"
    for name in ("chain", "posterior_collapse"):
        assert {int(folder.name) for folder in (pictures / name).iterdir()} == {4, 8, 12, 16}
    gif = (pictures / "chain" / "00000016" / "chain.gif").read_bytes()
    assert gif == (tmp_path / "a-run" / "videos" / "chain.gif").read_bytes()


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_logger_that_is_not_installed_names_its_extra(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
):
    import lightning.pytorch.loggers

    monkeypatch.setattr(lightning.pytorch.loggers.wandb, "_WANDB_AVAILABLE", False)
    monkeypatch.setattr(lightning.pytorch.loggers.mlflow, "_MLFLOW_AVAILABLE", False)
    with pytest.raises(UserError) as raised:
        train(settings(f"logger={name}", "model.sigma=0"), tmp_path)
    assert raised.value.problems[1] == f"logger={name} needs: pip install -e .[{name}]"
    assert len(raised.value.problems) == 2


def test_none_leaves_the_files_alone(tmp_path: Path):
    metrics = run(tmp_path / "none", 2, "logger=none")
    assert {path.name for path in (tmp_path / "none").iterdir()} == {
        *(".lock", "checkpoints", "environment.json", "figures", "history.csv"),
        *(".hydra", "metrics.json", "videos"),
    }
    other = run(tmp_path / "csv", 2, "logger=csv")
    assert all(metrics[key] == other[key] for key in metrics if not key.startswith("time/"))
    assert run(tmp_path / "none", 3, "logger=none")["val/elbo"] > metrics["val/elbo"]
    assert expand_resume(["logger=null", "seed=1"]) == ["logger=none", "seed=1"]


def test_a_resumed_run_may_leave_its_logger_but_not_change_it(tmp_path: Path):
    (tmp_path / ".hydra").mkdir()
    OmegaConf.save(settings(), tmp_path / ".hydra" / "config.yaml")
    assert not saved_config(tmp_path, ["logger=none"], settings("logger=none")).logger
    with pytest.raises(UserError, match="logger=csv: while resuming"):
        saved_config(tmp_path, ["logger=csv"], settings("logger=csv"))


def test_metrics_are_kept_though_tensorboard_fails(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
):
    from tensorboard.summary.writer.record_writer import RecordWriter

    write, calls = RecordWriter.write, [0]

    def until_full(self: Any, data: bytes) -> None:
        calls[0] += 1
        if calls[0] > 6:
            raise OSError(28, "No space left on device")
        write(self, data)

    monkeypatch.setattr(RecordWriter, "write", until_full)
    assert run(tmp_path, 3)["test/elbo"] < 0
    said = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert said == [
        "logger: [Errno 28] No space left on device (OSError); the run continues without it"
    ]
    assert "Traceback" not in capsys.readouterr().err
    assert (tmp_path / "figures" / "posterior_collapse.png").exists()
    assert (
        torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 12
    )


def test_a_logger_that_cannot_begin_is_told_before_training(tmp_path: Path):
    (tmp_path / "tensorboard").write_text("a file where the folder should be")
    hook = threading.excepthook
    with pytest.raises(
        RunError, match=r"^logger: .*tensorboard.*; logger=none trains without one$"
    ):
        run(tmp_path, 1)
    assert threading.excepthook is hook
    assert not (tmp_path / "checkpoints").exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 300 kB, which a GIF of the chain does not fit into."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(disk)], capture_output=True
    ).returncode:
        pytest.skip("no tmpfs can be mounted here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.slow
def test_a_full_disk_below_the_dashboard_does_not_end_the_run(small_disk: Path, tmp_path: Path):
    """The real thing, with its threads, in a process of its own: one line, exit code 0, everything
    else whole."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "tensorboard").symlink_to(small_disk)
    overrides = [
        *OVERRIDES,
        f"data.root={ROOT / 'data'}",
        "trainer.max_epochs=3",
        "callbacks.chain.steps=50",
    ]
    command = [
        sys.executable,
        "-m",
        "vae.train",
        "data=digits",
        *overrides,
        f"hydra.run.dir={folder}",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    left = os.statvfs(small_disk)
    assert left.f_bavail * left.f_frsize < 50_000
    said = [line for line in (done.stdout + done.stderr).splitlines() if "logger" in line]
    assert len(said) == 1
    assert "No space left on device" in said[0]
    assert "Traceback" not in done.stderr
    assert json.loads((folder / "metrics.json").read_text())["test/elbo"] < 0
    assert torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 12
