"""The summary of a sweep: groups, their statistics, table, CSV, JSON and chart."""

import csv
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import at_optimum, run_vae, settings
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from vae.data.datamodule import ImageDataModule
from vae.reports.sweep.chart import apart
from vae.reports.sweep.groups import statistics
from vae.reports.sweep.rate_distortion import (
    CURVE_POINTS,
    closed_forms,
    has_rate_distortion,
    points,
)
from vae.reports.sweep.runs import read_runs, read_sweep
from vae.reports.sweep.summary import summarise
from vae.reports.sweep.table import table
from vae.runs.errors import UserError
from vae.runs.files import folder_lock
from vae.theory.ppca import PPCA


def write_run(folder: Path, config: DictConfig, overrides: list[str], elbo: float | None) -> None:
    """A finished run of these settings; its test ELBO is twice its validation ELBO."""
    (folder / ".hydra").mkdir(parents=True)
    OmegaConf.save(config, folder / ".hydra" / "config.yaml", resolve=True)
    OmegaConf.save(OmegaConf.create(overrides), folder / ".hydra" / "overrides.yaml")
    metrics: dict[str, Any] = {"val/elbo": elbo, "test/elbo": 2 * (elbo or 0), "test/kl": 3.0}
    metrics |= {"test/collapsed": 1.0, "oracle/collapsed": 0, "time/fit_seconds": 1.5}
    metrics |= {"oracle/val_elbo": 50.0, "oracle/test_elbo": 60.0}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    (folder / "job.json").write_text('{"state": "finished"}')
    (folder / "environment.json").write_text('{"threads": 3}')


def made_up(sweep: Path, elbo: float | None, *overrides: str) -> Path:
    """A finished run of the settings that these overrides compose."""
    folder = sweep / ",".join(overrides).replace("/", "_")
    write_run(folder, settings(*overrides), [*overrides], elbo)
    return folder


def unfinished(folder: Path, **job: Any) -> None:
    (folder / "metrics.json").unlink()
    (folder / "job.json").write_text(json.dumps(job))


def test_statistics_by_hand(tmp_path):
    for m in (2, 16):
        for seed, elbo in enumerate((1.0, 3.0, 8.0)):
            made_up(tmp_path, elbo + m, f"model.latent_dim={m}", f"seed={seed}", "threads=2")
    made_up(tmp_path, 20.0, "model=deep", "model.latent_dim=2", "seed=0")
    made_up(tmp_path, None, "model=deep", "model.latent_dim=2", "seed=1")  # not finite
    failed = made_up(tmp_path, None, "model=deep", "model.latent_dim=16", "seed=0")
    unfinished(failed, state="failed", problems=["it broke"])
    killed = made_up(tmp_path, None, "model=deep", "model.latent_dim=16", "seed=1")
    unfinished(killed, state="running")
    summary = summarise(tmp_path)

    # 1. Groups: variance 13 over 3 seeds.
    found = {(group.line, group.x): group for group in summary.groups}
    assert found.keys() == {("baseline", 2), ("baseline", 16), ("deep", 2)}
    group = found["baseline", 16]
    assert len(group.runs) == 3
    assert group.mean["val/elbo"] == pytest.approx(20.0)
    assert group.standard_deviation["val/elbo"] == pytest.approx(math.sqrt(13))
    assert group.standard_error["val/elbo"] == pytest.approx(math.sqrt(13 / 3))
    assert (group.mean["active"], group.mean["oracle/active"]) == (15, 16)
    assert found["deep", 2].mean["val/elbo"] is None
    assert found["deep", 2].standard_error["val/elbo"] is None

    # 2. The table on the screen.
    assert summary.best is not None
    assert summary.best.command == (
        "python -m vae.train model.latent_dim=16 seed=2 threads=2"  # its own threads, not 3
    )
    lines = table(summary).splitlines()
    assert lines[0].split() == [
        *("latent_dim", "trainings", "val", "ELBO", "±", "s.e.", "s.d."),
        *("test", "ELBO", "±", "s.e.", "s.d.", "optimum", "KL", "active", "s"),
    ]
    row = next(line.split() for line in lines if line.split()[:2] == ["baseline", "16"])
    assert row[2:7] == ["3", "20.00", "±", "2.08", "3.61"]
    assert row[7:11] == ["40.00", "±", "4.16", "7.21"]
    assert "failed: model.latent_dim=16 seed=0 model=deep: it broke" in lines
    assert any(line.startswith("killed: model.latent_dim=16 seed=1 model=deep: ") for line in lines)
    assert lines[-1].endswith(": 8 finished, 1 failed, 1 killed")

    # 3. The files.
    rows = list(csv.DictReader((tmp_path / "summary.csv").open()))
    assert len(rows) == 10
    assert [r["problems"] for r in rows if r["state"] == "failed"] == ["it broke"]
    two = [r for r in rows if r["model.latent_dim"] == "2" and r["seed"] == "0"]
    assert {r["val/elbo"] for r in two} == {"3.0", "20.0"}
    groups = list(csv.DictReader((tmp_path / "groups.csv").open()))
    assert [(g["line"], g["model.latent_dim"], g["trainings"]) for g in groups] == [
        ("baseline", "2", "3"),
        ("baseline", "16", "3"),
        ("deep", "2", "2"),
    ]
    at_16 = groups[1]
    assert float(at_16["val/elbo mean"]) == pytest.approx(20.0)
    assert float(at_16["val/elbo standard deviation over trainings"]) == pytest.approx(3.6055513)
    assert float(at_16["val/elbo standard error of the mean"]) == pytest.approx(2.0816660)
    content = json.loads((tmp_path / "summary.json").read_text())
    assert content["groups"][1]["standard_error"]["val/elbo"] == pytest.approx(2.0816660)
    assert content["groups"][1]["standard_deviation"]["val/elbo"] == pytest.approx(3.6055513)
    assert Image.open(tmp_path / "summary.png").size == (1300, 700)

    # 4. Another axis.
    with pytest.raises(UserError, match=r"x=model\.sigma was not swept"):
        summarise(tmp_path, "model.sigma")
    by_seed = summarise(tmp_path, "seed").groups
    assert {group.line for group in by_seed} == {
        "baseline latent_dim=2",
        "baseline latent_dim=16",
        "deep latent_dim=2",
    }
    assert {len(group.runs) for group in by_seed} == {1}


def groups_of(sweep: Path) -> dict[tuple[str, Any], float | None]:
    return {(g.line, g.x): g.mean["val/elbo"] for g in summarise(sweep).groups}


def test_config_groups_are_settings_of_their_own(tmp_path):
    """-m model=baseline,deep likelihood=gaussian,learned_sigma: four trainings, no two averaged."""
    for i, model in enumerate(("baseline", "deep")):
        for j, likelihood in enumerate(("gaussian", "learned_sigma")):
            made_up(tmp_path, 10.0 * i + j, f"model={model}", f"likelihood={likelihood}")
    assert groups_of(tmp_path) == {
        ("likelihood=gaussian", "baseline"): 0.0,
        ("likelihood=learned_sigma", "baseline"): 1.0,
        ("likelihood=gaussian", "deep"): 10.0,
        ("likelihood=learned_sigma", "deep"): 11.0,
    }


def test_a_group_swept_with_seeds(tmp_path):
    for seed in (0, 1):
        made_up(tmp_path, 1.0 + seed, "likelihood=gaussian", f"seed={seed}")
        made_up(tmp_path, 5.0 + seed, "likelihood=learned_sigma", f"seed={seed}")
    assert groups_of(tmp_path) == {
        ("baseline", "gaussian"): 1.5,
        ("baseline", "learned_sigma"): 5.5,
    }


def test_lists_are_swept_values(tmp_path):
    for hidden in ("[64]", "[64,32]"):
        for seed in (0, 1):
            elbo = len(hidden) + seed
            made_up(tmp_path, elbo, "model=deep", f"model.encoder.hidden={hidden}", f"seed={seed}")
    assert groups_of(tmp_path) == {("deep", "[64]"): 4.5, ("deep", "[64,32]"): 7.5}
    frame = read_sweep(tmp_path)
    assert frame.groupby("model.encoder.hidden")["val/elbo"].mean().to_dict() == {
        "[64]": 4.5,
        "[64,32]": 7.5,
    }
    assert Image.open(tmp_path / "summary.png").size == (1300, 700)


def test_experiments_are_told_apart(tmp_path):
    made_up(tmp_path, 1.0, "+experiment=lab")
    made_up(tmp_path, 2.0, "+experiment=fast")
    assert groups_of(tmp_path) == {("baseline", "lab"): 1.0, ("baseline", "fast"): 2.0}


def test_a_runs_command_names_its_config(tmp_path):
    """Of a config folder and a primary config of one's own, as Hydra records them."""
    folder = made_up(tmp_path, 1.0, "seed=1")
    (run,) = read_runs(tmp_path)
    assert run.command == "python -m vae.train seed=1 threads=3"
    own = {"path": "my conf", "schema": "file", "provider": "command-line"}
    main = {"path": "conf", "schema": "file", "provider": "main"}
    hydra = {"job": {"config_name": "mine"}, "runtime": {"config_sources": [main, own]}}
    OmegaConf.save(OmegaConf.create({"hydra": hydra}), folder / ".hydra" / "hydra.yaml")
    (run,) = read_runs(tmp_path)
    flags = "'--config-dir=my conf' --config-name=mine"
    assert run.command == f"python -m vae.train {flags} seed=1 threads=3"


def test_settings_that_no_result_depends_on_do_not_part_seeds(tmp_path):
    made_up(tmp_path, 1.0, "seed=0", "threads=1", "logger=csv")
    made_up(tmp_path, 2.0, "seed=1", "threads=2", "logger=tensorboard")
    (group,) = summarise(tmp_path).groups
    assert group.mean["val/elbo"] == 1.5


def test_single_runs_side_by_side_without_overrides(tmp_path):
    for name, model in (("a", "baseline"), ("b", "deep")):
        write_run(tmp_path / name, settings(f"model={model}"), [], 4.0)
    assert groups_of(tmp_path) == {("", "baseline"): 4.0, ("", "deep"): 4.0}
    write_run(tmp_path / "c", settings("model=deep", "optimizer.lr=0.1"), [], 5.0)
    names = {group.line: group.mean["val/elbo"] for group in summarise(tmp_path).groups}
    assert names == {"baseline, lr=0.001": 4.0, "deep, lr=0.001": 4.0, "deep, lr=0.1": 5.0}


def test_states_of_jobs(tmp_path):
    resumed = made_up(tmp_path, 1.0, "seed=0")  # failed, then finished by a single resume
    (resumed / "job.json").write_text('{"state": "failed", "problems": ["disk full"]}')
    refused = made_up(tmp_path, 2.0, "seed=1")  # its folder holds another job's result
    (refused / "job.json").write_text(
        '{"state": "failed", "problems": ["other settings"], "refused": true}'
    )
    unfinished(made_up(tmp_path, None, "seed=2"), state="running")
    unfinished(made_up(tmp_path, None, "seed=3"), state="stopped")
    running = made_up(tmp_path, None, "seed=4")
    unfinished(running, state="running")
    with folder_lock(running):
        states = read_sweep(tmp_path)["state"].tolist()
    assert states == ["finished", "failed", "killed", "unfinished", "running"]


def test_names_are_harmless_in_spreadsheet_and_terminal(tmp_path):
    folder = made_up(tmp_path, 1.0, "seed=0")
    unfinished(folder, state="failed", problems=["=HYPERLINK(1)\x1b[31m"])
    made_up(tmp_path, 2.0, "seed=1")
    summary = summarise(tmp_path)
    assert "\x1b" not in table(summary)
    cells = [row["problems"] for row in csv.DictReader((tmp_path / "summary.csv").open())]
    assert cells[0].startswith("'=HYPERLINK(1)")
    assert "\x1b" not in cells[0]


def test_rate_and_distortion_of_the_linear_optimum_lie_on_its_closed_form(
    tmp_path, digits: ImageDataModule, monkeypatch
):
    """Runs whose metrics are those of the optimum at each sigma, measured by the model itself."""
    images = digits.images("train")
    sigmas = (0.2, 0.5)
    for sigma in sigmas:
        model = at_optimum(images, 8, sigma)
        eps = torch.randn(50, len(images), 8, generator=torch.Generator().manual_seed(0))
        terms = [model.elbo_terms(images, one)[0] for one in eps]
        folder = made_up(tmp_path, 1.0, f"model.sigma={sigma}", "model.latent_dim=8")
        metrics = json.loads((folder / "metrics.json").read_text()) | {
            "model/sigma": sigma,
            "train/log_likelihood": sum(t.log_likelihood.mean().item() for t in terms) / 50,
            "train/kl": terms[0].kl.sum(-1).mean().item(),
            "oracle/sigma": sigma,
        }
        (folder / "metrics.json").write_text(json.dumps(metrics))
    monkeypatch.setattr("vae.runs.folder.load_data", lambda config: digits)
    summary = summarise(tmp_path)
    found, ((curve, exact),) = points(summary.groups), closed_forms(summary)
    assert len(found) == 2
    assert found == [pytest.approx(point, rel=2e-3) for point in exact]
    assert [curve[0], curve[-1]] == [pytest.approx(point) for point in exact]
    rates = [rate for _, rate in curve]
    assert rates == sorted(rates, reverse=True)
    assert len(curve) == CURVE_POINTS
    assert found[0][1] > found[1][1]  # the smaller error costs the higher rate
    picture = Image.open(tmp_path / "rate_distortion.png")
    assert np.asarray(picture).std() > 10


def test_closed_form_of_a_sweep_over_beta(tmp_path, digits: ImageDataModule, monkeypatch):
    """A weight beta at sigma has the optimum of sigma √beta; a curve for each latent_dim."""
    monkeypatch.setattr("vae.runs.folder.load_data", lambda config: digits)
    for m in (2, 8):
        for beta in (0, 1, 4):  # 0 has no closed form
            overrides = f"model.latent_dim={m} objective=beta objective.beta={beta}".split()
            folder = made_up(tmp_path, 1.0, *overrides)
            metrics = json.loads((folder / "metrics.json").read_text())
            metrics |= {"train/squared_error": 1.0 + beta, "train/kl": 9.0 / (beta or 0.1)}
            metrics |= {"model/sigma": 0.25, "oracle/sigma": 0.25}
            (folder / "metrics.json").write_text(json.dumps(metrics))
    summary = summarise(tmp_path)
    assert has_rate_distortion(summary)
    spectrum = digits.spectrum()
    for m, (curve, dots) in zip((2, 8), closed_forms(summary), strict=True):
        optima = [PPCA(spectrum, m, sigma) for sigma in (0.25, 0.5)]
        assert dots == [pytest.approx((one.squared_error, one.total_kl)) for one in optima]
        assert curve[-1] == pytest.approx(dots[-1])


def test_no_rate_and_distortion_of_another_sweep(tmp_path):
    for m in (2, 4):
        made_up(tmp_path, 1.0, f"model.latent_dim={m}")
    assert not has_rate_distortion(summarise(tmp_path))
    assert not (tmp_path / "rate_distortion.png").exists()


def test_statistics_of_one_and_of_missing_values():
    one = statistics([{"a": 2.0}])
    assert one == ({"a": 2.0}, {"a": None}, {"a": None})
    two = statistics([{"a": 1.0}, {"a": 3.0}])
    assert two == ({"a": 2.0}, {"a": pytest.approx(math.sqrt(2))}, {"a": pytest.approx(1.0)})
    assert statistics([{"a": 1.0}, {"a": None}]) == ({"a": None}, {"a": None}, {"a": None})
    assert statistics([{"a": 1.0}, {}]) == ({"a": None}, {"a": None}, {"a": None})


@pytest.mark.slow
def test_three_hundred_runs_are_summarised_in_fifteen_seconds(tmp_path):
    config = settings("model=deep")
    for m in range(1, 51):
        for seed in range(6):
            config.model.latent_dim, config.seed = m, seed
            overrides = [f"model.latent_dim={m}", f"seed={seed}"]
            write_run(tmp_path / ",".join(overrides), config, overrides, float(m + seed))
    started = time.perf_counter()
    done = run_vae("summary", f"sweep={tmp_path}")
    assert time.perf_counter() - started < 15
    assert done.returncode == 0, done.stderr
    assert "300 finished" in done.stdout
    groups = list(csv.DictReader((tmp_path / "groups.csv").open()))
    assert [float(g["val/elbo mean"]) for g in groups] == [m + 2.5 for m in range(1, 51)]


def test_labels_of_an_axis_that_would_touch_are_left_out():
    labels = ["0.25", "0.845", "0.97", "1.4", "2"]
    values = [float(label) for label in labels]
    assert apart(labels, values, logarithmic=True) == ["0.25", "0.845", "", "1.4", "2"]
    assert apart(["2", "4", "8"], [2, 4, 8], logarithmic=True) == ["2", "4", "8"]
    assert apart(["1"], [1], logarithmic=False) == ["1"]
    assert apart([], [], logarithmic=False) == []  # of a sweep in which nothing finished
