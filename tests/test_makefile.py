"""What the Makefile promises, carried out in a folder that looks like a clone."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

CLONED = ("Makefile", "pyproject.toml", "constraints.txt", "conf", "vae", "tests", "README.md")


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files of a clone, whose environment is this one."""
    folder = tmp_path_factory.mktemp("clone")
    for name in CLONED:
        (folder / name).symlink_to(ROOT / name)
    (folder / ".venv").mkdir()
    for path in Path(sys.prefix).iterdir():
        if path.name != "installed":
            (folder / ".venv" / path.name).symlink_to(path)
    (folder / ".venv" / "installed").touch()
    return folder


def make(target: str, cwd: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run `make` as from a shell: within another make it would name the folder it enters."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    command = ["make", *filter(None, [target]), *arguments]
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=600
    )


@pytest.mark.slow
def test_lab_with_two_seeds_leaves_four_judged_runs_and_one_page(clone: Path):
    short = "ARGS=data=digits trainer.max_epochs=1 trainer.accelerator=cpu callbacks=none"
    quick = "EVALUATE=iwae.images=0 chain.chains=0 samples.n=100 gap.images=0 ppc.images=0"
    done = make("lab", clone, "SEEDS=2", short, quick)
    assert done.returncode == 0, done.stderr
    (page,) = clone.glob("outputs/*/*-compare/index.html")
    assert str(page.relative_to(clone)) in done.stdout
    assert page.stat().st_size > 100_000
    runs = [path.parent for path in clone.glob("outputs/*/*-lab/*/metrics.json")]
    chosen = {tuple(re.findall(r"(?:model|seed)=(\w+)", run.name)) for run in runs}
    assert chosen == {(model, seed) for model in ("baseline", "deep") for seed in ("0", "1")}
    for run in runs:
        assert "samples/fid" in (run / "evaluation.json").read_text()


@pytest.mark.slow
def test_study_started_again_skips_what_is_done_and_ends_with_the_same_metrics(clone: Path):
    short = "ARGS=data=digits trainer.max_epochs=1 trainer.accelerator=cpu callbacks=none seed=0,1 "
    short += "model=baseline,mlp_1x64"
    quick = "JUDGE=iwae.images=0 chain.chains=0 samples.n=0 gap.images=0 ppc.images=0"
    first = make("study", clone, "STUDY=complexity", short, quick)
    assert first.returncode == 0, first.stderr
    out = clone / "outputs" / "study"
    content = json.loads((out / "study.json").read_text())
    assert [point["name"] for point in content["points"]] == ["linear", "1 × 64"]
    assert "outputs/study/study.html" in first.stdout

    # cut off: one run is gone, another was never judged
    runs = sorted((out / "complexity").glob("*/metrics.json"))
    assert len(runs) == 4
    shutil.rmtree(runs[0].parent)
    (runs[1].parent / "evaluation.json").unlink()
    again = make("study", clone, "STUDY=complexity", short, quick)
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("done before") == 2
    assert json.loads((out / "study.json").read_text()) == content


@pytest.mark.slow
def test_lab_stops_where_a_training_fails(clone: Path):
    done = make("lab", clone, "ARGS=model.sigma=-1 data=digits")
    assert done.returncode != 0
    assert "model.sigma" in done.stderr
    assert "compare" not in done.stdout


@pytest.mark.slow
def test_make_test_leaves_out_the_slow_ones_and_takes_arguments(clone: Path):
    arguments = "ARGS=tests/models/test_elbo.py tests/test_wheel.py --collect-only -n0"
    done = make("test", clone, arguments)
    assert done.returncode == 0, done.stdout
    assert "test_every_command_has_a_console_script" in done.stdout
    assert "test_help_and_configs_of_the_installed_commands" not in done.stdout
    everything = make("test-all", clone, arguments).stdout
    assert "test_help_and_configs_of_the_installed_commands" in everything


def test_help_is_the_default_and_names_every_target():
    text = (ROOT / "Makefile").read_text()
    targets = {*re.findall(r"^([a-z-]+):", text, re.MULTILINE)}
    done = make("", ROOT)
    shown = {line.split()[0] for line in done.stdout.splitlines()}
    assert shown == targets
    (phony,) = re.findall(r"^\.PHONY: ((?:.*\\\n)*.*)$", text, re.MULTILINE)
    assert {*phony.replace("\\", " ").split()} == targets
