"""Settings: every config composes and builds; a wrong one gets a line that names its override."""

import itertools
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml
from annotated_types import Ge, Gt, Le, Lt
from conftest import ROOT, settings
from omegaconf import OmegaConf, open_dict

from vae.runs.describe import describe
from vae.runs.errors import UserError
from vae.runs.settings import ExportSettings, settings_problems
from vae.runs.signatures import argument_problems, signature_of
from vae.runs.validation import Builder
from vae.train import GROUP_NONE, train
from vae.training.build import build_run

MODELS = sorted(path.stem for path in (ROOT / "conf" / "model").glob("*.yaml"))
DATA = sorted(path.stem for path in (ROOT / "conf" / "data").glob("*.yaml"))
EXPERIMENTS = sorted(path.stem for path in (ROOT / "conf" / "experiment").glob("*.yaml"))


def problems(tmp_path: Path, *overrides: str) -> list[str]:
    """What a run with these overrides would be refused for before it begins."""
    try:
        build_run(settings(*overrides), tmp_path)
    except UserError as error:
        return list(error.problems)
    return []


PAIRS = [  # the study's models differ in width and depth alone
    pytest.param(model, data, marks=pytest.mark.slow)
    if model.startswith("mlp_") and data != "mnist"
    else (model, data)
    for model, data in itertools.product(MODELS, DATA)
]


@pytest.mark.parametrize(("model", "data"), PAIRS)
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
        ("trainer.max_epochs=abc", "trainer.max_epochs=abc must be an integer from -1"),
        ("data.batch_size=100000", "data.batch_size=100000 is more than the 400 images"),
        ("data.batch_size=450", "data.batch_size=450 is more than the 400 images to train on"),
        ("data.val_size=500", "data.val_size=500 leaves none of 500 images"),
        ("data.name=mnst", "data.name=mnst must be mnist | fashion_mnist | kmnist | digits"),
        ("data.name=[mnist]", "data.name=['mnist'] must be text"),
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


@pytest.mark.parametrize(
    "overrides",
    [
        ["optimizer=adamw", "optimizer.weight_decay=0.1"],
        ["optimizer=lbfgs"],
        ["scheduler=null"],
        ["scheduler=onecycle"],
        ["scheduler=plateau", "scheduler.monitor=val/elbo", "scheduler.frequency=2"],
        ["scheduler=warmup_cosine", "scheduler.interval=step", "scheduler.warmup_steps=7"],
        ["trainer.max_epochs=-1", "trainer.max_steps=7"],
        ["trainer.num_sanity_val_steps=2", "trainer.enable_progress_bar=false"],
        [
            "trainer.limit_train_batches=0.1",
            "trainer.gradient_clip_val=1",
            "trainer.profiler=simple",
        ],
        ["trainer.precision=64-true"],
        ["+callbacks.stop._target_=lightning.pytorch.callbacks.EarlyStopping",
         "+callbacks.stop.monitor=val/elbo"],
        ["callbacks.chain=null", "logger=null"],
    ],
)  # fmt: skip
def test_what_lightning_and_torch_allow_is_allowed(overrides: list[str]):
    config = settings(*(GROUP_NONE.get(override, override) for override in overrides))
    assert Builder(config).problems == []


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("scheduler.interval=steps", "scheduler.interval=steps must be epoch | step; did you mean"),
        ("+scheduler.frequency=0", "scheduler.frequency=0 must be an integer from 1"),
        ("+scheduler.intervall=step", "scheduler.intervall: unknown"),
        ("scheduler.T_max=-1", "scheduler.T_max=-1 must be an integer from 1"),
        ("scheduler.T_max=automatic", "scheduler.T_max=automatic must be an integer from 1"),
        ("optimizer.betas=[0.9]", "optimizer.betas=[0.9] must be two numbers from 0"),
        ("optimizer.fused=maybe", "optimizer.fused=maybe must be true | false"),
        ("optimizer._target_=vae.models.VAE", "optimizer._target_=vae.models.VAE must be a Opt"),
        ("trainer.precision=17", "trainer.precision=17 must be"),
        ("trainer.limit_val_batches=1.5", "trainer.limit_val_batches=1.5 must be a number of"),
        ("trainer.accumulate_grad_batches=0", "trainer.accumulate_grad_batches=0 must be"),
        ("+trainer.default_root_dir=x", "trainer.default_root_dir: hydra.run.dir names"),
        ("+trainer.plugins=x", "trainer.plugins: the project passes a plugin"),
        (
            "+logger.tensorboard.save_dir=x",
            "logger.tensorboard.save_dir: loggers write into the run folder",
        ),
        ("+data.seed=3", "data.seed: the seed of the run is seed=N"),
        ("seed=-1", "seed=-1 must be an integer from 0"),
        ("seed='7'", "seed='7' must be an integer from 0"),
        ("+sede=1", "sede: unknown; did you mean seed?"),
        ("threads=0", "threads=0 must be an integer from 1 to 1024, or null"),
        ("learning.compile=yes_please", "learning.compile=yes_please must be true | false"),
        ("model.encoder=5", "model.encoder=5 needs a _target_"),
        ("model=null", "model: is missing"),
        ("~model.latent_dim", "model.latent_dim: is missing"),
        ("model.decoder.latent_dim=7", "model.decoder.latent_dim=7 must be model.latent_dim=32"),
    ],
)
def test_the_builder_names_what_is_wrong(override: str, line: str):
    config = settings()
    key, _, value = override.lstrip("+~").partition("=")
    if override.startswith("~"):  # references to it would fail before
        OmegaConf.update(config, "model.encoder.latent_dim", 32, merge=False)
        OmegaConf.update(config, "model.decoder.latent_dim", 32, merge=False)
        with open_dict(config):
            del config.model["latent_dim"]
    else:
        with open_dict(config):
            OmegaConf.update(config, key, yaml.safe_load(value), merge=False)
    try:
        found = Builder(config).problems
    except UserError as error:
        found = list(error.problems)
    assert len(found) == 1, found
    assert found[0].startswith(line)


def test_a_missing_setting_is_told_once():
    config = settings()
    config.seed = None
    with pytest.raises(UserError) as refused:
        Builder(config).require("seed", "model")
    assert [*refused.value.problems] == ["seed=None must be an integer from 0 to 4294967295"]


def test_what_another_class_does_not_know_is_dropped_by_an_override():
    """The settings that come with optimizer=adam, and the class that was asked for."""
    other = "optimizer._target_=torch.optim.Rprop"
    assert Builder(settings(other)).problems == [
        f"optimizer.{name}: unknown to torch.optim.Rprop; leave it out, by ~optimizer.{name} "
        "where a config has it"
        for name in ("weight_decay", "fused")
    ]
    assert Builder(settings(other, "~optimizer.fused", "~optimizer.weight_decay")).problems == []


def test_arguments_of_a_base_class_are_known_through_kwargs():
    class Base:
        def __init__(self, width: Annotated[int, Ge(1)], depth: int = 2) -> None: ...

    class Mine(Base):
        def __init__(self, extra: float = 1.0, **kwargs: Any) -> None: ...

    signature = signature_of(Mine)
    found = [*argument_problems("mine.", {"width": 0, "dept": 3, "extra": "x"}, signature)]
    assert found == [
        "mine.width=0 must be an integer at least 1",
        "mine.dept: unknown; did you mean mine.depth?",
        "mine.extra=x must be a number",
    ]


def test_words_for_types():
    assert describe(Annotated[int, Ge(1), Le(9)] | None) == "an integer from 1 to 9, or null"
    assert describe(Literal["a", "b"] | bool) == "a | b | true | false"
    assert describe(list[Annotated[int, Ge(0)]]) == "a list of integers at least 0"
    assert describe(Annotated[float, Gt(0), Lt(1)]) == "a number greater than 0 and less than 1"


def test_commands_settings_are_checked_by_their_dataclasses():
    right = {"run": "a", "out": None, "format": "onnx", "tolerance": 1e-5, "allow": []}
    assert settings_problems(right, ExportSettings) == []
    wrong = {"run": "", "format": "onx", "tolerance": 2, "allow": "mine", "otu": 3}
    assert settings_problems(wrong, ExportSettings) == [
        "run='' must be a run folder, such as outputs/2030-01-31/12-00-00-deep",
        "format=onx must be torch | onnx; did you mean onnx?",
        "tolerance=2 must be a number greater than 0 and less than 1",
        "allow=mine must be a list of modules such as [mine.networks]",
        "otu: unknown; did you mean out?",
        "out: is missing",
    ]


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("model.latent_dim=0", "model.latent_dim=0 must be an integer from 1"),
        ("model.sigma=-1", "model.sigma=-1 must be"),
        ("model.depth=-1", "model.depth=-1 must be an integer from 0"),
        ("model.width=0", "model.width=0 must be an integer from 1"),
    ],
)
def test_a_ladder_names_the_setting_that_was_given(override: str, line: str, tmp_path: Path):
    """model=mlp hands its settings on to encoder and decoder, which are not what was overridden."""
    with pytest.raises(UserError) as refused:
        train(settings("model=mlp", override), tmp_path)
    assert [p.startswith(line) for p in refused.value.problems] == [True], refused.value.problems
