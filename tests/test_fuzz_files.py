"""Every file of a run folder, truncated, bit-flipped, emptied, filled with garbage or of another
run, and every command that reads it: it does its work, or says in single lines what is wrong.

FUZZ=2000 for a long session: that many inputs to files alone.
"""

import json
import os
import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import composed, settings
from omegaconf import OmegaConf

import vae
from vae.compare import compare
from vae.evaluate import evaluate
from vae.export import export
from vae.jobs import run_job
from vae.runs.errors import RunError, UserError
from vae.runs.folder import saved_config
from vae.summary import summary
from vae.train import train

INPUTS = int(os.environ.get("FUZZ", "80"))
SHORT = ["trainer.max_epochs=1", "trainer.accelerator=cpu", "callbacks=none", "model.latent_dim=2"]
JUDGED = [
    *("accelerator=cpu", "iwae.images=2", "iwae.K=[1,2]", "gap.images=0", "ppc.images=0"),
    *("chain.chains=2", "chain.steps=100", "samples.n=0"),
]
GARBAGE = (b"null", b"[]", b"{}", b'"x"', b"1e999", b"\xff\xfe", b"a: &b [*b]", b"a: !!python/x 1")
VALUES: tuple[Any, ...] = (None, True, -1, 1e308, "", "\x1b[2J", "=1+1", [], [[]], {}, {"a": {}})


def today() -> Any:
    config = settings(*SHORT)
    OmegaConf.update(config, "threads", 1)
    return config


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs with all the files that a command reads."""
    folder = tmp_path_factory.mktemp("fuzz") / "sweep"
    for name, more in (("own", []), ("other", ["model=deep", "model.encoder.hidden=[8]"])):
        run = folder / name
        (run / ".hydra").mkdir(parents=True)
        config = settings(*SHORT, *more, *(["model.decoder.hidden=[8]"] if more else []))
        OmegaConf.save(config, run / ".hydra" / "config.yaml")
        (run / ".hydra" / "overrides.yaml").write_text(f"[model.latent_dim=2, model.name={name}]")
        assert run_job(train, config, run) is not None
        evaluate(composed("evaluate", f"run={run}", *JUDGED))
    return folder


def mutated(data: bytes, other: bytes, chance: random.Random) -> tuple[str, bytes]:
    """A file's content, changed, and how."""
    how = chance.choice(("truncated", "flipped", "emptied", "other", "garbage", "value"))
    if how == "truncated":
        return how, data[: chance.randrange(len(data) + 1)]
    if how == "flipped":
        flipped = bytearray(data)
        for _ in range(chance.choice((1, 3, 30))):
            flipped[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        return how, bytes(flipped)
    if how == "value":
        try:
            content = json.loads(data)
        except ValueError:
            return how, data.replace(b"0", chance.choice((b"x", b"-", b"\n", b",", b"9" * 400)))
        content[chance.choice([*content, "new"])] = chance.choice(VALUES)
        return how, json.dumps(content).encode()
    return how, {"emptied": b"", "other": other}.get(how, chance.choice(GARBAGE))


def commands(sweep: Path, out: Path) -> dict[str, Callable[[], Any]]:
    run = sweep / "own"
    return {
        "load_run": lambda: vae.load_run(run),
        "summary": lambda: summary(composed("summary", f"sweep={sweep}")),
        "resume": lambda: train(saved_config(run, [], today()), run),
        "job": lambda: run_job(train, today(), run),
        "evaluate": lambda: evaluate(composed("evaluate", f"run={run}", *JUDGED)),
        "compare": lambda: compare(
            composed("compare", f"runs=[{run},{sweep / 'other'}]", f"out={out}")
        ),
        "export": lambda: export(composed("export", f"run={run}", f"out={out}")),
    }


CHEAP = ("load_run", "load_run", "summary", "summary", "resume", "job")
ALL = (*CHEAP, *CHEAP, "evaluate", "compare", "export")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("names", "share"),
    [(CHEAP[:4], 1.0), (ALL, 1.0)],
    ids=["cheap", "all"],
)
def test_damaged_files_are_read_or_refused_in_lines(
    names: tuple[str, ...], share: float, sweep: Path, tmp_path: Path, capfd: Any
):
    chance = random.Random(int(os.environ.get("FUZZ_SEED", "0")))
    endings: Counter[str] = Counter()
    wrong = []
    for number in range(max(1, round(INPUTS * share))):
        shutil.copytree(sweep, tmp_path / str(number))
        here = tmp_path / str(number)
        files = [p for p in sorted((here / "own").rglob("*")) if p.is_file() and p.stat().st_size]
        file = chance.choice(files)
        twin = here / "other" / file.relative_to(here / "own")
        data = file.read_bytes()
        how, content = mutated(data, twin.read_bytes() if twin.is_file() else b"\0", chance)
        file.write_bytes(content)
        name = chance.choice(names)
        if name == "resume" or (name == "job" and chance.random() < 0.7):
            (here / "own" / "metrics.json").unlink(missing_ok=True)
        case = f"{name}, {file.relative_to(here)} {how}"
        try:
            commands(here, here / "out")[name]()
            endings["done"] += 1
        except (UserError, RunError) as error:
            endings["refused"] += 1
            if str(here) not in str(error) and "=" not in str(error):
                wrong.append(f"{case}: names nothing: {error}")
            if any("\x1b" in line or not line for line in str(error).split("\n")):
                wrong.append(f"{case}: {error!r}")
        except Exception as error:
            wrong.append(f"{case}: {type(error).__name__}: {error}")
        if name == "job":
            record = json.loads((here / "own" / "job.json").read_text())
            lines = [str(p) for p in record.get("problems", [])]
            unforeseen = [p for p in lines if p.split(":")[0].endswith("Error")]
            wrong += [f"{case}: {p}" for p in unforeseen]
        shutil.rmtree(here, ignore_errors=True)  # a refused run may still be writing its events
    shown = capfd.readouterr()
    assert not wrong, "\n".join(wrong)
    assert "Traceback" not in shown.out + shown.err
    assert endings["done"] > 0
    assert endings["refused"] > 0
