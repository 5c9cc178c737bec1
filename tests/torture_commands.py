"""Kill sweeps, studies, runs over two processes and the commands that read runs, at random moments
(the parent, a worker, or all); start each again with the same command.

Nothing finished may be lost or trained again, the files must be those of a command that was left
alone, and no half file or held lock may remain.
"""

import contextlib
import csv
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conftest import ROOT, composed
from torture import forked

from vae.runs.files import is_locked

SMALL = [
    *("data=digits", f"data.root={ROOT / 'data'}", "trainer.accelerator=cpu", "callbacks=none"),
    *("trainer.max_epochs=4", "data.batch_size=50", "save_every_n_steps=3", "threads=1"),
]
JUDGED = [
    *("accelerator=cpu", "iwae.images=3", "iwae.K=[1,2]", "gap.images=0", "ppc.images=0"),
    *("chain.chains=2", "chain.steps=100", "samples.n=0"),
]
SWEPT = ["model=baseline,deep", "model.latent_dim=2,3"]
HANG_SECONDS = 240


@dataclass(frozen=True)
class Kind:
    """A command on a folder. `start` returns its process number, `ending` what must repeat."""

    start: Callable[[Path, Path], int]  # (folder, log)
    ending: Callable[[Path], dict[str, Any]]
    needs_runs: bool = False  # it works on a copy of trained runs


def in_group(work: Callable[[], Any]) -> Callable[[], Any]:
    def run() -> None:
        os.setsid()
        os.chdir(ROOT)
        work()

    return run


def multirun(*overrides: str) -> Callable[[Path, Path], int]:
    """`vae-train -m …` in a fork of this process."""

    def start(folder: Path, log: Path) -> int:
        def work() -> None:
            from vae.train import cli

            sys.argv = ["vae-train", "-m", *SMALL, *overrides, f"hydra.sweep.dir={folder}"]
            cli()

        return forked(in_group(work), log)

    return start


def two_processes(folder: Path, log: Path) -> int:
    """A real command, as DDP starts the command again; the second start resumes."""
    resume = (folder / ".hydra" / "config.yaml").exists()
    where = f"resume={folder}" if resume else f"hydra.run.dir={folder}"
    given = [] if resume else [*SMALL, "trainer=ddp", "trainer.max_epochs=4"]
    command = [sys.executable, "-m", "vae.train", *given, where]
    with log.open("a") as out:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=out, stderr=out, start_new_session=True
        )
    return process.pid


def reading(command: str, overrides: Callable[[Path], list[str]]) -> Callable[[Path, Path], int]:
    """A command that reads runs, in a fork of this process."""

    def start(folder: Path, log: Path) -> int:
        config = composed(command, *overrides(folder))
        module = __import__(f"vae.{command}", fromlist=[command])
        return forked(in_group(lambda: getattr(module, command)(config)), log)

    return start


def study(folder: Path, log: Path) -> int:
    """A small sweep, the evaluation of all of its runs, and their page, as one command."""
    judge = composed("evaluate", f"runs={folder}", *JUDGED)
    page = composed("compare", f"runs={folder}", f"out={folder / 'page'}")

    def work() -> None:
        from vae.compare import compare
        from vae.evaluate import evaluate
        from vae.train import cli

        sweep = [*SWEPT[:1], "model.latent_dim=2", "hydra/launcher=joblib"]
        sys.argv = ["vae-train", "-m", *SMALL, *sweep, "hydra.launcher.n_jobs=2"]
        sys.argv += [f"hydra.sweep.dir={folder}"]
        cli()
        evaluate(judge)
        compare(page)

    return forked(in_group(work), log)


def timeless(value: Any) -> Any:
    """Without what depends on how fast it was."""
    if isinstance(value, dict):
        slow = ("time/", "seconds")
        return {k: timeless(v) for k, v in value.items() if not any(word in k for word in slow)}
    return [timeless(v) for v in value] if isinstance(value, list) else value


def rows(path: Path) -> list[Any]:
    with path.open(newline="") as file:
        return [timeless(row) for row in csv.DictReader(file)]


def is_whole(picture: Path) -> bool:
    """Whether a PNG has its end; the chart shows how fast the runs were, so its bytes differ."""
    return picture.read_bytes().endswith(b"IEND\xaeB`\x82")


def sweep_ending(folder: Path) -> dict[str, Any]:
    runs = sorted(path.parent for path in folder.glob("*/metrics.json"))
    each = {
        run.name: (
            timeless(json.loads((run / "metrics.json").read_text())),
            (run / "history.csv").read_text(),
            json.loads((run / "job.json").read_text())["state"],
        )
        for run in runs
    }
    return (
        {
            "runs": each,
            "folders": sorted(p.parents[1].name for p in folder.glob("*/.hydra/config.yaml")),
        }
        | {name: rows(folder / name) for name in ("summary.csv", "groups.csv")}
        | {
            "summary.json": timeless(json.loads((folder / "summary.json").read_text())),
            "summary.png": is_whole(folder / "summary.png"),
        }
    )


def run_ending(folder: Path) -> dict[str, Any]:
    return {
        "metrics": timeless(json.loads((folder / "metrics.json").read_text())),
        "history": (folder / "history.csv").read_text(),
    }


def evaluated(folder: Path) -> dict[str, Any]:
    found = {}
    for path in sorted(folder.glob("*/evaluation.json")):
        values = timeless(json.loads(path.read_text().replace(str(folder), "")))
        del values["checkpoint"]  # the file's digest, and a checkpoint says when it was written
        found[path.parent.name] = values
    return found


def page_of(folder: Path) -> dict[str, Any]:
    page = (folder / "page" / "index.html").read_text()
    page = re.sub(r"Written [^.]*\.", "", page.replace(str(folder), ""))
    return {"page": page, "files": sorted(os.listdir(folder / "page"))}


def exported(folder: Path) -> dict[str, Any]:
    out = folder / "own" / "export"
    return {"names": sorted(p.name for p in out.iterdir() if p.name != ".lock")} | {
        "content": (out / "export.json").read_text().replace(str(folder), "")
    }


def summarised(folder: Path) -> dict[str, Any]:
    return {name: rows(folder / name) for name in ("summary.csv", "groups.csv")} | {
        "summary.png": is_whole(folder / "summary.png")
    }


OPTUNA = ["hydra/sweeper=optuna_search", "hydra.sweeper.n_trials=3", "model.latent_dim=range(2,6)"]
PARALLEL = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
SUBMITTED = ["model=baseline,deep", "hydra/launcher=submitit_local"]
KINDS = {
    "joblib": Kind(multirun(*SWEPT, *PARALLEL), sweep_ending),
    "submitit": Kind(multirun(*SUBMITTED, "model.latent_dim=2"), sweep_ending),
    "optuna": Kind(multirun(*OPTUNA), sweep_ending),
    "ddp": Kind(two_processes, run_ending),
    "evaluate": Kind(reading("evaluate", lambda f: [f"runs={f}", *JUDGED]), evaluated, True),
    "compare": Kind(
        reading("compare", lambda f: [f"runs={f}", f"out={f / 'page'}"]), page_of, True
    ),
    "summary": Kind(reading("summary", lambda f: [f"sweep={f}"]), summarised, True),
    "export": Kind(reading("export", lambda f: [f"run={f / 'own'}"]), exported, True),
    "study": Kind(study, lambda f: sweep_ending(f) | evaluated(f) | page_of(f)),
}


def descendants(process: int) -> list[int]:
    """The processes that it started, and theirs."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError):
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(stat.parent.name))
    found, waiting = [], [process]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


def ended(process: int, seconds: float = HANG_SECONDS) -> int | None:
    """Its exit code, None where it did not end; then it and all that it started are killed."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        child, status = os.waitpid(process, os.WNOHANG)
        if child:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    kill([process, *descendants(process)])
    os.waitpid(process, 0)
    return None


def kill(processes: list[int]) -> None:
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def finished(folder: Path) -> dict[str, int]:
    """When the metrics and evaluations that are there were written."""
    names = [*folder.glob("*/metrics.json"), *folder.glob("*/evaluation.json")]
    return {str(path): path.stat().st_mtime_ns for path in names}


def one_kill(
    kind: Kind, folder: Path, log: Path, chance: random.Random, seconds: float
) -> tuple[str, list[str]]:
    """What was killed, and when; what is wrong with how it ended."""
    process = kind.start(folder, log)
    wait, target = chance.uniform(0, seconds), chance.choice(("parent", "worker", "all"))
    time.sleep(wait)
    below = descendants(process)
    victims = {
        "parent": [process],
        "worker": [chance.choice(below)] if below else [process],
        "all": [process, *below],
    }[target]
    kill(victims)
    code = ended(process)
    what = f"{target} of {1 + len(below)} killed after {wait:.1f} s, exit {code}"
    problems = ["it hangs where a process of it was killed"] if code is None else []
    before = finished(folder)
    again: int | None = 2
    until = time.monotonic() + HANG_SECONDS  # for workers that outlive it and hold the folder
    while again not in (0, None) and time.monotonic() < until:
        again = ended(kind.start(folder, log))
        busy = "another process is writing there" in log.read_text()[-300:]
        if again == 2 and busy:
            time.sleep(1)
        else:
            break
    if again != 0:
        return what, [*problems, f"started again: exit {again}: {log.read_text()[-900:]}"]
    after = finished(folder)
    problems += [f"{path} written again" for path, at in before.items() if after.get(path) != at]
    remains = [*folder.rglob("*.partial*"), *folder.rglob(".partial*")]
    problems += [f"{path} remains" for path in remains]
    problems += [f"{path} is held" for path in folder.rglob(".lock") if is_locked(path.parent)]
    return what, problems


def torture_commands(
    names: list[str], kills: int, seed: int, seconds: float, scratch: Path
) -> dict[str, tuple[int, int]]:
    """Kills and failures of each kind, that many or as many as fit into `seconds` for each."""
    log, source = scratch / "log", scratch / "source"
    if any(KINDS[name].needs_runs for name in names):
        for model, name in (("baseline", "own"), ("deep", "other")):
            # as jobs of a sweep, whose folders have a job.json
            given = [f"model={model}", "model.latent_dim=2", f"hydra.sweep.subdir={name}"]
            assert ended(multirun(*given)(source, log)) == 0, log.read_text()[-2000:]
    counts = {}
    for name in names:
        kind, chance = KINDS[name], random.Random(seed)

        def prepared(number: str, kind: Kind = kind, name: str = name) -> Path:
            folder = scratch / f"{name}-{number}" / "all"
            folder.parent.mkdir()
            if kind.needs_runs:
                shutil.copytree(source, folder, ignore=shutil.ignore_patterns("summary.*"))
            return folder

        started = time.monotonic()
        alone = prepared("alone")
        assert ended(kind.start(alone, log)) == 0, log.read_text()[-2000:]
        expected, duration = kind.ending(alone), time.monotonic() - started
        done = failures = 0
        while done < kills and time.monotonic() - started < seconds:
            folder = prepared(str(done))
            what, problems = one_kill(kind, folder, log, chance, duration)
            if not problems:
                found = kind.ending(folder)
                problems = [f"{k} differs" for k, v in expected.items() if found.get(k) != v]
            done, failures = done + 1, failures + bool(problems)
            print(f"{done:>4}: {name}, {what}: {'; '.join(problems) or 'ok'}", flush=True)
            if not problems:
                shutil.rmtree(folder.parent)
        counts[name] = (done, failures)
    return counts
