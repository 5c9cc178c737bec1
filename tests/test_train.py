"""A short real run: the files, tags and metrics that its users rely on, and that it repeats bit for
bit."""

import json
import os
import subprocess
import sys
from pathlib import Path

import imageio.v3 as iio
import pytest
import torch
from conftest import FIGURES, NO_PICTURES, ROOT, ShortRun, settings
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from vae.data.datamodule import ImageDataModule
from vae.runs.checkpoints import LAST
from vae.runs.errors import UserError
from vae.theory.ppca import PPCA, Spectrum
from vae.train import cli, expand_resume, train


def test_files_of_the_run_folder(short_run: ShortRun):
    files = {
        str(path.relative_to(short_run.folder))
        for path in short_run.folder.rglob("*")
        if path.is_file()
    }
    expected = {
        "metrics.json",
        "environment.json",
        "checkpoints/best.ckpt",
        "checkpoints/last.ckpt",
    }
    expected |= {"videos/chain.gif", "videos/chain.mp4", ".hydra/config.yaml"}
    expected |= {f"figures/{name}.png" for name in FIGURES}
    assert expected <= files
    assert any(name.startswith("tensorboard/events") for name in files)
    for name in FIGURES:
        picture = iio.imread(short_run.folder / "figures" / f"{name}.png")
        assert picture.shape[0] > 300
        assert picture.std() > 20  # something is drawn


def test_figures_of_metrics_json(short_run: ShortRun):
    metrics = json.loads((short_run.folder / "metrics.json").read_text())
    expected = {
        f"{split}/{term}"
        for split in ("train", "val", "test")
        for term in ("elbo", "log_likelihood", "kl")
    }
    expected |= {"val/collapsed", "test/collapsed", "test/inactive", "oracle/collapsed"}
    expected |= {f"oracle/{split}_elbo" for split in ("train", "val", "test")}
    expected |= {
        "chain/spectral_radius",
        "chain/finite",
        "chain/drift",
        "time/fit_seconds",
        "time/images_per_second",
    }
    expected |= {"model/encoder_parameters", "model/decoder_parameters"}
    assert expected <= set(metrics)
    for split in ("train", "val", "test"):
        assert metrics[f"{split}/elbo"] == pytest.approx(
            metrics[f"{split}/log_likelihood"] - metrics[f"{split}/kl"]
        )
        assert metrics[f"{split}/elbo"] < metrics[f"oracle/{split}_elbo"]
    assert metrics["model/encoder_parameters"] == 785 * 8
    environment = json.loads((short_run.folder / "environment.json").read_text())
    assert environment["packages"]["torch"] == torch.__version__.split("+")[0]
    assert environment["seed"] == 0


def test_the_same_seed_gives_the_same_figures_bit_for_bit(tmp_path: Path):
    """Plain and in blocks of any size, with pictures or without; another seed gives others."""

    def final(name: str, *overrides: str) -> dict[str, float]:
        metrics = train(settings(*NO_PICTURES, "trainer.max_epochs=3", *overrides), tmp_path / name)
        return {
            key: value for key, value in metrics.items() if not key.startswith(("time/", "chain/"))
        }

    first = final("a")
    assert final("b") == first
    assert final("c", "learning=blocks", "learning.batches_per_block=3") == first
    picture = "callbacks.pictures={_target_: vae.callbacks.Reconstructions, every_n_epochs: 1}"
    assert final("d", f"+{picture}") == first
    assert final("e", "seed=1") != first


def test_the_epochs_elbo_does_not_depend_on_the_batches(tmp_path: Path):
    """The final metrics of one checkpoint, evaluated in batches of 1000 and of 7 with a short last
    one."""
    run = tmp_path / "run"
    metrics = [
        train(settings(*NO_PICTURES, "trainer.max_epochs=1", f"data.eval_batch_size={size}"), run)
        for size in (1000, 7)
    ]
    for key in ("train/elbo", "val/elbo", "test/elbo", "test/kl", "test/inactive"):
        assert metrics[0][key] == pytest.approx(metrics[1][key], abs=1e-3)


def test_a_run_resumes_where_it_was_cut_off(tmp_path: Path):
    """Stopped after two epochs and resumed to four, weights and metrics are those of four epochs in
    one go."""
    short = settings(*NO_PICTURES, "trainer.max_epochs=2", "scheduler=none")
    whole = settings(*NO_PICTURES, "trainer.max_epochs=4", "scheduler=none")
    train(short, tmp_path / "cut")
    resumed_metrics = train(whole, tmp_path / "cut")
    metrics = train(whole, tmp_path / "whole")
    for key in metrics:
        if not key.startswith("time/"):
            assert resumed_metrics[key] == metrics[key], key
    states = [
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for name in ("cut", "whole")
    ]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[1])


def test_images_too_large_for_a_closed_form_are_trained_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def none(*_: object) -> Spectrum:
        raise RuntimeError("not enough memory: you tried to allocate 309237645312 bytes.\nmore")

    monkeypatch.setattr(Spectrum, "cached", none)
    metrics = train(settings(*NO_PICTURES, "logger=none", "trainer.max_epochs=1"), tmp_path / "run")
    assert json.loads((tmp_path / "run" / "metrics.json").read_text()) == metrics
    assert not [name for name in metrics if name.startswith("oracle/")]
    told = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert told == [
        "no closed-form optimum of a linear model: not enough memory: you tried to allocate "
        "309237645312 bytes."
    ]


def test_a_finished_run_keeps_its_times_when_it_is_tested_again(tmp_path: Path):
    config = settings(
        *NO_PICTURES, "trainer.max_epochs=40"
    )  # what follows the last checkpoint is a small part of them
    first, again = (train(config, tmp_path) for _ in range(2))
    assert again["time/fit_seconds"] >= 0.9 * first["time/fit_seconds"]
    assert again["test/elbo"] == first["test/elbo"]


@pytest.mark.slow
def test_no_thread_computes_with_denormal_numbers(tmp_path: Path):
    """With which an epoch of a linear decoder takes twice as long on many processors."""
    arguments = ["data=digits", f"data.root={ROOT / 'data'}", "callbacks=none", "logger=none"]
    arguments += ["trainer.max_epochs=1", "trainer.accelerator=cpu", f"hydra.run.dir={tmp_path}"]
    code = [
        "import sys; from vae.train import cli",
        f"sys.argv[1:] = {arguments}",
        "cli()",
        "import torch",
        "print('KEPT', torch.full((2**22,), 1e-40).mul(0.5).count_nonzero().item())",
    ]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(code)],
        env=os.environ | {"OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert "KEPT 0\n" in done.stdout, done.stderr


def test_resume_works_in_the_folder_and_keeps_its_settings():
    assert expand_resume(["resume=a/b", "trainer.max_epochs=9"]) == [
        "resume=a/b",
        "hydra.run.dir=a/b",
        "hydra.output_subdir=null",
        "trainer.max_epochs=9",
    ]
    assert expand_resume(["resume=a", "--cfg", "job"])[-2:] == [
        "--cfg",
        "job",
    ]  # flags stay the last
    assert expand_resume(["model=deep"]) == ["model=deep"]
    with pytest.raises(UserError, match=r"hydra\.run\.dir=c: resume=a/b works in the run's own"):
        expand_resume(["resume=a/b", "hydra.run.dir=c"])


def test_a_run_of_a_sweep_is_resumed_by_the_path_that_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """It has = and , in it, which Hydra reads in quotes alone."""
    monkeypatch.chdir(tmp_path)
    Path("data=digits,seed=1").mkdir()
    quoted = ["resume='data=digits,seed=1'", "hydra.run.dir='data=digits,seed=1'"]
    assert expand_resume(["resume=data=digits,seed=1"])[:2] == quoted
    assert expand_resume(["resume='data=digits,seed=1'"])[:2] == quoted


def test_a_resumed_run_without_a_checkpoint_says_that_it_starts_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / ".hydra").mkdir()
    OmegaConf.save(settings(), tmp_path / ".hydra" / "config.yaml")
    monkeypatch.setattr("vae.train.flush_denormals", lambda: None)  # a process's, not a test's
    monkeypatch.setattr("vae.train.train", lambda config, folder: {"val/elbo": 0.0})
    monkeypatch.setattr(sys, "argv", ["vae-train", f"resume={tmp_path}"])
    said = f"{tmp_path} has no checkpoint yet: it starts from the beginning\n"
    for checkpoint, line in ((None, said), (tmp_path / LAST, "")):
        if checkpoint is not None:
            checkpoint.parent.mkdir()
            checkpoint.touch()
        GlobalHydra.instance().clear()
        cli()
        assert capsys.readouterr().out == line


@pytest.mark.parametrize("name", ["stdout", "disabled", "none", "default", "messages"])
def test_hydras_own_ways_of_logging_are_whole(name: str):
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("train", [f"hydra/job_logging={name}"], return_hydra_config=True)
    handlers = config.hydra.job_logging.get("handlers", {})
    assert all("class" in handler for handler in handlers.values())
    assert handlers.get("file", {}).get("delay", False) == (name == "messages")


@pytest.mark.slow
def test_training_lifts_the_elbo_towards_the_oracle(tmp_path: Path, digits: ImageDataModule):
    """The whole path (loader, step, schedule, checkpoint) ends within 3 nats of the closed form,
    not above it."""
    overrides = [
        "trainer.max_epochs=400",
        "optimizer.lr=0.01",
        "+optimizer.betas=[0.9,0.99]",
        "data.batch_size=100",
    ]
    metrics = train(settings(*NO_PICTURES, *overrides), tmp_path)
    oracle = PPCA(Spectrum.from_images(digits.split_pixels("train")), 4, 0.25)
    assert metrics["oracle/train_elbo"] == pytest.approx(oracle.train_elbo)
    assert oracle.train_elbo - 3 < metrics["train/elbo"] < oracle.train_elbo + 1
    assert metrics["test/collapsed"] == oracle.collapsed == 0


def test_other_loggers_are_a_choice_of_the_settings(tmp_path: Path):
    node = "{_target_: lightning.pytorch.loggers.CSVLogger, name: '', version: mine}"
    train(settings(*NO_PICTURES, "trainer.max_epochs=1", f"+logger.mine={node}"), tmp_path)
    text = (tmp_path / "mine" / "metrics.csv").read_text()
    assert "val/elbo" in text
    assert "test/elbo" in text
