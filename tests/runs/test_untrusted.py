"""Run folders of strangers: nothing in them runs, is resolved, or leads out; what they ask for is
bounded."""

import io
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, settings
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

import vae
from vae.compare import compare
from vae.evaluate import evaluate
from vae.export import export
from vae.runs.errors import RunError, UserError
from vae.runs.folder import LAST, SETTINGS, read_checkpoint, saved_config
from vae.runs.printable import csv_cell, file_name, printable
from vae.summary import summary
from vae.train import train

SECRET = "stranger-must-not-see-this"
QUICK = ["trainer.max_epochs=2", "trainer.accelerator=cpu", "callbacks=none", "model.latent_dim=2"]
SMALL = ["model=deep", "model.encoder.hidden=[8]", "model.decoder.hidden=[8]"]
JUDGED = ["iwae.images=0", "gap.images=0", "ppc.images=0", "chain.chains=0", "samples.n=0"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    train(settings(*QUICK, *SMALL), folder)
    return folder


@pytest.fixture
def sweep(trained: Path, tmp_path: Path) -> Path:
    """A folder of two runs; the second of them, `stranger`, is for a test to change."""
    for name in ("own", "stranger"):
        shutil.copytree(trained, tmp_path / "sweep" / name)
    return tmp_path / "sweep"


def change(run: Path, **changed: Any) -> None:
    """Other settings; a key with __ for a dot, GONE for one that is taken away."""
    config = OmegaConf.load(run / SETTINGS)
    for key, value in changed.items():
        OmegaConf.update(config, key.replace("__", "."), value, merge=False, force_add=True)
    (run / SETTINGS).write_text(OmegaConf.to_yaml(config))


def command(name: str, *overrides: str) -> Any:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose(name, list(overrides))


def each_command(sweep: Path, out: Path) -> dict[str, Callable[[], Any]]:
    """Everything that opens the run folder `stranger`, each as a call."""
    run = sweep / "stranger"

    def resume() -> None:
        train(saved_config(run, [], settings(*QUICK, *SMALL)), run)

    return {
        "load_run": lambda: vae.load_run(run),
        "evaluate": lambda: evaluate(
            command("evaluate", f"run={run}", "accelerator=cpu", *JUDGED)
        ),
        "compare": lambda: compare(
            command("compare", f"runs=[{sweep / 'own'},{run}]", f"out={out / 'page'}")
        ),
        "summary": lambda: summary(command("summary", f"sweep={sweep}")),
        "export": lambda: export(command("export", f"run={run}", f"out={out / 'export'}")),
        "resume": resume,
    }


CHEAP = ("load_run", "summary", "resume")  # the others open a run by load_run, too
ALL = ("load_run", "evaluate", "compare", "summary", "export", "resume")


def try_all(sweep: Path, out: Path, names: tuple[str, ...] = CHEAP) -> dict[str, str]:
    """What each command said: "" where it did its work. Any error but the project's own fails."""
    said = {}
    commands = each_command(sweep, out)
    for name in names:
        try:
            commands[name]()
            said[name] = ""
        except (UserError, RunError) as error:
            said[name] = str(error)
    return said


def everything_below(*folders: Path) -> bytes:
    return b"".join(
        str(path).encode() + (path.read_bytes() if path.is_file() else b"")
        for folder in folders
        for path in folder.rglob("*")
    )


@pytest.fixture
def payload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that a stranger's code would make."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path / "executed"


INTERPOLATIONS = ("${oc.env:SECRET_TOKEN}", "a ${tell:} b", "$${oc.env:SECRET_TOKEN}")


@pytest.mark.parametrize(
    ("commands", "interpolations"),
    [(CHEAP, INTERPOLATIONS), pytest.param(ALL, INTERPOLATIONS[:1], marks=pytest.mark.slow)],
    ids=["cheap", "all"],
)
def test_no_resolver_is_called(
    commands: Any, interpolations: Any, sweep: Path, tmp_path: Path, monkeypatch: Any, capfd: Any
):
    monkeypatch.setenv("SECRET_TOKEN", SECRET)
    OmegaConf.register_new_resolver("tell", lambda: SECRET, replace=True)
    for interpolation in interpolations:
        places = ("model__name", "data__name", "callbacks__x", "seed")
        for place in places if commands == CHEAP else places[:1]:
            change(sweep / "stranger", **{place: interpolation})
        try_all(sweep, tmp_path / "out", commands)
    shown = capfd.readouterr()
    assert SECRET not in shown.out + shown.err
    assert SECRET.encode() not in everything_below(sweep, tmp_path / "out")


def test_runs_are_written_resolved(trained: Path):
    text = (trained / SETTINGS).read_text()
    assert "${" not in text
    assert "latent_dim: 2" in text


def test_a_run_that_was_killed_before_it_wrote_its_settings_takes_todays(
    sweep: Path, monkeypatch: pytest.MonkeyPatch
):
    change(sweep / "stranger", data__root="${oc.env:VAE_DATA,data}")
    today = settings(*QUICK, *SMALL)
    assert saved_config(sweep / "stranger", [], today).data.root == today.data.root


LINKS = ("checkpoints/best.ckpt", ".hydra/config.yaml", "metrics.json", "history.csv")


@pytest.mark.parametrize("name", [*LINKS, "evaluation.json", "checkpoints", ".hydra", "export"])
def test_no_link_leads_out_of_the_folder(name: str, sweep: Path, tmp_path: Path, capfd: Any):
    outside = tmp_path / "outside"
    path = sweep / "stranger" / name
    if path.exists():
        shutil.move(path, outside)
    else:
        outside.mkdir()
    before = everything_below(outside)
    path.symlink_to(outside)
    said = try_all(sweep, tmp_path / "out")
    refused = {name for name, problem in said.items() if "leads out of the run folder" in problem}
    assert refused == {"load_run", "resume"}
    assert everything_below(outside) == before


def test_a_summary_reads_no_settings_by_a_link(sweep: Path, tmp_path: Path):
    secret = tmp_path / "secret.yaml"
    secret.write_text(f"model: {{name: {SECRET}, latent_dim: 3}}")
    (sweep / "stranger" / SETTINGS).unlink()
    (sweep / "stranger" / SETTINGS).symlink_to(secret)
    try_all(sweep, tmp_path / "out")
    assert SECRET.encode() not in everything_below(sweep / "own", tmp_path / "out")
    for name in ("summary.csv", "summary.json", "groups.csv"):
        assert not (sweep / name).exists() or SECRET not in (sweep / name).read_text()


@pytest.mark.parametrize("name", ["metrics.json", ".hydra/config.yaml", "history.csv", "job.json"])
def test_a_pipe_in_place_of_a_file_does_not_hang(name: str, sweep: Path, tmp_path: Path):
    path = sweep / "stranger" / name
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    said = try_all(sweep, tmp_path / "out")
    assert set(said) == {*CHEAP}


class Payload:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("name", ["best.ckpt", "last.ckpt"])
def test_no_pickle_runs(name: str, sweep: Path, tmp_path: Path, payload: Path):
    for content in (Payload(payload), {"vae_format": 1, "state_dict": {"model.x": Payload(payload)}}):
        torch.save(content, sweep / "stranger" / "checkpoints" / name)
        said = try_all(sweep, tmp_path / "out")
        assert any("damaged or holds more than tensors" in problem for problem in said.values())
        (sweep / "stranger" / "checkpoints" / name).write_bytes(pickle.dumps(content))
        try_all(sweep, tmp_path / "out")
    assert not payload.exists()


EVIL = "import pathlib\npathlib.Path('executed').touch()\n"


@pytest.mark.parametrize(
    "node",
    [
        {"_target_": "os.system", "command": "touch executed"},
        {"_target_": "subprocess.Popen", "args": "touch executed", "shell": True},
        {"_target_": "builtins.exec", "_args_": [EVIL]},
        {"_target_": "sweep.stranger.evil.Callback"},
        {"_target_": "stranger_evil.Callback"},
        {"_target_": "vae.runs.folder.subprocess.run", "args": "touch executed", "shell": True},
        {"_target_": "torch.utils.cpp_extension.subprocess.run", "args": "touch executed"},
        {"_target_": "lightning.pytorch.callbacks.LambdaCallback", "on_train_start": [
            {"_target_": "os.system", "command": "touch executed"}]},
    ],
    ids=lambda node: node["_target_"],
)
@pytest.mark.parametrize("place", ["model", "data", "callbacks.x"])
def test_no_setting_runs_code(
    place: str, node: Any, sweep: Path, tmp_path: Path, payload: Path, monkeypatch: Any
):
    run = sweep / "stranger"
    (run / "evil.py").write_text(EVIL)
    (run / "stranger_evil.py").write_text(EVIL)
    monkeypatch.syspath_prepend(str(run))  # as for a command that is started in the folder
    change(run, **{place.replace(".", "__"): node})
    said = try_all(sweep, tmp_path / "out")
    assert not payload.exists()
    assert "_target_" in said["resume"]
    assert "refused" in said["resume"] or "does not exist" in said["resume"]
