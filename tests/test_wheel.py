"""The built wheel, installed in a folder outside the clone."""

import json
import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT
from hydra.core.config_store import ConfigStore

SCRIPTS: dict[str, str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
COMMANDS = ("train", "evaluate", "compare", "summary", "export")


class Installed:
    """A wheel's content in a folder of its own, and its commands started from another one."""

    def __init__(self, folder: Path) -> None:
        build = ["wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", "."]
        self.packages, self.cwd = folder / "packages", folder / "elsewhere"
        self.cwd.mkdir()
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
        subprocess.run([*pip, *build, str(ROOT)], cwd=folder, check=True, capture_output=True)
        (self.wheel,) = folder.glob("*.whl")
        install = ["install", "--quiet", "--no-deps", "--target", str(self.packages)]
        subprocess.run([*pip, *install, str(self.wheel)], check=True, capture_output=True)

    def __call__(self, command: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """`vae-<command>` where there is a script of that name, else `python -m <command>`."""
        script = self.packages / "bin" / command
        start = [str(script)] if script.exists() else ["-m", command]
        environment = {k: v for k, v in os.environ.items() if k != "VAE_DATA"}
        environment |= {"PYTHONPATH": str(self.packages), "PYTHONSAFEPATH": "1"}
        return subprocess.run(
            [sys.executable, *start, *arguments],
            cwd=self.cwd,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    pytest.importorskip("hatchling", reason="builds the wheel: pip install -e '.[dev]'")
    return Installed(tmp_path_factory.mktemp("wheel"))


def test_every_command_has_a_console_script():
    assert {name.removeprefix("vae-") for name in SCRIPTS} == {*COMMANDS}
    for name, target in SCRIPTS.items():
        assert target.split(":")[0] == f"vae.{name.removeprefix('vae-')}"


def test_starting_a_command_imports_neither_torch_nor_lightning():
    """`--help` answers within a second because they are imported when a run starts."""
    code = f"import sys; import {', '.join(f'vae.{c}' for c in COMMANDS)}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    loaded = {*done.stdout.split()}
    assert "hydra" in loaded
    assert not loaded & {"torch", "lightning", "matplotlib", "pandas", "pydantic"}


def test_help_does_not_copy_hydras_schemas_for_each_group(monkeypatch, capsys):
    import vae.train

    copied = []
    once = ConfigStore.__deepcopy__
    monkeypatch.setattr(
        ConfigStore, "__deepcopy__", lambda *a: copied.append(once(*a)) or copied[-1]
    )
    monkeypatch.setattr(sys, "argv", ["vae-train", "--help"])
    with pytest.raises(SystemExit):
        vae.train.cli()
    assert "model: baseline, conv, deep" in capsys.readouterr().out
    assert len(copied) > 10
    assert all(store is ConfigStore.instance() for store in copied)


@pytest.mark.slow
def test_the_wheel_holds_code_configs_page_and_digits(installed: Installed):
    names = {*zipfile.ZipFile(installed.wheel).namelist()}
    code = {str(path.relative_to(ROOT)) for path in (ROOT / "vae").rglob("*.py")}
    configs = {f"vae/{path.relative_to(ROOT)}" for path in (ROOT / "conf").rglob("*.yaml")}
    digits = {str(path.relative_to(ROOT)) for path in (ROOT / "vae/data/digits/raw").iterdir()}
    assert len(digits) == 4
    assert code | configs | digits <= names
    assert {"vae/py.typed", "vae/reports/comparison/page.html"} <= names
    assert not any(name.startswith(("tests/", "conf/", "outputs/")) for name in names)


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_help_and_configs_of_the_installed_commands(installed: Installed, command: str):
    script, module = installed(f"vae-{command}", "--help"), installed(f"vae.{command}", "--help")
    assert script.returncode == module.returncode == 0, script.stderr + module.stderr
    assert script.stdout == module.stdout
    config = installed(f"vae-{command}", "--cfg", "job")
    assert config.returncode == 0, config.stderr
    expected = {"train": "latent_dim: 32", "summary": "sweep:", "compare": "runs:"}
    assert expected.get(command, "run:") in config.stdout


@pytest.mark.slow
def test_train_evaluate_and_compare_outside_the_clone(installed: Installed):
    """Two short trainings with the packaged digits, one of them with a config of one's own."""
    own = installed.cwd / "mine" / "model"
    own.mkdir(parents=True)
    (own / "tiny.yaml").write_text("defaults: [baseline]\nname: tiny\nlatent_dim: 3\n")
    short = ["data=digits", "trainer.max_epochs=1", "trainer.accelerator=cpu", "callbacks=none"]
    for model in ("baseline", "tiny"):
        arguments = [f"model={model}", f"hydra.run.dir={model}", "--config-dir=mine"]
        done = installed("vae-train", *short, *arguments)
        assert done.returncode == 0, done.stderr
        metrics = json.loads((installed.cwd / model / "metrics.json").read_text())
        assert -3000 < metrics["test/elbo"] < 0
    assert (installed.cwd / "data" / "digits" / "raw").is_dir()
    done = installed("vae-compare", "runs=[baseline,tiny]", "out=page")
    assert done.returncode == 0, done.stderr
    assert "tiny" in (installed.cwd / "page" / "index.html").read_text()
