"""Multiruns: every launcher, failures, restart, the summary's numbers, one run over two processes."""

import copy
import csv
import functools
import importlib.util
import json
import math
import os
import shlex
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image

from vae.multirun import Sweep, acquire_free_gpu, job
from vae.reports.sweep.measure import mean_and_error, read
from vae.reports.sweep.summary import summarise
from vae.runs.errors import UserError

ROOT = Path(__file__).parents[2]
SHORT = ["data=digits", "trainer.accelerator=cpu", "trainer.max_epochs=1", "callbacks=none"]
TIMES = ("time/fit_seconds", "time/images_per_second")


def vae(command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    for rank in ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_PORT"):
        environment.pop(rank, None)
    line = [sys.executable, "-m", f"vae.{command}", *arguments]
    return subprocess.run(
        line, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200
    )


def settings(*overrides: str):
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("train", [*SHORT, *overrides])


def figures(folder: Path) -> dict[str, float]:
    """The figures of a run that do not depend on how fast it was."""
    return {
        k: v for k, v in json.loads((folder / "metrics.json").read_text()).items() if k not in TIMES
    }


def folder_of(sweep: Path, model: str, latent_dim: int, seed: int) -> Path:
    options = f"callbacks=none,data=digits,model.latent_dim={latent_dim},model={model},seed={seed}"
    return sweep / f"{options},trainer.accelerator=cpu,trainer.max_epochs=1"


@pytest.fixture(scope="module")
def serial(tmp_path_factory):
    """24 runs that finish and 8 that cannot, one after the other in one process."""
    folder = tmp_path_factory.mktemp("serial")
    memory = "+hydra.callbacks.memory._target_=tests.memory.Memory"
    what = ["model=baseline,deep", "model.latent_dim=2,4,8,0", "seed=0,1,2,3"]
    return folder, vae("train", "-m", *SHORT, *what, memory, f"hydra.sweep.dir={folder}")


def test_failures_are_told_and_do_not_stop_the_others(serial):
    folder, done = serial
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1] == "error: 8 of 32 runs failed, see above"
    assert "Traceback" not in done.stdout + done.stderr
    summary = read(folder)
    assert [len(summary.of_state(s)) for s in ("finished", "failed", "unfinished")] == [24, 8, 0]
    problem = "model.latent_dim=0 must be an integer from 1 to 4096"
    for run in summary.of_state("failed"):
        assert problem in run.problems
        assert f"error: {problem}" in (folder / run.folder / "train.log").read_text()
        assert f"failed: {summary.name(run)}: {problem}" in done.stdout


def test_the_summary_of_a_real_sweep(serial):
    folder, _ = serial
    content = json.loads((folder / "summary.json").read_text())
    assert (content["x"], set(content["swept"])) == (
        "model.latent_dim",
        {"model", "model.latent_dim", "seed"},
    )
    point = next(p for p in content["points"] if p["line"] == "deep" and p["x"] == 4)
    elbos = [figures(folder_of(folder, "deep", 4, seed))["val/elbo"] for seed in range(4)]
    mean = sum(elbos) / 4
    assert point["runs"] == 4
    assert point["mean"]["val/elbo"] == pytest.approx(mean)
    assert point["error"]["val/elbo"] == pytest.approx(
        math.sqrt(sum((e - mean) ** 2 for e in elbos) / 3 / 4)
    )
    assert point["mean"]["oracle/active"] == 4  # digits have more than 4 eigenvalues above sigma²
    best = max(
        folder.glob("*/metrics.json"), key=lambda p: json.loads(p.read_text())["val/elbo"]
    ).parent
    assert content["best"]["run"] == best.name
    overrides = OmegaConf.to_container(OmegaConf.load(best / ".hydra" / "overrides.yaml"))
    assert shlex.split(content["best"]["command"]) == [
        "python",
        "-m",
        "vae.train",
        *overrides,
        "threads=1",
    ]


def test_memory_does_not_grow_from_job_to_job(serial):
    if not Path("/proc/self/statm").exists():
        pytest.skip("resident memory is read from /proc")
    resident = [int(line) for line in (serial[0] / "resident.txt").read_text().split()]
    assert len(resident) == 32
    assert resident[-1] < 1.06 * resident[2], resident  # 1.08 where a job leaves its model behind


def test_tensorboard_shows_every_run_with_hyperparameters_and_final_figures(serial):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    runs = read(serial[0]).of_state("finished")
    for run in runs:
        events = EventAccumulator(str(serial[0] / run.folder / "tensorboard")).Reload()
        content = events.PluginTagToContent("hparams")["_hparams_/session_start_info"]
        shown = HParamsPluginData.FromString(content).session_start_info.hparams
        for key in ("model.latent_dim", "model.sigma", "seed"):
            assert shown[key].number_value == run.value(key)
        assert shown["model.name"].string_value == run.model
        for tag, name in (
            ("final/val/elbo", "val/elbo"),
            ("test/elbo", "test/elbo"),
            ("test/kl", "test/kl"),
        ):
            assert events.Scalars(tag)[-1].value == pytest.approx(run.metrics[name], rel=1e-6)
        assert f"model.latent_dim={run.value('model.latent_dim')},model={run.model}" in run.folder


def test_joblib_gives_the_same_figures_bit_for_bit(serial, tmp_path):
    if importlib.util.find_spec("hydra_plugins.hydra_joblib_launcher") is None:
        pytest.skip("hydra-joblib-launcher is not installed")
    parallel = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", f"hydra.sweep.dir={tmp_path}"]
    done = vae(
        "train", "-m", *SHORT, "model=baseline,deep", "model.latent_dim=8", "seed=1", *parallel
    )
    assert done.returncode == 0, done.stderr
    for model in ("baseline", "deep"):
        found = folder_of(tmp_path, model, 8, 1)
        assert figures(found) == figures(folder_of(serial[0], model, 8, 1))
        assert json.loads((found / "environment.json").read_text())["threads"] == 1


def test_submitit_restarts_a_sweep(serial, tmp_path):
    """What is finished stays as it is, what was cut off goes on from its last checkpoint."""
    if importlib.util.find_spec("hydra_plugins.hydra_submitit_launcher") is None:
        pytest.skip("hydra-submitit-launcher is not installed")
    kept, cut = (folder_of(tmp_path, model, 8, 2) for model in ("baseline", "deep"))
    for folder in (kept, cut):
        shutil.copytree(serial[0] / folder.name, folder)
    before = (kept / "metrics.json").read_text()
    (cut / "metrics.json").unlink()
    launcher = ["hydra/launcher=submitit_local", f"hydra.sweep.dir={tmp_path}"]
    done = vae(
        "train", "-m", *SHORT, "model=baseline,deep", "model.latent_dim=8", "seed=2", *launcher
    )
    assert done.returncode == 0, done.stderr
    assert (kept / "metrics.json").read_text() == before
    assert "finished already" in (kept / "train.log").read_text()
    assert figures(cut) == figures(folder_of(serial[0], "deep", 8, 2))
    assert (cut / "train.log").read_text().count("epoch 1/1") == 1  # not trained once more
    assert len(read(tmp_path).of_state("finished")) == 2
    assert list(tmp_path.glob(".submitit/*"))


def test_two_processes_train_as_one(tmp_path):
    """397 + 103 images in batches that leave the second process an empty one, in training and in validation."""
    common = [
        "data=digits",
        "trainer.accelerator=cpu",
        "trainer.max_epochs=2",
        "data.val_size=103",
        "threads=1",
    ]
    common += ["callbacks.chain=null", "callbacks.elbo_curves=null", "data.eval_batch_size=51"]
    common += [
        "objective=free_bits",
        "data.pixels=dequantised",
    ]  # which share a batch's mean and its noise
    two = vae(
        "train", *common, "trainer=ddp", "data.batch_size=18", f"hydra.run.dir={tmp_path / 'two'}"
    )
    assert two.returncode == 0, two.stderr
    from vae.train import train

    (tmp_path / "one").mkdir()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        train(compose("train", [*common, "data.batch_size=36"]), tmp_path / "one")
    one, both = figures(tmp_path / "one"), figures(tmp_path / "two")
    assert one.keys() == both.keys()
    assert both == pytest.approx(one, rel=1e-5)
    assert two.stdout.count("run folder:") == 1
    assert sorted(p.name for p in (tmp_path / "two").glob("*.log")) == ["train.log"]
    assert len(list((tmp_path / "two" / "figures").iterdir())) == 3

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "two" / "tensorboard")).Reload()
    assert [e.step for e in events.Scalars("val/elbo")] == [
        e.step for e in events.Scalars("train/elbo")
    ]
    assert len(events.Scalars("val/elbo")) == 2
    assert len(events.Images("prior_samples")) == 1


@pytest.mark.parametrize(("images", "batch"), [(400, 21), (397, 18), (5, 2), (3, 4), (1, 1)])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_ranks_share_each_batch_of_one_process(images, batch, ranks):
    import torch

    from vae.data.batches import IndexBatches

    def batches(size: int, rank: int = 0, world: int = 1) -> IndexBatches:
        return IndexBatches(torch.arange(images), size, shuffle_seed=3, rank=rank, world_size=world)

    shares = [batches(batch, rank, ranks) for rank in range(ranks)]
    one = batches(batch * ranks)
    assert {len(share) for share in shares} == {len(one)} == {len(list(one))}
    for k, (whole, *parts) in enumerate(zip(one, *shares, strict=True)):
        assert sorted(torch.cat(parts).tolist()) == sorted(whole.tolist())
        assert shares[0].together(k) == len(whole)
        assert all(torch.equal(part, whole[rank::ranks]) for rank, part in enumerate(parts))
    assert sorted(torch.cat(list(one)).tolist()) == list(range(images))


def test_a_multirun_over_several_devices_is_refused(tmp_path):
    done = vae(
        "train",
        "-m",
        "trainer=ddp",
        "model.latent_dim=2,8",
        f"hydra.sweep.dir={tmp_path / 'sweep'}",
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: trainer.devices=2 in a multirun: ")
    assert "hydra/launcher=joblib" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "sweep").exists()


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("trainer.devices=-1", "trainer.devices=-1"),
        ("trainer.devices=auto", "trainer.devices=auto"),
        ("trainer.devices=[0,1]", "trainer.devices=[0, 1]"),
        ("+trainer.num_nodes=2", "trainer.num_nodes=2"),
        ("resume=outputs/x", "resume="),
    ],
)
def test_what_a_multirun_cannot_do(override, told, capsys, tmp_path):
    with pytest.raises(SystemExit) as ended:
        Sweep().on_multirun_start(settings(override))
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: {told}")
    possible = settings("trainer.devices=[1]")
    OmegaConf.update(possible, "hydra.sweep.dir", str(tmp_path), force_add=True)
    Sweep().on_multirun_start(possible)


def test_a_single_run_does_not_go_over_a_finished_one(tmp_path):
    (tmp_path / "metrics.json").write_text('{"val/elbo": 1.0}')
    done = vae("train", "data=digits", f"hydra.run.dir={tmp_path}")
    assert done.returncode == 2
    assert f"resume={tmp_path} trainer.max_epochs=N" in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.json"]


def test_a_job_tells_what_was_unforeseen_and_runs_again(tmp_path, caplog):
    def broken(config, folder):
        raise ZeroDivisionError("no such luck")

    def works(config, folder):
        assert config.threads == 1
        (folder / "metrics.json").write_text('{"val/elbo": -5.0}')
        return {"val/elbo": -5.0}

    def never(config, folder):
        raise AssertionError("a finished run was run again")

    assert math.isnan(job(broken, settings(), tmp_path))
    record = json.loads((tmp_path / "job.json").read_text())
    assert (record["state"], record["exit_code"]) == ("failed", 1)
    assert record["problems"] == ["ZeroDivisionError: no such luck"]
    assert "Traceback" in caplog.text
    assert job(works, settings(), tmp_path) == -5.0
    assert json.loads((tmp_path / "job.json").read_text())["state"] == "finished"
    assert job(never, settings("callbacks=default", "data.root=elsewhere"), tmp_path) == -5.0

    record = json.loads((tmp_path / "job.json").read_text())  # of a version without these keys
    del record["settings"]["objective"], record["settings"]["data"]["pixels"]
    (tmp_path / "job.json").write_text(json.dumps(record))
    assert job(never, settings(), tmp_path) == -5.0

    (tmp_path / ".hydra").mkdir()
    assert math.isnan(job(never, settings("trainer.max_epochs=9"), tmp_path))
    problem = json.loads((tmp_path / "job.json").read_text())["problems"][0]
    assert problem.endswith(
        "holds a finished run with other settings of scheduler, trainer; sweep into another folder"
    )
    assert OmegaConf.load(tmp_path / ".hydra" / "config.yaml").trainer.max_epochs == 1
    assert job(never, settings(), tmp_path) == -5.0


def test_one_job_a_gpu(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", f"test{os.getpid()}a,test{os.getpid()}b")
    third: list[tuple[int, float]] = []

    def wait() -> None:
        with acquire_free_gpu(2, seconds=0.02) as index:
            third.append((index, time.monotonic()))

    waiting = threading.Thread(target=wait)
    with acquire_free_gpu(2) as first:
        with acquire_free_gpu(2) as second:
            assert {first, second} == {0, 1}
            waiting.start()
            time.sleep(0.1)
            assert third == []
            released = time.monotonic()
        waiting.join(5)
        assert third[0][0] == second
        assert third[0][1] >= released


@functools.cache
def composed(model: str):
    return settings(f"model={model}", "model.encoder.hidden=[64,32]")


def made_up_run(
    sweep: Path, model: str, m: int, seed: int, elbo: float | None, state: str = "finished"
) -> None:
    overrides = [
        f"model={model}",
        f"model.latent_dim={m}",
        f"seed={seed}",
        "model.encoder.hidden=[64,32]",
    ]
    folder = sweep / ",".join(overrides)
    (folder / ".hydra").mkdir(parents=True)
    config = copy.deepcopy(composed(model))
    config.model.latent_dim, config.seed = m, seed
    OmegaConf.save(config, folder / ".hydra" / "config.yaml")
    OmegaConf.save(OmegaConf.create(overrides), folder / ".hydra" / "overrides.yaml")
    found = {"val/elbo": elbo, "test/elbo": 2 * (elbo or 0), "test/kl": 3.0, "test/collapsed": 1.0}
    found |= {"time/fit_seconds": 1.5, "oracle/val_elbo": 50.0 + m, "oracle/test_elbo": 60.0 + m}
    if state == "finished":
        (folder / "metrics.json").write_text(json.dumps(found | {"oracle/collapsed": 0}))
    problems = ["it broke"] if state == "failed" else []
    (folder / "job.json").write_text(json.dumps({"state": state, "problems": problems}))
    (folder / "environment.json").write_text('{"threads": 3}')


def test_summary_numbers_by_hand(tmp_path):
    for m in (2, 16):
        for seed, elbo in enumerate((1.0, 3.0, 8.0)):
            made_up_run(tmp_path, "baseline", m, seed, elbo + m)
    made_up_run(tmp_path, "deep", 2, 0, 20.0)
    made_up_run(tmp_path, "deep", 2, 1, None)  # its ELBO was not finite
    made_up_run(tmp_path, "deep", 16, 0, None, "failed")
    made_up_run(tmp_path, "deep", 16, 1, None, "running")
    summary = summarise(tmp_path)
    found = {(p.line, p.x): p for p in summary.points}
    assert found.keys() == {("baseline", 2), ("baseline", 16), ("deep", 2)}
    assert found["baseline", 16].mean["val/elbo"] == pytest.approx(20.0)
    assert found["baseline", 16].error["val/elbo"] == pytest.approx(
        math.sqrt(13 / 3)
    )  # variance 13 over 3 seeds
    assert found["baseline", 16].mean["active"] == 15
    assert found["baseline", 16].mean["oracle/active"] == 16
    assert found["deep", 2].mean["val/elbo"] is None
    assert summary.best is not None
    assert summary.best.command == (
        "python -m vae.train model=baseline model.latent_dim=16 seed=2 'model.encoder.hidden=[64,32]' threads=3"
    )
    rows = list(csv.DictReader((tmp_path / "summary.csv").open()))
    assert len(rows) == 10
    assert [r["problems"] for r in rows if r["state"] == "failed"] == ["it broke"]
    assert [r["state"] for r in rows if r["model"] == "deep"].count("unfinished") == 1
    assert {r["val/elbo"] for r in rows if r["model.latent_dim"] == "2" and r["seed"] == "0"} == {
        "3.0",
        "20.0",
    }
    assert Image.open(tmp_path / "summary.png").size == (1300, 700)
    with pytest.raises(UserError, match=r"x=model\.sigma was not swept"):
        summarise(tmp_path, "model.sigma")
    assert {p.line for p in summarise(tmp_path, "seed").points} == {
        "baseline latent_dim=2",
        "baseline latent_dim=16",
        "deep latent_dim=2",
    }


def test_standard_error():
    assert mean_and_error([2.0]) == (2.0, None)
    assert mean_and_error([1.0, 3.0]) == (2.0, pytest.approx(1.0))
    assert mean_and_error([1.0, None]) == (None, None)


def test_a_hundred_runs_are_summarised_in_ten_seconds(tmp_path):
    for m in range(1, 51):
        for model in ("baseline", "deep"):
            made_up_run(tmp_path, model, m, 0, float(m))
    started = time.perf_counter()
    done = vae("summary", f"sweep={tmp_path}")
    assert time.perf_counter() - started < 10
    assert done.returncode == 0, done.stderr
    assert "100 finished" in done.stdout
    assert len(list(csv.DictReader((tmp_path / "summary.csv").open()))) == 100
