"""Kill training runs at random moments, resume each, and count what was lost: python
tests/torture.py --kills 200 --kinds run. The other kinds are those of torture_commands.py.

Every run is a fork of this process, which has imported everything and computed nothing, so a kill
costs a second or two. A quarter of the kills come by the clock, a quarter while a checkpoint is
being written, a quarter as SIGTERM or SIGINT, a quarter while the last files are. Each run must end
with the weights, the optimiser state, the curves, the metrics and the pictures of the run that was
left alone, bit for bit.
"""

import argparse
import hashlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # a fork must not inherit a pool of threads

import contextlib

import torch
from conftest import settings
from omegaconf import DictConfig
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import vae.reports.run_table
import vae.runs.validation  # noqa: F401  (imported here so that the forks need not)
from vae.train import train

torch.set_num_threads(1)
OVERRIDES = [f"callbacks.{name}=null" for name in ("prior_samples", "posterior_collapse", "chain")]
OVERRIDES += [
    "model=deep",
    "model.latent_dim=2",
    "model.encoder.hidden=[32]",
    "model.decoder.hidden=[32]",
]
OVERRIDES += [
    "trainer.max_epochs=5",
    "trainer.accelerator=cpu",
    "data.batch_size=50",
]
OVERRIDES += ["save_every_n_steps=3", "callbacks.elbo_curves.every_n_epochs=2"]
EMA = "{_target_: lightning.pytorch.callbacks.EMAWeightAveraging, decay: 0.9}"
MODES = {  # each with a run of its own that is left alone
    "plain": [],
    "blocks": ["learning=blocks", "learning.batches_per_block=2"],
    "averaged": [
        *("trainer.gradient_clip_val=500", "trainer.accumulate_grad_batches=2"),
        *("scheduler=onecycle", f"+callbacks.ema={EMA}"),
    ],
}


def forked(work: Callable[[], Any], log: Path) -> int:
    """Run `work` in a fork of this process, its output in `log`; returns the process number."""
    child = os.fork()
    if child == 0:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        try:
            work()
            os._exit(0)
        except SystemExit as stop:
            os._exit(int(stop.code or 0))
        except BaseException as error:
            print(type(error), error)
            os._exit(1)
    return child


def exit_code(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def dies_saving(config: DictConfig, folder: Path, nth: int, whole: bool) -> Callable[[], Any]:
    """A run that is killed at its nth checkpoint: half written, or whole but not yet in its
    place."""

    def work() -> None:
        count = 0
        save, sync = torch.save, os.fsync

        def half(content: Any, file: Any) -> None:
            nonlocal count
            save(content, file)
            count += 1
            if count == nth and not whole:
                file.truncate(file.tell() // 2)
                os.kill(os.getpid(), signal.SIGKILL)

        def synced(descriptor: int) -> None:
            sync(descriptor)
            if count == nth and whole:
                os.kill(os.getpid(), signal.SIGKILL)

        torch.save, os.fsync = half, synced
        train(config, folder)

    return work


def dies_ending(config: DictConfig, folder: Path, where: str) -> Callable[[], Any]:
    """A run that is killed while its last files are written: in a figure, before metrics.json is
    there, or after."""

    def work() -> None:
        write, replace = Path.write_bytes, os.replace

        def half(path: Path, content: bytes) -> int:
            write(path, content[: len(content) // 2] if where == "figure" else content)
            if where == "figure" and (folder / "checkpoints" / "last.ckpt").exists():
                os.kill(os.getpid(), signal.SIGKILL)
            return len(content)

        def replaced(source: Any, target: Any) -> None:
            last = Path(target).name == "metrics.json"
            if last and where == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            replace(source, target)
            if last and where == "after":
                os.kill(os.getpid(), signal.SIGKILL)

        Path.write_bytes, os.replace = half, replaced  # type: ignore[method-assign, assignment]
        train(config, folder)

    return work


def ending(folder: Path) -> dict[str, Any]:
    """What a run ended with, as far as it must repeat."""
    metrics = json.loads((folder / "metrics.json").read_text())
    last = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    figures = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.glob("figures/*.png")
    }
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    curves = {
        tag: [(point.step, point.value) for point in events.Scalars(tag)]
        for tag in ("train/elbo", "val/elbo", "train/objective")
    }
    return {
        "metrics": {key: value for key, value in metrics.items() if not key.startswith("time/")},
        "weights": {key: value.tolist() for key, value in last["state_dict"].items()},
        "optimizer": str(last["optimizer_states"]),
        "scheduler": str(last["lr_schedulers"]),
        "rng": last["resume"]["rng"]["cpu"].tolist(),
        "trained": {k: v.tolist() for k, v in last.get("current_model_state", {}).items()},
        "history": (folder / "history.csv").read_text(),
        "curves": curves,
        "figures": figures,
    }


def torture(kills: int, seed: int, folder: Path) -> int:
    """Returns how many runs were lost or ended differently; says what happened to each."""
    chance = random.Random(seed)
    log = folder / "log"
    configs = {mode: settings(*OVERRIDES, *more) for mode, more in MODES.items()}
    expected, duration, failures = {}, 0.0, 0
    for mode, config in configs.items():
        started = time.perf_counter()
        if exit_code(forked(lambda c=config, m=mode: train(c, folder / m), log)) != 0:
            sys.exit(f"the {mode} run that is left alone failed: {log.read_text()[-2000:]}")
        duration = max(duration, time.perf_counter() - started)
        expected[mode] = ending(folder / mode)
    for number in range(kills):
        run = folder / f"run-{number}"
        kind = ("clock", "saving", "signal", "ending")[number % 4]
        mode = [*MODES][number % len(MODES)]
        config = configs[mode]
        if kind == "saving":
            nth, whole = chance.randint(1, 18), chance.random() < 0.5
            code = exit_code(forked(dies_saving(config, run, nth, whole), log))
            what = f"killed at saving {nth}, {'whole' if whole else 'half written'}"
        elif kind == "ending":
            where = chance.choice(("figure", "before", "after"))
            code = exit_code(forked(dies_ending(config, run, where), log))
            what = {"figure": "killed in a figure"}.get(
                where, f"killed {where} metrics.json was there"
            )
        else:
            child = forked(lambda run=run, c=config: train(c, run), log)
            wait = chance.uniform(0, duration)
            time.sleep(wait)
            sent = (
                signal.SIGKILL
                if kind == "clock"
                else chance.choice((signal.SIGTERM, signal.SIGINT))
            )
            times = 1 if sent == signal.SIGKILL else chance.choice((1, 2))
            with contextlib.suppress(ProcessLookupError):
                for _ in range(times):
                    os.kill(child, sent)
                    time.sleep(0.01)
            code = exit_code(child)
            what = f"{sent.name}{' twice' * (times - 1)} after {wait:.2f} s"
        steps = saved_step(run)
        again = exit_code(forked(lambda run=run, c=config: train(c, run), log))
        same = again == 0 and ending(run) == expected[mode]
        failures += not same
        print(
            f"{number + 1:>4}: {mode}, {what}, exit {code}, checkpoint at step {steps}: "
            f"{'ok' if same else 'LOST'}"
        )
        if not same:
            difference = (
                [k for k, v in ending(run).items() if v != expected[mode][k]]
                if again == 0
                else log.read_text()[-900:]
            )
            print(f"      exit {again}: {difference}")
    return failures


def saved_step(run: Path) -> int | None:
    last = run / "checkpoints" / "last.ckpt"
    return torch.load(last, weights_only=True)["global_step"] if last.exists() else None


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100, help="of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", default="all", help="run, and those of torture_commands.KINDS")
    parser.add_argument("--minutes", type=float, default=30, help="at most for each kind but run")
    arguments = parser.parse_args()
    from torture_commands import KINDS, torture_commands

    kinds = ["run", *KINDS] if arguments.kinds == "all" else arguments.kinds.split(",")
    counts = {}
    with tempfile.TemporaryDirectory() as scratch:
        if "run" in kinds:
            lost = torture(arguments.kills, arguments.seed, Path(scratch))
            counts["run"] = (arguments.kills, lost)
        others, seconds = [kind for kind in kinds if kind != "run"], 60 * arguments.minutes
        counts |= torture_commands(others, arguments.kills, arguments.seed, seconds, Path(scratch))
    for kind, (kills, lost) in counts.items():
        print(f"{kind}: {kills} kills, {lost} lost or different")
    sys.exit(any(lost for _, lost in counts.values()))
