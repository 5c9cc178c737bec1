"""Runs that are killed, asked to stop, starved of disk or led astray: nothing saved is lost, and a
line says so."""

import math
import os
import re
import signal
import subprocess
import sys
import time
from datetime import datetime, timedelta
from pathlib import Path

import pytest
import torch
from conftest import NO_PICTURES, ROOT, settings
from omegaconf import DictConfig, OmegaConf

import vae
from vae.runs.errors import RunError, UserError
from vae.runs.folder import saved_config
from vae.train import train
from vae.training.module import LitVAE


@pytest.mark.slow
def test_killed_runs_end_as_if_left_alone():
    """A few kills of `make torture`: by the clock, while saving, by a signal."""
    command = [sys.executable, str(ROOT / "tests" / "torture.py"), "--kills", "6", "--seed", "3"]
    command += ["--kinds", "run"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout
    assert "run: 6 kills, 0 lost or different" in done.stdout


@pytest.mark.slow
def test_killed_commands_and_studies_end_as_if_left_alone():
    """One or two kills of each of two cheap kinds of `make torture`."""
    command = [sys.executable, str(ROOT / "tests" / "torture.py"), "--kills", "2", "--seed", "1"]
    command += ["--kinds", "summary,optuna", "--minutes", "0.4"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout
    for kind in ("summary", "optuna"):
        assert re.search(rf"^{kind}: [12] kills, 0 lost or different$", done.stdout, re.MULTILINE)


@pytest.mark.slow
def test_sigterm_saves_and_says_how_to_go_on(tmp_path: Path):
    """In the middle of a long epoch: exit code 143 within 5 s, and the printed command finishes the
    run."""
    run = tmp_path / "run"
    overrides = [
        "data=digits",
        f"data.root={ROOT / 'data'}",
        *NO_PICTURES,
        f"hydra.run.dir={run}",
    ]
    overrides += [
        "data.batch_size=1",
        "trainer.max_epochs=2",
        "model=deep",
    ]
    command = [sys.executable, "-m", "vae.train", *overrides]
    process = subprocess.Popen(
        command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    deadline = time.monotonic() + 90
    while (
        "epoch 1/2" not in (run / "train.log").read_text() if (run / "train.log").exists() else True
    ):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    asked = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=30)
    assert time.monotonic() - asked < 5
    assert process.returncode == 143
    assert f"resume with: python -m vae.train resume={run}" in said
    assert "Traceback" not in said
    step = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
    assert 400 <= step < 800
    kept = (run / ".hydra" / "config.yaml").read_text()
    resumed = subprocess.run(
        [sys.executable, "-m", "vae.train", f"resume={run}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert resumed.returncode == 0, resumed.stderr
    assert torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 800
    assert (run / ".hydra" / "config.yaml").read_text() == kept


@pytest.mark.parametrize("network", ["encoder", "decoder"])
def test_a_gradient_that_is_not_finite_stops_the_run(
    tmp_path: Path, network: str, monkeypatch: pytest.MonkeyPatch
):
    """The step, the network and what may help, in one line; the last checkpoint is still a good
    one."""

    def poison(task: LitVAE) -> None:
        if task.current_epoch == 1:  # as an optimiser step with a gradient that is not finite would
            next(getattr(task.model, network).parameters()).data[0] = float("nan")

    monkeypatch.setattr(LitVAE, "on_train_epoch_start", poison)
    with pytest.raises(RunError) as raised:
        train(settings(*NO_PICTURES, "trainer.max_epochs=3"), tmp_path)
    line = str(raised.value)
    assert "\n" not in line
    assert line.startswith(f"step 4, epoch 2: the gradient of the {network} was not finite")
    last = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 4
    assert all(weight.isfinite().all() for weight in last["state_dict"].values())


def test_what_a_checkpoint_belongs_to_cannot_be_changed(tmp_path: Path):
    (tmp_path / ".hydra").mkdir()
    OmegaConf.save(settings(), tmp_path / ".hydra" / "config.yaml")

    def resumed(*overrides: str) -> DictConfig:
        return saved_config(tmp_path, [f"resume={tmp_path}", *overrides], settings(*overrides))

    changed = resumed("trainer.max_epochs=60", "trainer.limit_val_batches=1", "~callbacks.chain")
    assert changed.trainer == {**settings().trainer, "max_epochs": 60, "limit_val_batches": 1}
    assert (changed.callbacks.chain, changed.scheduler.T_max) == (None, "auto")
    same = ("data.batch_size=128", "model=baseline", "data=digits", "trainer.max_epochs=31")
    assert resumed(*same).trainer.max_epochs == 31  # the whole command again is no change
    (tmp_path / ".hydra" / "overrides.yaml").write_text("[+experiment=fast]")
    assert resumed("+experiment=fast", "trainer.max_epochs=60").trainer.max_epochs == 60
    with pytest.raises(UserError, match=r"\+experiment=lab cannot be changed"):
        resumed("+experiment=lab")
    with pytest.raises(UserError, match=r"optimizer\.lr=1 cannot be changed") as raised:
        resumed("optimizer.lr=1", "model=deep", "callbacks=none")
    assert raised.value.problems[2].startswith("callbacks=none: while resuming")
    assert len(raised.value.problems) == 3


def test_a_run_is_not_resumed_to_be_shorter(tmp_path: Path):
    """It would be recorded as a run of fewer epochs than its weights have."""
    train(settings(*NO_PICTURES, "trainer.max_epochs=2"), tmp_path)
    with pytest.raises(
        UserError, match=r"^trainer\.max_epochs=1: .* has 2 epochs of training already"
    ):
        train(settings(*NO_PICTURES, "trainer.max_epochs=1"), tmp_path)
    assert train(settings(*NO_PICTURES, "trainer.max_epochs=2"), tmp_path)["train/images"] == 400


def test_settings_from_before_a_key_existed_take_its_default(tmp_path: Path):
    """Each whole key away in turn: the run loads, and is resumed with what the key is today."""
    train(settings(*NO_PICTURES, "trainer.max_epochs=1"), tmp_path)
    (tmp_path / ".hydra").mkdir(exist_ok=True)
    today = settings("trainer.max_epochs=2", "model.latent_dim=4")
    for key in today.keys() - {"model", "data"}:  # the model takes the images' shape from data
        kept = {
            name: value
            for name, value in settings(*NO_PICTURES, "trainer.max_epochs=2").items()
            if name != key
        }
        OmegaConf.save(kept, tmp_path / ".hydra" / "config.yaml")
        assert vae.load_run(tmp_path).model.latent_dim == 4
        config = saved_config(tmp_path, [f"resume={tmp_path}"], today)
        assert config == {**kept, key: today[key]}
    assert config.keys() == today.keys()
    for key in ("threads", "save_every_n_steps", "skip_bad_steps", "learning"):
        config.pop(key, None)
    OmegaConf.save(config, tmp_path / ".hydra" / "config.yaml")
    train(
        saved_config(tmp_path, ["save_every_n_steps=2"], settings("save_every_n_steps=2")), tmp_path
    )
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 8


def test_a_longer_run_goes_along_the_longer_schedule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
):
    """A finished run of 2 epochs resumed to 4: the learning rates of a run of 4 from there on, not
    a rise from 0."""
    rates: list[float] = []

    def note(task: LitVAE) -> None:
        rates.append(task.optimizers(use_pl_optimizer=False).param_groups[0]["lr"])

    monkeypatch.setattr(LitVAE, "on_train_epoch_start", note)
    for epochs in (2, 4):
        train(settings(*NO_PICTURES, f"trainer.max_epochs={epochs}"), tmp_path)
    short, long = ([0.0005 * (1 + math.cos(math.pi * t / T)) for t in range(T)] for T in (2, 4))
    assert rates == pytest.approx(short + long[2:], abs=1e-15)
    assert not [w for w in recwarn if "lr_scheduler.step" in str(w.message)]


@pytest.mark.slow
def test_a_run_in_a_second_that_is_taken_gets_a_name_of_its_own(tmp_path: Path):
    started = datetime.now()
    seconds = [
        (started + timedelta(seconds=s)).strftime("outputs/%Y-%m-%d/%H-%M-%S-baseline")
        for s in range(100)
    ]
    for name in seconds:
        (tmp_path / name).mkdir(parents=True)
    done = vae_train(
        "data=digits",
        f"data.root={ROOT / 'data'}",
        *NO_PICTURES,
        "trainer.max_epochs=1",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert not any(any((tmp_path / name).iterdir()) for name in seconds)
    (run,) = (
        folder for folder in tmp_path.glob("outputs/*/*") if folder.name.endswith("-baseline-2")
    )
    assert f"run folder: {run}" in done.stdout
    assert (run / "metrics.json").exists()
    assert (run / ".hydra" / "config.yaml").exists()


@pytest.mark.slow
def test_two_processes_never_write_into_one_folder(tmp_path: Path):
    """A run at work is not resumed by another process, in one line; killed, it blocks nobody."""
    run = tmp_path / "run"
    overrides = [
        "data=digits",
        f"data.root={ROOT / 'data'}",
        *NO_PICTURES,
        f"hydra.run.dir={run}",
        "trainer.max_epochs=2",
    ]
    overrides += [
        "data.batch_size=1",
        "save_every_n_steps=100",
        "model=deep",
    ]
    first = subprocess.Popen(
        [sys.executable, "-m", "vae.train", *overrides], cwd=ROOT, stdout=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 90
        while not (run / "checkpoints" / "last.ckpt").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        first.send_signal(signal.SIGSTOP)  # at work, and not done before the others ask
        for override, line in (
            (f"resume={run}", f"resume={run}: another process is writing there"),
            (
                f"hydra.run.dir={run}",
                f"hydra.run.dir={run} holds an unfinished run; resume={run} resumes it",
            ),
        ):
            refused = vae_train(override)
            assert refused.returncode == 2
            assert refused.stderr.startswith(f"error: {line}")
            assert len(refused.stderr.splitlines()) == 1
        with pytest.raises(UserError, match="another process is writing there"):
            train(settings(*overrides[2:-1]), run)
    finally:
        first.kill()
        first.wait()
    done = vae_train(f"resume={run}")
    assert done.returncode == 0, done.stderr
    assert torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 800


def vae_train(*overrides: str, cwd: Path = ROOT) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "vae.train", *overrides]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120)


def test_bad_steps_are_skipped_and_counted_on_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from vae.models.vae import VAE

    calls, terms = [0], VAE.log_likelihood

    def sometimes_bad(model: VAE, x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        calls[0] += 1
        return terms(model, x, z) * (float("nan") if calls[0] in (2, 3) else 1.0)

    monkeypatch.setattr(VAE, "log_likelihood", sometimes_bad)
    config = settings(
        *NO_PICTURES, "trainer.max_epochs=2", "data.batch_size=50", "skip_bad_steps=true"
    )
    assert train(config, tmp_path)["train/elbo"] < 0
    last = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["callbacks"]["FiniteCheck"] == {"skipped_steps": 2}
    assert last["global_step"] == 16  # Lightning counts the calls of the optimiser
    calls[0] = 0
    with pytest.raises(RunError, match="step 1, epoch 1: the log-likelihood is not finite"):
        train(
            settings(*NO_PICTURES, "trainer.max_epochs=2", "data.batch_size=50"),
            tmp_path / "stops",
        )


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path: Path):
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1500k", "tmpfs", str(disk)], capture_output=True
    ).returncode:
        pytest.skip("no tmpfs can be mounted here")
    try:
        run = disk / "run"
        config = [
            *NO_PICTURES,
            "model.latent_dim=16",
            "logger=csv",
        ]
        train(settings(*config, "trainer.max_epochs=1"), run)
        before = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
        (disk / "ballast").write_bytes(bytes(max(0, free(disk) - 100_000)))
        with pytest.raises(RunError, match="previous checkpoint is intact"):
            train(settings(*config, "trainer.max_epochs=2"), run)
        after = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
        assert after["global_step"] == before["global_step"]
        (disk / "ballast").unlink()
        train(settings(*config, "trainer.max_epochs=2"), run)
        assert torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 8
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def free(disk: Path) -> int:
    found = os.statvfs(disk)
    return found.f_bavail * found.f_frsize
