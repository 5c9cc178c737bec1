"""Multiruns: every launcher, failures, restarts, kills, folders."""

import atexit
import importlib.util
import json
import math
import os
import shlex
import shutil
import threading
import time
from pathlib import Path

import pytest
from conftest import ROOT, run_vae, settings, timeless_metrics
from filelock import FileLock
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from vae import multirun
from vae.jobs import run_job
from vae.multirun import Sweep
from vae.reports.sweep.groups import read
from vae.reports.sweep.runs import read_run
from vae.runs.errors import UserError
from vae.runs.gpu import acquire_free_gpu
from vae.training.tensorboard import MAIN_COLUMNS, MORE_COLUMNS

SHORT = ["data=digits", "trainer.accelerator=cpu", "trainer.max_epochs=1", "callbacks=none"]


def folder_of(sweep: Path, model: str, latent_dim: int, seed: int) -> Path:
    options = f"callbacks=none,data=digits,model.latent_dim={latent_dim},model={model},seed={seed}"
    return sweep / f"{options},trainer.accelerator=cpu,trainer.max_epochs=1"


@pytest.fixture(scope="module")
def serial(tmp_path_factory):
    """24 runs that finish and 8 that cannot, one after the other in one process."""
    folder = tmp_path_factory.mktemp("serial")
    memory = "+hydra.callbacks.memory._target_=tests.memory.Memory"
    what = ["model=baseline,deep", "model.latent_dim=2,4,8,0", "seed=0,1,2,3"]
    return folder, run_vae("train", "-m", *SHORT, *what, memory, f"hydra.sweep.dir={folder}")


@pytest.mark.slow
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


@pytest.mark.slow
def test_the_summary_of_a_real_sweep(serial):
    folder, _ = serial
    content = json.loads((folder / "summary.json").read_text())
    assert (content["x"], set(content["swept"])) == (
        "model.latent_dim",
        {"model", "model.latent_dim", "seed"},
    )
    group = next(g for g in content["groups"] if g["line"] == "deep" and g["x"] == 4)
    elbos = [timeless_metrics(folder_of(folder, "deep", 4, seed))["val/elbo"] for seed in range(4)]
    mean = sum(elbos) / 4
    assert len(group["runs"]) == 4
    assert group["mean"]["val/elbo"] == pytest.approx(mean)
    assert group["standard_error"]["val/elbo"] == pytest.approx(
        math.sqrt(sum((e - mean) ** 2 for e in elbos) / 3 / 4)
    )
    assert group["mean"]["oracle/active"] == 4  # digits have more than 4 eigenvalues above sigma²
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


@pytest.mark.slow
def test_memory_does_not_grow_from_job_to_job(serial):
    if not Path("/proc/self/statm").exists():
        pytest.skip("resident memory is read from /proc")
    resident = [int(line) for line in (serial[0] / "resident.txt").read_text().split()]
    assert len(resident) == 32
    assert resident[-1] < 1.06 * resident[2], resident  # 1.08 where a job leaves its model behind


@pytest.mark.slow
def test_tensorboard_shows_every_run_with_hyperparameters_and_final_timeless_metrics(serial):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    runs = read(serial[0]).of_state("finished")
    for run in runs:
        events = EventAccumulator(str(serial[0] / run.folder / "tensorboard")).Reload()
        content = events.PluginTagToContent("hparams")["_hparams_/session_start_info"]
        shown = HParamsPluginData.FromString(content).session_start_info.hparams
        settings_of = {**MAIN_COLUMNS, **MORE_COLUMNS}
        for column in ("latent_dim", "sigma", "seed"):
            assert shown[column].number_value == run.value(settings_of[column])
        assert shown["model"].string_value == run.model
        for tag, name in (
            ("final/val/elbo", "val/elbo"),
            ("test/elbo", "test/elbo"),
            ("test/kl", "test/kl"),
        ):
            assert events.Scalars(tag)[-1].value == pytest.approx(run.metrics[name], rel=1e-6)
        assert f"model.latent_dim={run.value('model.latent_dim')},model={run.model}" in run.folder


@pytest.mark.slow
def test_joblib_gives_the_same_figures_bit_for_bit(serial, tmp_path):
    if importlib.util.find_spec("hydra_plugins.hydra_joblib_launcher") is None:
        pytest.skip("hydra-joblib-launcher is not installed")
    parallel = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", f"hydra.sweep.dir={tmp_path}"]
    done = run_vae(
        "train", "-m", *SHORT, "model=baseline,deep", "model.latent_dim=8", "seed=1", *parallel
    )
    assert done.returncode == 0, done.stderr
    for model in ("baseline", "deep"):
        found = folder_of(tmp_path, model, 8, 1)
        assert timeless_metrics(found) == timeless_metrics(folder_of(serial[0], model, 8, 1))
        assert json.loads((found / "environment.json").read_text())["threads"] == 1


@pytest.mark.slow
def test_submitit_restarts_a_sweep(serial, tmp_path):
    """What is finished stays as it is, what was cut off resumes from its last checkpoint."""
    if importlib.util.find_spec("hydra_plugins.hydra_submitit_launcher") is None:
        pytest.skip("hydra-submitit-launcher is not installed")
    kept, cut = (folder_of(tmp_path, model, 8, 2) for model in ("baseline", "deep"))
    for folder in (kept, cut):
        shutil.copytree(serial[0] / folder.name, folder)
    before = (kept / "metrics.json").read_text()
    (cut / "metrics.json").unlink()
    launcher = ["hydra/launcher=submitit_local", f"hydra.sweep.dir={tmp_path}"]
    done = run_vae(
        "train", "-m", *SHORT, "model=baseline,deep", "model.latent_dim=8", "seed=2", *launcher
    )
    assert done.returncode == 0, done.stderr
    assert (kept / "metrics.json").read_text() == before
    assert "finished already" in (kept / "train.log").read_text()
    assert timeless_metrics(cut) == timeless_metrics(folder_of(serial[0], "deep", 8, 2))
    assert (cut / "train.log").read_text().count("epoch 1/1") == 1  # not trained once more
    assert len(read(tmp_path).of_state("finished")) == 2
    assert list(tmp_path.glob(".submitit/*"))


def refusal(sweep: Path, *overrides: str) -> str:
    """The one line that refuses a sweep, before its folder is made."""
    done = run_vae("train", "-m", *overrides, f"hydra.sweep.dir={sweep}")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert not sweep.exists()
    return done.stderr


def test_a_multirun_over_several_devices_is_refused(tmp_path):
    line = refusal(tmp_path / "sweep", "trainer=ddp", "model.latent_dim=2,8")
    assert line.startswith("error: trainer.devices=2 in a multirun: ")
    assert "hydra/launcher=joblib" in line


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("trainer.devices=-1", "trainer.devices=-1"),
        ("trainer.devices=auto", "trainer.devices=auto"),
        ("trainer.devices=[0,1]", "trainer.devices=[0, 1]"),
        ("+trainer.num_nodes=2", "trainer.num_nodes=2"),
        ("resume=outputs/x", "resume="),
    ],
)
def test_what_a_multirun_cannot_do(override, problem, capsys, tmp_path):
    with pytest.raises(SystemExit) as ended:
        Sweep().on_multirun_start(settings(override))
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: {problem}")
    possible = settings("trainer.devices=[1]")
    sweep = {"dir": str(tmp_path), "subdir": "${hydra.job.num}"}
    OmegaConf.update(possible, "hydra.sweep", sweep, force_add=True)
    Sweep().on_multirun_start(possible)


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("hydra.sweep.subdir=one", "hydra.sweep.subdir=one is one folder for all jobs"),
        ("optimizer.lr=interval(1e-4,1e-2)", "optimizer.lr=interval(1e-4,1e-2): an interval"),
    ],
)
def test_what_no_sweep_can_do_is_refused_before_its_folder(override, problem, tmp_path):
    line = refusal(tmp_path / "sweep", "data=digits", "seed=0,1", override)
    assert line.startswith(f"error: {problem}")


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("hydra.run.dir=README.md", "error: hydra.run.dir=README.md: File exists"),
        pytest.param(
            "~model=baseline",
            "error: model.likelihood.sigma: Interpolation key 'sigma' not found",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_what_no_run_can_do_is_one_line(override, line):
    done = run_vae("train", "data=digits", override)
    assert (done.returncode, done.stderr.strip()) == (2, line)


def test_a_single_run_does_not_go_over_a_finished_one(tmp_path):
    (tmp_path / "metrics.json").write_text('{"val/elbo": 1.0}')
    done = run_vae("train", "data=digits", f"hydra.run.dir={tmp_path}")
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

    assert run_job(broken, settings(), tmp_path) is None
    record = json.loads((tmp_path / "job.json").read_text())
    assert (record["state"], record["exit_code"]) == ("failed", 1)
    assert record["problems"] == ["ZeroDivisionError: no such luck"]
    assert "Traceback" in caplog.text
    assert run_job(works, settings(), tmp_path) == -5.0
    assert json.loads((tmp_path / "job.json").read_text())["state"] == "finished"
    assert run_job(never, settings("callbacks=default", "data.root=elsewhere"), tmp_path) == -5.0

    (tmp_path / ".hydra").mkdir()
    assert run_job(never, settings("trainer.max_epochs=9"), tmp_path) is None
    problem = json.loads((tmp_path / "job.json").read_text())["problems"][0]
    assert problem.endswith(
        "holds a finished run with other settings of trainer.max_epochs; sweep into another folder"
    )
    assert read_run(tmp_path, tmp_path).state == "failed"
    assert OmegaConf.load(tmp_path / ".hydra" / "config.yaml").trainer.max_epochs == 30
    assert run_job(never, settings(), tmp_path) == -5.0


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


def refuse(config, folder):
    raise UserError("no such data")


def run_out_of_memory(config, folder):
    raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")


def stop(config, folder):
    raise SystemExit(143)


def test_a_failed_job_that_is_resumed_by_itself_is_finished(tmp_path):
    assert run_job(refuse, settings(), tmp_path) is None
    (tmp_path / ".hydra").mkdir()
    OmegaConf.save(settings(), tmp_path / ".hydra" / "config.yaml")
    assert read_run(tmp_path, tmp_path).state == "failed"
    (tmp_path / "metrics.json").write_text('{"val/elbo": -5.0}')
    assert read_run(tmp_path, tmp_path).state == "finished"
    assert run_job(refuse, settings(), tmp_path) == -5.0
    assert json.loads((tmp_path / "job.json").read_text())["state"] == "finished"


def test_a_job_that_runs_out_of_memory_is_named_so(tmp_path):
    assert run_job(run_out_of_memory, settings(), tmp_path) is None
    (problem,) = json.loads((tmp_path / "job.json").read_text())["problems"]
    assert problem.startswith("out of memory (RuntimeError: DefaultCPUAllocator: ")


def test_a_job_that_is_told_to_stop_was_not_killed(tmp_path):
    with pytest.raises(SystemExit):
        run_job(stop, settings(), tmp_path)
    assert json.loads((tmp_path / "job.json").read_text())["state"] == "stopped"


def test_a_diverged_job_gives_a_sweeper_no_value(tmp_path):
    assert run_job(lambda config, folder: {"val/elbo": math.nan}, settings(), tmp_path) is None


def test_a_job_waits_for_a_worker_that_outlived_its_sweep(tmp_path):
    """The orphan finishes the run, and the restarted sweep takes its result."""

    def orphan() -> None:
        with FileLock(tmp_path / ".lock"):
            held.set()
            time.sleep(0.5)
            (tmp_path / "metrics.json").write_text('{"val/elbo": -7.0}')

    held = threading.Event()
    worker = threading.Thread(target=orphan)
    worker.start()
    held.wait()
    assert run_job(refuse, settings(), tmp_path) == -7.0
    worker.join()


def test_a_failing_summary_is_told_by_the_exit_code(tmp_path, monkeypatch, capsys):
    def broken(folder):
        raise TypeError("unhashable type: 'list'")

    monkeypatch.setattr("vae.reports.sweep.summary.summarise", broken)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "job.json").write_text('{"state": "failed", "exit_code": 2}')
    config = OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path)}}})
    with pytest.raises(SystemExit) as ended:
        Sweep().on_multirun_end(config)
    assert ended.value.code == 1
    assert capsys.readouterr().err.splitlines() == [
        f"error: the summary of {tmp_path} failed: TypeError: unhashable type: 'list'",
        "error: 1 of 1 runs failed, see above",
    ]


def test_two_sweeps_that_start_in_one_second_get_two_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def start(*overrides: str) -> Path:
        config = with_hydra(*overrides)
        Sweep().on_multirun_start(config)
        for override in config.hydra.overrides.hydra:
            assert override == f"hydra.sweep.dir={config.hydra.sweep.dir}"  # the jobs follow
        return Path(config.hydra.sweep.dir)

    first, second = start(), start()
    assert second.parent == first.parent
    assert first != second
    assert [first.is_dir(), second.is_dir()] == [True, True]
    atexit.unregister(multirun.report_cut_short)


def test_a_second_sweep_into_one_folder_is_refused(tmp_path, capsys):
    with FileLock(tmp_path / ".lock"), pytest.raises(SystemExit) as ended:
        Sweep().on_multirun_start(with_hydra(f"hydra.sweep.dir={tmp_path}"))
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: hydra.sweep.dir={tmp_path}: another process")


def with_hydra(*overrides: str):
    """The settings of a multirun, Hydra's own among them, the time resolved once."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("train", [*SHORT, *overrides], return_hydra_config=True)
    config.hydra.sweep.dir = config.hydra.sweep.dir if overrides else "${now:%Y}/the-same-second"
    return config


@pytest.mark.slow
def test_an_experiment_for_a_multirun_is_refused_without_m(tmp_path):
    done = run_vae("train", "+experiment=lab", "data=digits", f"hydra.run.dir={tmp_path / 'run'}")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error: these settings are for a multirun over model=baseline,deep: add -m to the command\n"
    )
    assert not (tmp_path / "run").exists()
    done = run_vae("train", "+experiment=lab", *SHORT, "model=deep", f"hydra.run.dir={tmp_path}")
    assert done.returncode == 0, done.stderr  # as the summary's command repeats one of its runs
    assert (tmp_path / "metrics.json").exists()


@pytest.mark.slow
def test_a_search_goes_on_after_failed_trials(tmp_path):
    """Optuna: latent_dim 0 cannot be trained; the study ends with the best of the others."""
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="pip install -e '.[optuna]'")
    search = [
        "hydra/sweeper=optuna_search",
        "hydra.sweeper.n_trials=5",
        f"hydra.sweep.dir={tmp_path}",
    ]
    short = ["trainer.max_epochs=1", "callbacks=none", "trainer.accelerator=cpu", "data=digits"]
    done = run_vae("train", "-m", *search, *short, "model.latent_dim=choice(0,8,32)")
    assert "Traceback" not in done.stderr
    records = {
        path.parent.name: json.loads(path.read_text()) for path in tmp_path.glob("*/job.json")
    }
    states = {name: record["state"] for name, record in records.items()}
    assert {*states.values()} <= {"finished", "failed"}
    assert "finished" in states.values()
    failed = [name for name, state in states.items() if state == "failed"]
    assert all("latent_dim=0" in name for name in failed)
    assert done.returncode == (2 if failed else 0), done.stderr
    best = max(
        (json.loads(path.read_text())["val/elbo"], path.parent.name)
        for path in tmp_path.glob("*/metrics.json")
    )
    assert f"Best value: {best[0]}" in done.stdout + done.stderr
