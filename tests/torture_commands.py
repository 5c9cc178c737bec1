"""Kill sweeps, studies, runs of two processes and the commands that judge runs at random moments,
start each again, and count what was lost: python tests/torture_commands.py --kills 100

Each attempt starts the command of its kind in a process group of its own, and kills the parent, one
of its workers, or all of them at once; then the same command runs to its end. Everything that was
finished must be as it was, the result equal to that of a command which was left alone, to the last
byte but for times and paths, and nothing half written or locked may remain.
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

ROOT = Path(__file__).parents[1]
QUICK = ["data=digits", "trainer.accelerator=cpu", "trainer.max_epochs=2", "callbacks=none"]
SWEEP = ["train", "-m", *QUICK, "model.latent_dim=2,3", "seed=0,1", "hydra.sweep.dir={folder}"]
STUDY = ["hydra/sweeper=optuna_search", "hydra.sweeper.n_trials=4", "model.latent_dim=2,3,4"]
RUNS = "runs=[{runs}/a,{runs}/b]"
JUDGED = ["iwae.images=20", "gap.images=0", "ppc.images=0", "chain.chains=2", "samples.n=0"]
KINDS: dict[str, list[str]] = {
    "joblib": [*SWEEP, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"],
    "submitit": [*SWEEP, "hydra/launcher=submitit_local"],
    "optuna": ["train", "-m", *QUICK, *STUDY, "hydra.sweep.dir={folder}"],
    "ddp": ["train", *QUICK, "trainer=ddp", "hydra.run.dir={folder}"],
    "evaluate": ["evaluate", "runs={folder}", "accelerator=cpu", "classifier.epochs=1", *JUDGED],
    "compare": ["compare", RUNS, "out={folder}"],
    "summary": ["summary", "sweep={folder}"],
    "export": ["export", "run={runs}/a", "out={folder}"],
}
COPIES = ("evaluate", "summary")  # work in a copy of the runs
PARTS = ("*.partial", ".partial-*", "*.tmp")
PATIENCE = 240  # seconds for a command to end


def start(kind: str, folder: Path, runs: Path, log: Path) -> "subprocess.Popen[bytes]":
    again = kind == "ddp" and (folder / "checkpoints" / "last.ckpt").exists()
    words = [word.format(folder=folder, runs=runs) for word in KINDS[kind]]
    words = ["train", f"resume={folder}"] if again else words
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", f"vae.{words[0]}", *words[1:]],
        cwd=ROOT, env=environment, stdout=log.open("ab"), stderr=subprocess.STDOUT,
        start_new_session=True,
    )  # fmt: skip


def session_of(leader: int) -> list[int]:
    """The processes of a session, by /proc."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            fields = path.read_text().rpartition(")")[2].split()
            if int(fields[3]) == leader and fields[0] != "Z":
                found.append(int(path.parent.name))
    return found


def kill(process: "subprocess.Popen[bytes]", whom: str, chance: random.Random) -> int:
    """Kill the parent, a worker or all; returns how many died."""
    everyone = session_of(process.pid)
    workers = [pid for pid in everyone if pid != process.pid]
    chosen = {"parent": [process.pid], "worker": [chance.choice(workers or [process.pid])]}
    victims = chosen.get(whom, everyone)
    for pid in victims:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return len(victims)


def finish(process: "subprocess.Popen[bytes]") -> int:
    """Wait for a command and for whatever outlives it."""
    code = process.wait(PATIENCE)
    end = time.monotonic() + PATIENCE
    while session_of(process.pid):
        if time.monotonic() > end:
            kill(process, "all", random.Random())
            return 1
        time.sleep(0.1)
    return code


def fingerprint(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def timeless(value: Any, folder: Path) -> Any:
    """Without times, and with the folder's own name taken out."""
    if isinstance(value, dict):
        return {k: timeless(v, folder) for k, v in value.items() if "time/" not in k}
    if isinstance(value, list):
        return [timeless(child, folder) for child in value]
    return value.replace(str(folder), "") if isinstance(value, str) else value


def result(kind: str, folder: Path) -> dict[str, Any]:
    """What a command must leave the same: every JSON file it writes, and exported networks."""
    names = ["metrics.json", "evaluation.json", "summary.json", "comparison.json", "export.json"]
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.name in names:
            found[name] = timeless(json.loads(path.read_text()), folder)
        elif path.name == "history.csv":
            found[name] = fingerprint(path.read_bytes())
        elif path.name in ("summary.csv", "encoder.pt2", "decoder.pt2", "index.html"):
            found[name] = "there"
    return found


def finished(folder: Path) -> dict[str, str]:
    """Every run or evaluation that is there, by its bytes: none may be made again."""
    names = ("*/metrics.json", "*/evaluation.json")
    paths = [path for name in names for path in folder.glob(name)]
    return {str(path): fingerprint(path.read_bytes()) for path in paths}


def left_over(folder: Path) -> list[str]:
    """Half files, and locks that a process still holds."""
    found = [str(path) for pattern in PARTS for path in folder.rglob(pattern)]
    for lock in folder.rglob(".lock"):
        try:
            with FileLock(lock).acquire(timeout=0):
                pass
        except Timeout:
            found.append(str(lock))
    return found


def torture(kinds: list[str], kills: int, seed: int, seconds: float, scratch: Path) -> int:
    """Returns how many were lost or different; says what happened to each."""
    chance, log, runs = random.Random(seed), scratch / "log", scratch / "runs"
    for name, dim in (("a", 2), ("b", 3)):
        made = [*QUICK, f"model.latent_dim={dim}", f"hydra.run.dir={runs / name}"]
        command = [sys.executable, "-m", "vae.train", *made]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    failures, counts = 0, dict.fromkeys(kinds, 0)
    expected, durations = {}, {}
    for kind in kinds:
        folder = scratch / f"{kind}-alone"
        begun = time.monotonic()
        prepare(kind, folder, runs)
        if finish(start(kind, folder, runs, log)) != 0:
            print(f"{kind}: the command that is left alone failed\n{log.read_text()[-1500:]}")
            return 1
        expected[kind], durations[kind] = result(kind, folder), time.monotonic() - begun
    deadline = time.monotonic() + seconds
    for number in range(kills * len(kinds)):
        if time.monotonic() > deadline:
            break
        kind = kinds[number % len(kinds)]
        counts[kind] += 1
        whom = chance.choice(("parent", "worker", "all"))
        folder = scratch / f"{kind}-{number}"
        prepare(kind, folder, runs)
        process = start(kind, folder, runs, log)
        wait = durations[kind] * chance.uniform(0.2, 1.0)
        time.sleep(wait)
        died = kill(process, whom, chance)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(1 if whom == "worker" else 5)
        before = finished(folder) if not session_of(process.pid) else {}
        begun = start(kind, folder, runs, log)
        code = finish(begun)
        finish(process)
        different = [k for k, v in expected[kind].items() if result(kind, folder).get(k) != v]
        repeated = [path for path, digest in before.items() if finished(folder)[path] != digest]
        half = left_over(folder)
        bad = code != 0 or different or repeated or half
        failures += bool(bad)
        what = f"{whom} ({died} killed) after {wait:.1f} s, {len(before)} finished before"
        print(f"{number + 1:>4}: {kind}, {what}: {'LOST' if bad else 'ok'}", flush=True)
        if bad:
            print(f"      exit {code}, different {different}, repeated {repeated}, left {half}")
            print(log.read_text(errors="replace")[-1500:] if code else "")
        else:
            shutil.rmtree(folder)
        log.unlink(missing_ok=True)
    print(f"{counts} kills, {failures} lost or different")
    return failures


def prepare(kind: str, folder: Path, runs: Path) -> None:
    if kind in COPIES:
        shutil.copytree(runs, folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100, help="of each kind")
    parser.add_argument("--kinds", nargs="+", choices=[*KINDS], default=[*KINDS])
    parser.add_argument("--seconds", type=float, default=4 * 3600)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        lost = torture(given.kinds, given.kills, given.seed, given.seconds, Path(place))
    sys.exit(lost > 0)
