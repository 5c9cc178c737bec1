"""What the README and the Makefile promise, carried out."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

README = (ROOT / "README.md").read_text()


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that looks like a clone whose environment is this one."""
    clone = tmp_path_factory.mktemp("clone")
    for name in (
        "Makefile",
        "pyproject.toml",
        "constraints.txt",
        "conf",
        "vae",
        "tests",
        "README.md",
    ):
        (clone / name).symlink_to(ROOT / name)
    (clone / ".venv").mkdir()
    for path in Path(sys.prefix).iterdir():
        if path.name != "installed":
            (clone / ".venv" / path.name).symlink_to(path)
    (clone / ".venv" / "installed").touch()
    return clone


def make(target: str, cwd: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    command = ["make", target, *arguments]
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300
    )


def test_make_lab_leaves_two_runs(elsewhere: Path):
    done = make("lab", elsewhere, "ARGS=data=digits trainer.max_epochs=1 callbacks.chain.steps=2")
    assert done.returncode == 0, done.stderr
    runs = {path.name.split("-")[-1]: path for path in elsewhere.glob("outputs/*-*-*/*-*-*-*")}
    assert set(runs) == {"baseline", "deep", "compare"}
    page = runs.pop("compare") / "index.html"
    assert str(page.relative_to(elsewhere)) in done.stdout
    assert page.stat().st_size > 100_000
    for run in runs.values():
        assert (run / "metrics.json").exists()
        assert (run / "videos" / "chain.mp4").exists()


def test_make_test_runs_pytest(elsewhere: Path):
    done = make("test", elsewhere, "ARGS=tests/test_elbo.py -k by_hand --numprocesses=0")
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout


def test_make_help_names_every_target_of_the_readme():
    told = make("help", ROOT).stdout
    assert "lab" in told
    for target in set(re.findall(r"(?:^|`)make ([a-z]+)", README, re.MULTILINE)):
        assert re.search(rf"^{target}\s", told, re.MULTILINE), target


def test_every_picture_and_link_of_the_readme_is_there():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert len(links) > 10
    for link in links:
        assert link.startswith("https://arxiv.org/") or (ROOT / link).exists(), link


def test_every_train_command_of_the_readme_composes(tmp_path: Path):
    """Each `python -m vae.train …` line of the README is a set of overrides that Hydra takes."""
    from conftest import settings

    own = README.split("## Build on it")[1].split("\n## ")[
        0
    ]  # names what a reader adds first; its own test runs it
    commands = re.findall(r"python -m vae\.train ([^\n`#]*)", README.replace(own, ""))
    assert len(commands) >= 5
    for command in commands:
        overrides = [
            o
            for o in command.split()
            if o not in ("-m", "--multirun") and not o.startswith("hydra")
        ]
        if not any(o.startswith("resume=") for o in overrides):
            single = [
                re.sub(r",[^=\]]*$", "", o) if "[" not in o else o for o in overrides
            ]  # one job of a sweep
            assert settings(*single).model.latent_dim > 0


def test_what_the_readme_adds_runs_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The files of "Build on it" word for word, its commands, and the commands that open such a run later."""
    section = README.split("## Build on it")[1].split("\n## ")[0]
    for name in ("conf", "tests"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    files = re.findall(r"`([\w./]+)`[^`]*:\n\n```(?:yaml|python)\n(.*?)```", section, re.DOTALL)
    assert len(files) == 5
    for name, text in files:
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)

    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    import vae
    from vae.compare import compare
    from vae.runs.errors import UserError
    from vae.train import train

    commands = re.findall(r"python -m vae\.train ([^\n`]*)\n", section)
    assert len(commands) == 4
    folders = []
    with initialize_config_dir(str(tmp_path / "conf"), version_base="1.3"):
        for number, command in enumerate(commands):
            config = compose("train", command.split())
            folders.append(tmp_path / "outputs" / str(number))
            (folders[-1] / ".hydra").mkdir(parents=True)
            OmegaConf.save(config, folders[-1] / ".hydra" / "config.yaml")
            metrics = train(config, folders[-1])
            assert metrics["train/elbo"] > -200, (
                command
            )  # it has learned: untrained pairs are below −1000
        with pytest.raises(UserError, match=r"mine\.Residual is refused"):
            vae.load_run(folders[0])
        run = vae.load_run(folders[0], allow=("mine",))
        assert type(run.model.encoder).__name__ == "Residual"
        runs = f"runs=[{folders[0]},{folders[1]}]"
        page = compare(compose("compare", [runs, "allow=[mine]", f"out={tmp_path / 'page'}"]))
    assert "Laplace" in page.read_text()
