"""Run folders are opened again: copied, damaged, of an earlier release, or refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import NO_PICTURES, ROOT, ShortRun, settings
from omegaconf import OmegaConf

import vae
from vae.data.datamodule import ImageDataModule
from vae.models.vae import VAE
from vae.runs.errors import UserError
from vae.runs.folder import saved_config
from vae.train import train


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


@pytest.mark.parametrize("name", ["best.ckpt", "last.ckpt"])
def test_a_run_with_a_checkpoint_of_other_networks_is_not_resumed(name: str, tmp_path: Path):
    quick = [*NO_PICTURES, "logger=none", "trainer.max_epochs=1", "trainer.accelerator=cpu"]
    config = settings(*quick)
    train(config, tmp_path / "own")
    train(settings(*quick, "model.latent_dim=3"), tmp_path / "other")
    checkpoint = tmp_path / "own" / "checkpoints" / name
    checkpoint.unlink()  # the two may be one file
    shutil.copy(tmp_path / "other" / "checkpoints" / name, checkpoint)
    with pytest.raises(UserError, match=rf"{name} is of other networks .* must be"):
        train(config, tmp_path / "own")


@pytest.mark.parametrize("content", [b"[model.latent", b"\xff\xfe", b"[" * 5000, b"!!x y"])
def test_damaged_overrides_do_not_keep_a_run_from_being_resumed(content: bytes, tmp_path: Path):
    config = settings(*NO_PICTURES, "trainer.max_epochs=1", "trainer.accelerator=cpu")
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "overrides.yaml").write_bytes(content)
    assert train(config, tmp_path)["train/images"] > 0


def test_settings_survive_the_run_folder(short_run: ShortRun):
    saved = OmegaConf.load(short_run.folder / ".hydra" / "config.yaml")
    assert saved == short_run.config


FIRST = (
    ROOT / "tests" / "fixtures" / "first-release"
)  # one latent, one epoch, as the first release left it


def test_a_run_of_the_first_release_loads_and_resumes(tmp_path: Path, digits: ImageDataModule):
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
