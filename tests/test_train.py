"""A short real run: the files, tags and metrics that its users rely on, and that it repeats bit for
bit."""

import json
import shutil
from pathlib import Path

import imageio.v3 as iio
import pytest
import torch
from conftest import ROOT, ShortRun, settings
from omegaconf import OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import vae
from vae.data.datamodule import ImageDataModule
from vae.models.vae import VAE
from vae.runs.errors import UserError
from vae.runs.folder import saved_config
from vae.theory.ppca import PPCA, Spectrum
from vae.train import resumed, train
from vae.training.checkpoints import AtomicCheckpointIO

QUIET = [
    f"callbacks.{name}=null"
    for name in ("elbo_curves", "reconstructions", "prior_samples", "chain")
]
QUIET += ["callbacks.posterior_collapse=null", "trainer.accelerator=cpu", "model.latent_dim=4"]
FIGURES = ("reconstructions", "prior_samples", "posterior_collapse", "elbo_curves", "chain")


@pytest.fixture(scope="session")
def events(short_run: ShortRun) -> EventAccumulator:
    accumulator = EventAccumulator(
        str(short_run.folder / "tensorboard"), {"images": 0, "histograms": 0}
    )
    accumulator.Reload()
    return accumulator


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


def test_tags_on_the_dashboard(short_run: ShortRun, events: EventAccumulator):
    tags = events.Tags()
    curves = {
        f"{split}/{term}" for split in ("train", "val") for term in ("elbo", "log_likelihood", "kl")
    }
    curves |= {"train/objective", "val/collapsed"}
    final = {
        "test/elbo",
        "test/log_likelihood",
        "test/kl",
        "test/collapsed",
        "test/inactive",
        "final/val/elbo",
    }
    final |= {
        "oracle/train_elbo",
        "oracle/val_elbo",
        "oracle/test_elbo",
        "oracle/collapsed",
        "time/fit_seconds",
    }
    final |= {"chain/finite", "chain/drift", "chain/spectral_radius", "model/encoder_parameters"}
    assert curves | final <= set(tags["scalars"])
    for tag in curves:  # one point an epoch, at the step of its last batch: 400 images by 128
        assert [point.step for point in events.Scalars(tag)] == [3, 7]
    for tag in ("test/elbo", "test/kl", "oracle/test_elbo"):
        (point,) = events.Scalars(tag)
        assert point.value == pytest.approx(short_run.metrics[tag], rel=1e-6)
    assert {*FIGURES} - {"chain"} <= set(tags["images"])
    assert [h.step for h in events.Histograms("posterior_collapse/kl_per_latent")] == [
        4,
        8,
    ]  # val, then test
    assert {"_hparams_/experiment", "_hparams_/session_start_info"} <= set(
        events.summary_metadata
        if hasattr(events, "summary_metadata")
        else events.PluginTagToContent("hparams")
    )


def test_the_chain_plays_on_the_dashboard(short_run: ShortRun, events: EventAccumulator):
    """The image summary is the GIF itself: 101 frames, the step of each in its title, the run
    folder's bytes."""
    picture = events.Images("chain")[-1].encoded_image_string
    assert picture[:6] == b"GIF89a"
    assert picture == (short_run.folder / "videos" / "chain.gif").read_bytes()
    frames = iio.imread(picture, extension=".gif", index=None)
    assert len(frames) == 101
    assert all((frames[t] != frames[t + 1]).any() for t in range(100))
    assert len(iio.imread(short_run.folder / "videos" / "chain.mp4", plugin="FFMPEG")) == 101


def test_a_run_folder_opens_wherever_it_was_copied(
    short_run: ShortRun, tmp_path: Path, digits: ImageDataModule
):
    copy = Path(shutil.copytree(short_run.folder, tmp_path / "elsewhere" / "copy"))
    run = vae.load_run(copy)
    assert isinstance(run.model, VAE)
    assert not run.model.training
    assert run.metrics == json.loads((copy / "metrics.json").read_text())
    assert run.config.model.latent_dim == 4
    # its ELBO on the test split, with the noise of the test, is the one of metrics.json
    noise = torch.randn(300, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        terms, _ = run.model.elbo_terms(digits.images("test", 300), noise)
    assert terms.elbo.mean().item() == pytest.approx(run.metrics["test/elbo"], abs=1e-3)


def test_what_is_no_run_is_refused_in_a_line(short_run: ShortRun, tmp_path: Path):
    with pytest.raises(UserError, match="no run folder"):
        vae.load_run(tmp_path)
    copy = Path(shutil.copytree(short_run.folder, tmp_path / "run"))
    best = copy / "checkpoints" / "best.ckpt"
    whole = best.read_bytes()
    best.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"best\.ckpt is damaged"):
        vae.load_run(copy)
    best.unlink()
    assert "last checkpoint" in vae.load_run(copy).notes[0]  # as of a run that never validated
    (copy / "checkpoints" / "last.ckpt").unlink()
    with pytest.raises(UserError, match="is missing"):
        vae.load_run(copy)
    best.write_bytes(whole)
    config = copy / ".hydra" / "config.yaml"
    config.write_text(config.read_text().replace("vae.models.Decoder", "os.system"))
    with pytest.raises(UserError, match=r"os\.system is refused"):
        vae.load_run(copy)


def test_a_checkpoint_that_carries_code_runs_nothing(short_run: ShortRun, tmp_path: Path):
    class Payload:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "executed",))

    copy = Path(shutil.copytree(short_run.folder, tmp_path / "run"))
    torch.save({"state_dict": Payload(), "vae_format": 1}, copy / "checkpoints" / "best.ckpt")
    with pytest.raises(UserError, match="more than tensors"):
        vae.load_run(copy)
    assert not (tmp_path / "executed").exists()


def test_the_same_seed_gives_the_same_figures_bit_for_bit(tmp_path: Path):
    """Plain and in blocks of any size, with pictures or without; another seed gives others."""

    def final(name: str, *overrides: str) -> dict[str, float]:
        metrics = train(settings(*QUIET, "trainer.max_epochs=3", *overrides), tmp_path / name)
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
        train(settings(*QUIET, "trainer.max_epochs=1", f"data.eval_batch_size={size}"), run)
        for size in (1000, 7)
    ]
    for key in ("train/elbo", "val/elbo", "test/elbo", "test/kl", "test/inactive"):
        assert metrics[0][key] == pytest.approx(metrics[1][key], abs=1e-3)


def test_a_run_goes_on_where_it_was_cut_off(tmp_path: Path):
    """Stopped after two epochs and resumed to four, weights and metrics are those of four epochs in
    one go."""
    short = settings(*QUIET, "trainer.max_epochs=2", "scheduler=none")
    whole = settings(*QUIET, "trainer.max_epochs=4", "scheduler=none")
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


def test_a_finished_run_keeps_its_times_when_it_is_tested_again(tmp_path: Path):
    config = settings(
        *QUIET, "trainer.max_epochs=40"
    )  # what follows the last checkpoint is a small part of them
    first, again = (train(config, tmp_path) for _ in range(2))
    assert again["time/fit_seconds"] >= 0.9 * first["time/fit_seconds"]
    assert again["test/elbo"] == first["test/elbo"]


def test_a_video_that_cannot_be_written_is_told_and_does_not_end_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    (tmp_path / "videos" / "chain.mp4").mkdir(parents=True)
    overrides = [o for o in QUIET if "chain" not in o]
    train(settings(*overrides, "trainer.max_epochs=1", "callbacks.chain.steps=2"), tmp_path)
    (said,) = (record.message for record in caplog.records if record.levelname == "WARNING")
    assert said.startswith("callbacks.chain: no picture (OSError: ")
    assert (tmp_path / "videos" / "chain.gif").exists()
    assert (tmp_path / "metrics.json").exists()


def test_the_best_that_is_also_the_last_is_written_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    best, last = (tmp_path / name for name in ("best.ckpt", "last.ckpt"))
    checkpoints = AtomicCheckpointIO()
    for epoch, path, links in (
        (1, best, 1),
        (1, last, 2),
        (2, last, 1),
        (2, best, 2),
        (3, best, 1),
    ):
        checkpoints.save_checkpoint({"epoch": epoch, "loops": {"fit_loop": {"epoch": epoch}}}, path)
        assert torch.load(path, weights_only=True)["epoch"] == epoch
        assert path.stat().st_nlink == links

    def unknown(*_: object) -> None:
        raise OSError("Operation not supported")

    monkeypatch.setattr("os.link", unknown)
    checkpoints.save_checkpoint({"epoch": 3, "loops": {"fit_loop": {"epoch": 3}}}, last)
    assert torch.load(last, weights_only=True)["epoch"] == 3
    assert last.stat().st_nlink == 1
    assert {path.name for path in tmp_path.iterdir()} == {"best.ckpt", "last.ckpt"}


def test_resume_works_in_the_folder_and_keeps_its_settings():
    assert resumed(["resume=a/b", "trainer.max_epochs=9"]) == [
        "resume=a/b",
        "trainer.max_epochs=9",
        "hydra.run.dir=a/b",
        "hydra.output_subdir=null",
    ]
    assert resumed(["model=deep"]) == ["model=deep"]


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
    metrics = train(settings(*QUIET, *overrides), tmp_path)
    oracle = PPCA(Spectrum.from_images(digits.split_pixels("train")), 4, 0.25)
    assert metrics["oracle/train_elbo"] == pytest.approx(oracle.train_elbo)
    assert oracle.train_elbo - 3 < metrics["train/elbo"] < oracle.train_elbo + 1
    assert metrics["test/collapsed"] == oracle.collapsed == 0


def test_a_failed_picture_does_not_end_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    (tmp_path / "figures").write_text("a file where the folder should be")
    overrides = [o for o in QUIET if "reconstructions" not in o]
    config = settings(
        *overrides, "trainer.max_epochs=2", "callbacks.reconstructions.every_n_epochs=1"
    )
    assert train(config, tmp_path)["test/elbo"] < 0
    warnings = [
        record for record in caplog.records if "reconstructions: no picture" in record.message
    ]
    assert len(warnings) == 1


def test_other_loggers_are_a_choice_of_the_settings(tmp_path: Path):
    node = "{_target_: lightning.pytorch.loggers.CSVLogger, name: '', version: mine}"
    train(settings(*QUIET, "trainer.max_epochs=1", f"+logger.mine={node}"), tmp_path)
    text = (tmp_path / "mine" / "metrics.csv").read_text()
    assert "val/elbo" in text
    assert "test/elbo" in text


def test_everything_runs_on_a_gpu(tmp_path: Path):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA GPU here")
    metrics = train(
        settings("model=deep", "trainer.max_epochs=2", "trainer.accelerator=gpu"), tmp_path
    )
    assert metrics["test/elbo"] < metrics["oracle/test_elbo"] + 500
    assert (tmp_path / "videos" / "chain.gif").exists()


def test_settings_survive_the_run_folder(short_run: ShortRun):
    saved = OmegaConf.load(short_run.folder / ".hydra" / "config.yaml")
    assert saved == short_run.config


FIRST = (
    ROOT / "tests" / "fixtures" / "first-release"
)  # one latent, one epoch, as the first release left it


def test_a_run_of_the_first_release_loads_and_goes_on(tmp_path: Path, digits: ImageDataModule):
    copy = Path(shutil.copytree(FIRST, tmp_path / "run"))
    run = vae.load_run(copy)
    noise = torch.randn(300, 1, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        terms, _ = run.model.elbo_terms(digits.images("test", 300), noise)
    assert terms.elbo.mean().item() == pytest.approx(run.metrics["test/elbo"], abs=1e-2)
    overrides = ["trainer.max_epochs=2", f"resume={copy}"]
    config = saved_config(copy, overrides, settings(*overrides))
    config.data.root = str(ROOT / "data")
    assert train(config, copy)["val/elbo"] >= run.metrics["val/elbo"]
    assert torch.load(copy / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 8


def test_a_checkpoint_of_an_unknown_format_is_refused(tmp_path: Path):
    copy = Path(shutil.copytree(FIRST, tmp_path / "run"))
    checkpoint = torch.load(copy / "checkpoints" / "best.ckpt", weights_only=True)
    torch.save({**checkpoint, "vae_format": 2}, copy / "checkpoints" / "best.ckpt")
    with pytest.raises(UserError, match="has checkpoint format 2, this version reads 1"):
        vae.load_run(copy)
