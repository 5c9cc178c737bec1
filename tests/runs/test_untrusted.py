"""Run folders of strangers: nothing in them runs, is resolved, or leads out; what they ask for is
bounded."""

import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import composed, settings
from omegaconf import OmegaConf

import vae
from vae.compare import compare
from vae.evaluate import evaluate
from vae.export import export
from vae.runs.checkpoints import LAST, read_checkpoint
from vae.runs.errors import RunError, UserError
from vae.runs.files import SETTINGS
from vae.runs.folder import saved_config
from vae.runs.printable import csv_cell, printable
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


def each_command(sweep: Path, out: Path) -> dict[str, Callable[[], Any]]:
    """Everything that opens the run folder `stranger`, each as a call."""
    run = sweep / "stranger"

    def resume() -> None:
        train(saved_config(run, [], settings(*QUICK, *SMALL)), run)

    def summed_up() -> None:
        config = composed("summary")
        config.sweep = str(sweep)
        summary(config)

    return {
        "load_run": lambda: vae.load_run(run),
        "evaluate": lambda: evaluate(
            composed("evaluate", f"run={run}", "accelerator=cpu", *JUDGED)
        ),
        "compare": lambda: compare(
            composed("compare", f"runs=[{sweep / 'own'},{run}]", f"out={out / 'page'}")
        ),
        "summary": summed_up,
        "export": lambda: export(composed("export", f"run={run}", f"out={out / 'export'}")),
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
    # its own command again, whose groups have been resolved by now
    again = saved_config(sweep / "stranger", ["data=digits", "model=deep"], today)
    assert again.data.root == today.data.root


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
    assert refused == {*CHEAP}
    assert everything_below(outside) == before


def test_a_summary_reads_no_settings_by_a_link(sweep: Path, tmp_path: Path):
    secret = tmp_path / "secret.yaml"
    secret.write_text(f"model: {{name: {SECRET}, latent_dim: 3}}")
    (sweep / "stranger" / SETTINGS).unlink()
    (sweep / "stranger" / SETTINGS).symlink_to(secret)
    said = try_all(sweep, tmp_path / "out")
    assert "leads out of the run folder" in said["summary"]
    assert not (sweep / "summary.csv").exists()


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
    for content in (
        Payload(payload),
        {"vae_format": 1, "state_dict": {"model.x": Payload(payload)}},
    ):
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
        {
            "_target_": "lightning.pytorch.callbacks.LambdaCallback",
            "on_train_start": [{"_target_": "os.system", "command": "touch executed"}],
        },
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
    assert said["resume"]


def rewrite(path: Path, change: Callable[[bytes], bytes], compression: int = zipfile.ZIP_STORED):
    """A checkpoint with its pickle changed."""
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in entries.items():
            archive.writestr(name, change(data) if name.endswith("data.pkl") else data)


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as refused:
        read_checkpoint(path)
    assert str(path) in str(refused.value)
    return str(refused.value)


def test_a_checkpoint_is_no_larger_than_its_file(trained: Path, tmp_path: Path):
    """Zeros in a compressed zip; one number with a stride of 0 for a hundred gigabytes; a list
    that is copied a hundred thousand times."""
    path = tmp_path / "last.ckpt"
    shutil.copy(trained / LAST, path)
    rewrite(path, lambda data: data, zipfile.ZIP_DEFLATED)
    assert "is compressed" in refusal(path)

    state = {"model.x": torch.zeros(1).expand(160_000, 160_000)}
    torch.save({"vae_format": 1, "state_dict": state}, path)
    assert path.stat().st_size < 2000
    assert "model.x is larger than what the file holds" in refusal(path)

    whole = torch.load(trained / LAST, weights_only=True)
    whole["resume"]["train_sums"]["kl"] = state["model.x"]
    torch.save(whole, path)
    assert "kl is larger than what the file holds" in refusal(path)

    one = torch.zeros(1000)
    torch.save({"vae_format": 1, "state_dict": {str(i): one for i in range(100)}}, path)
    assert "its weights are larger than the file" in refusal(path)

    pairs = b"".join(b"(X\x03\x00\x00\x00%03dNt" % i for i in range(1000))
    copies = b"ccollections\nOrderedDict\n(](" + pairs + b"etR"
    torch.save({"vae_format": 1, "state_dict": {}}, path)
    rewrite(path, lambda data: b"\x80\x02" + copies + b".")
    assert "damaged or holds more" in refusal(path)


def test_settings_of_any_size_are_refused_before_they_are_built(sweep: Path, tmp_path: Path):
    run = sweep / "stranger"
    text = (run / SETTINGS).read_text()
    for key, value in {
        "model__latent_dim": 1_000_000,
        "model__image_shape": [1, 40_000, 40_000],
        "model__encoder__hidden": [8192] * 200,
    }.items():
        change(run, **{key: value})
        said = try_all(sweep, tmp_path / "out", ("load_run", "resume"))
        assert all("must be" in problem for problem in said.values()), said
        (run / SETTINGS).write_text(text)
    change(run, model__latent_dim=4000, model__encoder__latent_dim=4000)
    assert "do not fit" in try_all(sweep, tmp_path / "out", ("load_run",))["load_run"]


BOMBS = {
    "aliases": "a: &a [x, x]\n"
    + "".join(
        f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(9)
    ),
    "depth": "model: " + "[" * 10_000 + "]" * 10_000,
    "size": "model: {name: " + "x" * 2_000_000 + "}",
    "object": "model: !!python/object/apply:os.system ['touch executed']",
    "nothing": "",
    "binary": "\0\1\2",
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_yaml_bombs(bomb: str, sweep: Path, tmp_path: Path, payload: Path):
    (sweep / "stranger" / SETTINGS).write_text(BOMBS[bomb])
    said = try_all(sweep, tmp_path / "out")
    assert all(str(sweep / "stranger") in problem for problem in said.values()), said
    assert not payload.exists()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("data__root", "/proc/stranger"),
        ("callbacks__x", {"_target_": "lightning.pytorch.callbacks.ModelCheckpoint",
                          "dirpath": "../../elsewhere"}),
        ("callbacks__x", {"_target_": "lightning.pytorch.callbacks.ModelCheckpoint",
                          "dirpath": "/elsewhere"}),
        ("logger__tensorboard__version", "../elsewhere"),
    ],
)  # fmt: skip
def test_a_resumed_run_writes_nowhere_else(key: str, value: Any, sweep: Path, tmp_path: Path):
    change(sweep / "stranger", **{key: value})
    before = {path for path in tmp_path.rglob("*") if sweep / "stranger" not in path.parents}
    said = try_all(sweep, tmp_path / "out", ("resume",))["resume"]
    assert key == "data__root" or "leads out of the run folder" in said
    after = {path for path in tmp_path.rglob("*") if sweep / "stranger" not in path.parents}
    assert after == before


NAMES = {
    "markup": "<script>alert(1)</script><img src=x onerror=alert(1)>",
    "escape": "\x1b]0;title\x07\x1b[31mred",
    "bidi": "abc\u202egnp.exe",
    "path": "../../../elsewhere",
    "formula": "=HYPERLINK(1)",
    "mathtext": "$\\frac{",
    "long": "x" * 100_000,
}


def check_names(name: str, sweep: Path, tmp_path: Path, capfd: Any, commands: tuple[str, ...]):
    text = NAMES[name]
    change(sweep / "stranger", model__name=text)
    overrides = sweep / "stranger" / ".hydra" / "overrides.yaml"
    overrides.write_text(OmegaConf.to_yaml(OmegaConf.create([f"model.name={text}"])))
    said = try_all(sweep, tmp_path / "out", commands)
    assert not any(said.values()), said
    shown = capfd.readouterr()
    written = [p for p in tmp_path.rglob("*") if p.suffix in (".html", ".csv", ".json")]
    texts = [p for p in written if p.parent != sweep / "stranger"]
    pages = "".join(p.read_text() for p in texts if p.suffix == ".html")
    for harmful in ("\x1b", "\u202e"):
        assert harmful not in shown.out + shown.err + "".join(p.read_text() for p in texts)
    assert "<script>alert" not in pages
    assert "<img src=x" not in pages
    assert "x" * 20_000 not in shown.out + shown.err
    assert not any(cell.startswith("=") for p in sweep.glob("*.csv") for line in
                   p.read_text().splitlines() for cell in line.split(","))  # fmt: skip
    assert not (tmp_path.parent / "elsewhere").exists()


@pytest.mark.parametrize("name", NAMES)
def test_names_are_shown_harmlessly(name: str, sweep: Path, tmp_path: Path, capfd: Any):
    check_names(name, sweep, tmp_path, capfd, CHEAP)


def test_text_without_effects():
    assert printable("a\x1b[31m\u202eb\nc") == "a\\x1b[31m\\u202eb\\nc"
    assert [csv_cell(c) for c in ("=1+1", " +1", "@x", "-1", "a", -1.0)] == [
        *("'=1+1", "' +1", "'@x", "'-1", "a"), -1.0,
    ]  # fmt: skip
