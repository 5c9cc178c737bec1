"""Every file that a command reads, truncated, emptied, with bits flipped or of another run: it is
read, or refused in lines that name the run folder.

FUZZ=2000 for a long session: that many damaged files in all, each opened by every command.
"""

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, settings
from hydra import compose, initialize_config_dir

import vae
from vae.reports.comparison.selection import open_runs
from vae.reports.evaluation.load import done, load_and_validate
from vae.reports.sweep.summary import summarise
from vae.reports.sweep.table import table
from vae.runs import portable
from vae.runs.errors import RunError, UserError
from vae.runs.files import write_json
from vae.runs.folder import checkpoint_to_resume, saved_config
from vae.train import train
from vae.training.history import History, read_history

INPUTS = int(os.environ.get("FUZZ", "60"))
QUICK = ["trainer.max_epochs=2", "trainer.accelerator=cpu", "callbacks=none", "logger=none"]
MODELS = {"own": ["model.latent_dim=2"], "stranger": ["model=conv", "model.latent_dim=3"]}
FILES = (
    *(".hydra/config.yaml", ".hydra/overrides.yaml", ".hydra/hydra.yaml", "metrics.json"),
    *("history.csv", "evaluation.json", "job.json", "environment.json", "logger.json"),
    *("checkpoints/best.ckpt", "checkpoints/last.ckpt"),
)
TEXTS = (b"null", b"[]", b"{}", b"1e999", b"\xff\xfe", b'{"val/elbo": 1e400}', b"\0" * 100)
VALUES = (b"1" + b"0" * 400, b"NaN", b"-1e308", b"[]", b"{}", b'"x"', b"true", b"null", b"0")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of different networks, with every small file that a run may have."""
    folder = tmp_path_factory.mktemp("runs")
    for name, overrides in MODELS.items():
        config, run = settings(*QUICK, *overrides), folder / name
        metrics = train(config, run)
        write_json(run / "job.json", {"state": "finished", "settings": {"seed": 0}})
        write_json(run / "evaluation.json", {**metrics, "samples/kind": "mean"})
        write_json(run / "logger.json", {"WandbLogger": "x"})
        (run / ".hydra" / "overrides.yaml").write_text("- model.latent_dim=2\n- seed=0\n")
        (run / ".hydra" / "hydra.yaml").write_text("hydra: {runtime: {choices: {model: deep}}}\n")
    return folder


def command(name: str, *overrides: str) -> Any:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose(name, list(overrides))


def damaged(content: bytes, other: bytes, chance: random.Random) -> bytes:
    kind = chance.choice(("cut", "empty", "bits", "other", "text", "value", "zeros"))
    if kind == "cut":
        return content[: chance.randrange(len(content))]
    if kind == "bits":
        flipped = bytearray(content)
        for _ in range(chance.choice((1, 3, 30))):
            flipped[chance.randrange(len(flipped))] ^= 1 << chance.randrange(8)
        return bytes(flipped)
    if kind == "zeros":
        start = chance.randrange(len(content))
        return content[:start] + bytes(min(200, len(content) - start)) + content[start + 200 :]
    if kind == "value" and b": " in content:
        parts = content.split(b": ")
        index = chance.randrange(1, len(parts))
        end = min((i for i in (parts[index].find(c) for c in (b",", b"\n")) if i >= 0), default=0)
        parts[index] = chance.choice(VALUES) + parts[index][end:]
        return b": ".join(parts)
    return {"empty": b"", "other": other}.get(kind, chance.choice(TEXTS))


def test_damaged_files_are_read_or_refused_in_a_line(trained: Path, tmp_path: Path):
    chance = random.Random(0)
    sweep, run = tmp_path / "sweep", tmp_path / "sweep" / "own"
    shutil.copytree(trained, sweep)
    today = settings(*QUICK)
    judge = command("evaluate", f"run={run}", "accelerator=cpu")
    write = command("export", f"run={run}")

    def judged() -> None:
        job = load_and_validate(judge)
        done(run, job.settings)

    def resumed() -> None:
        saved_config(run, [], today)
        checkpoint_to_resume(run)
        History(run).rows = read_rows(run)

    commands: dict[str, Callable[[], Any]] = {
        "load_run": lambda: vae.load_run(run),
        "evaluate": judged,
        "compare": lambda: open_runs([str(run), str(sweep / "stranger")]),
        "summary": lambda: table(summarise(sweep)),
        "export": lambda: portable.load_and_validate(write),
        "resume": resumed,
    }
    refused = dict.fromkeys(commands, 0)
    for number in range(INPUTS):
        name = FILES[number % len(FILES)]
        content = (trained / "own" / name).read_bytes()
        other = (trained / "stranger" / name).read_bytes()
        (run / name).write_bytes(damaged(content, other, chance))
        for called, call in commands.items():
            if called == "summary" and name.startswith("checkpoints"):
                continue  # reads none
            try:
                call()
            except (UserError, RunError) as error:
                refused[called] += 1
                lines = str(error).splitlines()
                assert all(str(run) in line for line in lines), (number, name, called, lines)
            except Exception as error:
                kept = tmp_path / "failing"
                shutil.copy(run / name, kept)
                raise AssertionError(f"input {number}: {name} by {called}, {kept}") from error
        (run / name).write_bytes(content)
        (sweep / "own" / ".lock").unlink(missing_ok=True)
    assert all(refused.values()), refused
    print(f"{INPUTS} damaged files, refused: {refused}")


def read_rows(run: Path) -> list[dict[str, float]]:
    """As a resumed run reads its history."""
    try:
        return read_history(run)
    except ValueError as error:
        raise UserError(str(error)) from error
