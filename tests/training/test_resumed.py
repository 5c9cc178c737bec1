"""Runs resumed with what people combine: they end as they would have, or a line says why not."""

import re
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import torch
from conftest import NO_PICTURES, settings, timeless_metrics
from omegaconf import OmegaConf

from vae.models import ELBO
from vae.models.elbo import ELBOTerms
from vae.runs.errors import RunError, UserError
from vae.runs.resumable import check_resumable
from vae.runs.untrusted import read_settings
from vae.train import expand_resume, train
from vae.training.module import LitVAE

SHORT = [*NO_PICTURES, "data.batch_size=50", "model.latent_dim=2"]


class Capacity(ELBO):
    """The objective of docs/extending.md."""

    def loss(self, terms: ELBOTerms, step: int) -> torch.Tensor:
        return (terms.kl.sum(-1) - 25).abs() - terms.log_likelihood


class BadOnce(ELBO):
    """A loss that is infinite at one step, with gradients that are not."""

    def loss(self, terms: ELBOTerms, step: int) -> torch.Tensor:
        return super().loss(terms, step) + (torch.inf if step == 2 else 0.0)


class AlwaysBad(ELBO):
    def loss(self, terms: ELBOTerms, step: int) -> torch.Tensor:
        return super().loss(terms, step) * torch.nan


class Summed(ELBO):
    def loss(self, terms: ELBOTerms, step: int) -> torch.Tensor:
        return super().loss(terms, step).sum()


@pytest.mark.parametrize(
    ("saved", "said"),
    [
        ({"precision": "bf16-mixed", "threads": 7}, ["precision was bf16-mixed and is 32-true, "]),
        ({"device": "H100"}, ["device was H100 and is cpu"]),
        ({}, []),
        (None, []),  # of a checkpoint from before
    ],
    ids=["settings", "device", "the same", "unknown"],
)
def test_what_is_resumed_elsewhere_is_said(
    saved: Any, said: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Another processor may have another `fastest`, and another number of threads adds up in
    another order. Where nothing is left to train, nothing is said."""
    train(settings(*SHORT, "trainer.max_epochs=1"), tmp_path)
    last = tmp_path / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(last, weights_only=True)
    if saved is None:
        del checkpoint["resume"]["environment"]
    else:
        checkpoint["resume"]["environment"] |= saved
    torch.save(checkpoint, last)
    for epochs in (1, 2, 2):
        train(settings(*SHORT, f"trainer.max_epochs={epochs}"), tmp_path)
        lines = [line for line in caplog.messages if line.startswith("resumed")]
        assert len(lines) == len(said) * (epochs > 1)
        assert all(text in line for text, line in zip(said, lines, strict=False))
        caplog.clear()
        if epochs > 1:
            said = []  # the checkpoint is this machine's now


class WithoutSchedule(LitVAE):
    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


@pytest.mark.parametrize(
    "override",
    [
        "+callbacks.finder={_target_: lightning.pytorch.callbacks.LearningRateFinder, "
        "num_training_steps: 8}",
        "+callbacks.own={_target_: lightning.pytorch.callbacks.GradientAccumulationScheduler, "
        "scheduling: {1: 2}}",
        "learning._target_=test_resumed.WithoutSchedule",
        "objective._target_=test_resumed.Capacity",
        "trainer.max_steps=100",  # of which Lightning would make one epoch less
    ],
    ids=["found rate", "accumulation", "no schedule", "own objective", "steps"],
)
def test_a_longer_run_ends_as_if_it_had_been_so_long(tmp_path: Path, override: str) -> None:
    for folder, lengths in ((tmp_path / "whole", (4,)), (tmp_path / "resumed", (2, 4))):
        for epochs in lengths:
            config = settings(*SHORT, override, "scheduler=none", f"trainer.max_epochs={epochs}")
            train(config, folder)
    assert timeless_metrics(tmp_path / "resumed") == timeless_metrics(tmp_path / "whole")


def test_a_limit_of_steps_is_told_where_it_matters(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def resumed_to(steps: int) -> list[str]:
        caplog.clear()
        with caplog.at_level("INFO", logger="vae.training.resume"):
            train(settings(*SHORT, "trainer.max_epochs=4", f"trainer.max_steps={steps}"), tmp_path)
        return [r.message for r in caplog.records if r.name == "vae.training.resume"]

    assert resumed_to(10) == []
    limits = "trainer.max_epochs=4, trainer.max_steps=10"
    assert resumed_to(10) == [f"nothing was left to train: {limits}"]
    with pytest.raises(
        UserError, match=r"^trainer\.max_steps=9: .* has 10 steps of training already"
    ):
        resumed_to(9)
    (line,) = resumed_to(100)  # the second epoch had two of its eight steps
    assert line.startswith("the run had ended within an epoch, and continues with the next")
    last = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 10 + 2 * 8


@pytest.mark.parametrize(
    "override",
    [
        "learning._target_=test_resumed.WithoutSchedule",
        "+callbacks.own={_target_: lightning.pytorch.callbacks.StochasticWeightAveraging, "
        "swa_lrs: 0.001}",
    ],
    ids=["own step", "swa"],
)
def test_a_schedule_that_is_not_in_use_is_not_replayed(tmp_path: Path, override: str) -> None:
    for epochs in (4, 6):
        config = settings(*SHORT, override, "scheduler=cosine", f"trainer.max_epochs={epochs}")
        train(config, tmp_path)
    last = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 48


def test_settings_of_one_s_own_and_integer_keys_come_back(tmp_path: Path) -> None:
    scheduling = {0: 1, 10: 2}
    written = {"objective": {"_target_": "test_resumed.Capacity"}, "scheduling": scheduling}
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(written))
    found = read_settings(tmp_path / "config.yaml")
    assert found["scheduling"] == scheduling
    check_resumable(tmp_path, found, set())
    with pytest.raises(UserError, match="subclass of an objective"):
        check_resumable(tmp_path, {"objective": {"_target_": "omegaconf.OmegaConf"}}, set())


def test_a_batch_size_that_was_searched_cannot_be_resumed(tmp_path: Path) -> None:
    train(settings(*SHORT, "trainer.max_epochs=1"), tmp_path)
    finder = "+callbacks.finder={_target_: lightning.pytorch.callbacks.BatchSizeFinder}"
    with pytest.raises(UserError, match=r"BatchSizeFinder .* data.batch_size=<what it found>"):
        train(settings(*SHORT, finder, "trainer.max_epochs=2"), tmp_path)


def test_resume_in_a_sweep_is_refused() -> None:
    with pytest.raises(UserError, match="resume= takes one run"):
        expand_resume(["-m", "resume=a,b"])


def test_a_limit_that_leaves_a_split_untested_is_refused_at_once(tmp_path: Path) -> None:
    config = settings(*SHORT, "trainer.limit_test_batches=0.5")  # each split is one batch
    with pytest.raises(UserError, match=r"limit_test_batches=0.5: .* 1 batches of train images"):
        train(config, tmp_path)
    assert not (tmp_path / "checkpoints").exists()


def test_nothing_is_tested_where_that_is_asked_for(tmp_path: Path, capsys: Any) -> None:
    metrics = train(
        settings(*SHORT, "trainer.max_epochs=1", "trainer.limit_test_batches=0"), tmp_path
    )
    assert "test/elbo" not in metrics
    assert "nothing was tested (trainer.limit_test_batches=0)" in capsys.readouterr().out


def test_a_step_with_an_infinite_loss_is_skipped(tmp_path: Path) -> None:
    own = "objective._target_=test_resumed.BadOnce"
    train(settings(*SHORT, own, "skip_bad_steps=true", "trainer.max_epochs=1"), tmp_path / "bad")
    train(settings(*SHORT, "trainer.max_epochs=1"), tmp_path / "good")
    last, good = (
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)
        for name in ("bad", "good")
    )
    assert last["callbacks"]["FiniteCheck"] == {"skipped_steps": 1}
    weight = next(iter(good["state_dict"]))
    assert not torch.equal(last["state_dict"][weight], good["state_dict"][weight])


@pytest.mark.parametrize(
    "override", ["trainer.limit_val_batches=1.0", "trainer.limit_val_batches=0"]
)
def test_a_run_of_skipped_steps_alone_stops(tmp_path: Path, override: str) -> None:
    own = "objective._target_=test_resumed.AlwaysBad"
    config = settings(*SHORT, own, override, "skip_bad_steps=true", "trainer.max_epochs=2")
    with pytest.raises(RunError, match=r"every step since .* was skipped") as raised:
        train(config, tmp_path)
    assert "skip_bad_steps" not in str(raised.value)


def test_an_objective_of_the_whole_batch_is_refused(tmp_path: Path) -> None:
    config = settings(*SHORT, "objective._target_=test_resumed.Summed", "trainer.max_epochs=1")
    with pytest.raises(ValueError, match=r"expected one value per image, \[B\], not \[\]"):
        train(config, tmp_path)


class Interrupt(L.Callback):
    def on_train_batch_end(self, *arguments: Any) -> None:
        if arguments[-1] == 5:
            raise InterruptedError


def test_an_epoch_resumed_within_is_timed_from_there(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    config = [*SHORT, "trainer.max_epochs=1", "save_every_n_steps=3"]
    with pytest.raises(InterruptedError):
        train(settings(*config, "+callbacks.stop={_target_: test_resumed.Interrupt}"), tmp_path)
    assert "epoch 1/1" not in caplog.text
    train(settings(*config), tmp_path)
    (seconds,) = re.findall(r"epoch 1/1 .* \((.*) s\)", caplog.text)
    assert float(seconds) < 60
