"""Settings: every config composes and builds; a wrong one gets a line that names its override."""

import itertools
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, settings
from omegaconf import OmegaConf

from vae.runs.errors import UserError
from vae.runs.validation import Builder

MODELS = sorted(path.stem for path in (ROOT / "conf" / "model").glob("*.yaml"))
DATA = sorted(path.stem for path in (ROOT / "conf" / "data").glob("*.yaml"))
EXPERIMENTS = sorted(path.stem for path in (ROOT / "conf" / "experiment").glob("*.yaml"))


def problems(tmp_path: Path, *overrides: str) -> list[str]:
    build = Builder(settings(*overrides))
    for key in ("data", "model", "optimizer", "scheduler"):
        build(key)
    build("logger", save_dir=str(tmp_path))
    build.each("callbacks")
    build("trainer")
    try:
        build.finish(tmp_path)
    except UserError as error:
        return list(error.problems)
    return []


@pytest.mark.parametrize(("model", "data"), itertools.product(MODELS, DATA))
def test_every_combination_composes_and_builds(tmp_path: Path, model: str, data: str):
    assert problems(tmp_path, f"model={model}", f"data={data}") == []


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_composes_and_builds(tmp_path: Path, experiment: str):
    assert problems(tmp_path, f"+experiment={experiment}", "data=mnist") == []


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("model.sigma=0", "model.sigma=0 must be a number greater than 0.0001"),
        ("model.sigma=nan", "model.sigma=nan must be a number"),
        ("model.latent_dim=-1", "model.latent_dim=-1 must be an integer from 1"),
        ("model.latent_dim=2.5", "model.latent_dim=2.5 must be an integer"),
        ("model.latent_dim=true", "model.latent_dim=True must be an integer"),
        ("trainer.max_epochs=abc", "trainer.max_epochs=abc must be an integer from 1"),
        ("data.batch_size=100000", "data.batch_size=100000 must be an integer from 1 to 60000"),
        ("data.batch_size=450", "data.batch_size=450 is more than the 400 images to train on"),
        ("data.val_size=500", "data.val_size=500 leaves none of 500 images to train on"),
        ("data.name=mnst", "data.name=mnst must be mnist | fashion_mnist | kmnist | digits"),
        ("data.name=[mnist]", "data.name=['mnist'] must be a data set's name"),
        (
            "model.encoder.hidden=[10,0]",
            "model.encoder.hidden=[10, 0] must be a list of at most 16 layer widths",
        ),
        (
            "model.encoder.log_sd_range=[2,-7]",
            "model.encoder.log_sd_range=[2, -7] must be [low,high] with low < high",
        ),
        ("model.decoder.output=sigmod", "did you mean sigmoid?"),
        ("trainer.accelerator=gpuu", "did you mean gpu?"),
        ("+trainer.max_epoch=3", "trainer.max_epoch: unknown; did you mean trainer.max_epochs?"),
        (
            "+model.encoder.activatoin=relu",
            "model.encoder.activatoin: unknown; did you mean model.encoder.activation?",
        ),
        ("model._target_=vae.models.VEA", "model._target_=vae.models.VEA"),
        (
            "+callbacks.chain.stepz=3",
            "callbacks.chain.stepz: unknown; did you mean callbacks.chain.steps?",
        ),
        ("optimizer.lr=-1", "optimizer.lr=-1 must be a number greater than 0"),
        ("optimizer.lr='?'", "optimizer.lr=? must be a number"),
    ],
)
def test_one_line_names_the_override(tmp_path: Path, override: str, line: str):
    found = problems(tmp_path, override)
    assert len(found) == 1, found
    assert line in found[0]
    assert "\n" not in found[0]


def test_all_problems_at_once(tmp_path: Path):
    found = problems(
        tmp_path,
        "model.sigma=0",
        "data.batch_size=450",
        "trainer.max_epochs=abc",
        "+optimizer.lrr=1",
    )
    assert sorted(problem.split("=")[0].split(":")[0] for problem in found) == [
        "data.batch_size",
        "model.sigma",
        "optimizer.lrr",
        "trainer.max_epochs",
    ]


def test_a_gpu_that_is_not_there(tmp_path: Path):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    (line,) = problems(tmp_path, "trainer.accelerator=gpu")
    assert line.startswith("trainer.accelerator=gpu")
    assert "cpu" in line


def run(
    *overrides: str, cwd: Path, module: str = "vae.train"
) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", module, *overrides]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120)


def test_the_command_line_tells_in_lines_and_exit_codes(tmp_path: Path):
    ours = run("model.sigma=0", "model.latent_dim=-1", cwd=tmp_path)
    assert ours.returncode == 2
    lines = [line for line in ours.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 2
    assert "Traceback" not in ours.stderr
    assert not list(tmp_path.glob("outputs/*/*"))  # no half-made run folder
    hydras = run("model=deeep", cwd=tmp_path)
    assert hydras.returncode == 1
    assert "deeep" in hydras.stderr
    assert "deep" in hydras.stderr.replace("deeep", "")
    assert "Traceback" not in hydras.stderr


@pytest.mark.parametrize("question", [["--help"], ["--cfg", "job"]])
def test_questions_are_answered_without_heavy_imports(tmp_path: Path, question: list[str]):
    code = f"""
import sys
sys.argv[1:] = {question}
import runpy
try:
    runpy.run_module("vae.train", run_name="__main__")
finally:
    heavy = {{"torch", "lightning", "matplotlib", "tensorboard", "numpy"}} & set(sys.modules)
    assert not heavy, heavy
"""
    answer = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert answer.returncode == 0, answer.stderr
    assert "latent_dim" in answer.stdout
