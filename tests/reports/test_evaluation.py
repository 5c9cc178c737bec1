"""The evaluate command on real run folders of a few hundred digits, and on other folders."""

import json
import math
import os
import re
import runpy
import shutil
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, at_optimum, composed, train_run

from vae.analysis.chain import STREAMS, chain_generator, run_chain
from vae.compare import compare
from vae.data.batches import as_images
from vae.evaluate import evaluate
from vae.models.elbo import upper_bound
from vae.reports.comparison.selection import common_data
from vae.reports.evaluation.likelihood import all_images, subset
from vae.reports.evaluation.table import table
from vae.runs.checkpoints import BEST, LAST
from vae.runs.errors import RunError, UserError
from vae.runs.folder import load_data, load_run
from vae.theory.linear import affine_weights, linear_log_likelihood

SMALL = [
    "iwae.images=60",
    "iwae.K=[1,10,100]",
    "gap.images=20",
    "gap.K=50",
    "gap.steps=60",
    "ppc.images=5",
    "chain.chains=30",
    "chain.steps=120",
    "classifier.epochs=2",
]
OFF = ["iwae.images=0", "gap.images=0", "ppc.images=0", "chain.chains=0", "samples.n=0"]
PICTURES = (
    "elbo_curves",
    "reconstructions",
    "prior_samples",
    "posterior_collapse",
    "chain",
    "progress_bar",
)


def trained(folder: Path, *overrides: str) -> Path:
    off = [f"callbacks.{picture}=null" for picture in PICTURES]
    config = composed("train", "data=digits", "trainer.accelerator=cpu", *off, *overrides)
    train_run(folder, config)
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    small = ["model.latent_dim=4", "model.sigma=0.5", "trainer.max_epochs=30"]
    return {
        "baseline": trained(folder / "baseline", "model=baseline", *small),
        "deep": trained(
            folder / "deep",
            "model=deep",
            "model.encoder.hidden=[32]",
            "model.decoder.hidden=[32]",
            *small,
        ),
    }


@pytest.fixture(scope="module")
def judged(runs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """evaluation.json of both, with AIS, the deep one against the baseline."""
    cache = f"classifier.folder={tmp_path_factory.mktemp('classifiers')}"
    more = [*SMALL, cache, "ais.images=20", "ais.distributions=30"]
    more += ["bdmc.images=6", "bdmc.distributions=40"]
    for name, extra in (("baseline", []), ("deep", [f"against={runs['baseline']}"])):
        evaluate(composed("evaluate", f"run={runs[name]}", "accelerator=cpu", *more, *extra))
    return {name: json.loads((run / "evaluation.json").read_text()) for name, run in runs.items()}


@pytest.fixture(scope="module")
def near_optimum(runs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict:
    """Metrics of a baseline close to its optimum, where seconds of training do not bring it."""
    folder = tmp_path_factory.mktemp("near")
    run = copy_of(runs["baseline"], folder / "run")
    data = load_data(load_run(run).config)
    model = at_optimum(as_images(data.split_pixels("train")), m=4, sigma=0.5)
    generator = torch.Generator().manual_seed(0)
    for weight in model.parameters():
        weight += 0.01 * torch.randn(weight.shape, generator=generator)
    state = {f"model.{key}": value for key, value in model.state_dict().items()}
    torch.save({"state_dict": state, "vae_format": 1}, run / BEST)
    more = [
        *SMALL,
        f"classifier.folder={folder}",
        "ais.images=20",
        "ais.distributions=30",
        "samples.n=0",
    ]
    return evaluate(composed("evaluate", f"run={run}", "accelerator=cpu", *more))


def copy_of(run: Path, to: Path) -> Path:
    shutil.copytree(run, to)
    (to / "evaluation.json").write_text('{"kept": 1}')
    return to


def test_elbo_is_that_of_the_training_run(runs, judged):
    for name, run in runs.items():
        metrics = json.loads((run / "metrics.json").read_text())
        for key in ("test/elbo", "test/log_likelihood", "test/kl"):
            assert judged[name][key] == pytest.approx(metrics[key], abs=1e-3)
        assert judged[name]["collapse/collapsed"] == metrics["test/collapsed"]
        assert judged[name]["collapse/inactive"] == metrics["test/inactive"]
        assert sum(judged[name]["collapse/kl"]) == pytest.approx(metrics["test/kl"], abs=1e-3)


def test_bounds_are_in_order_and_below_the_exact_answer(judged, near_optimum):
    for f in (*judged.values(), near_optimum):
        bounds = [f[f"iwae/K={K}"] for K in (1, 10, 100)]
        assert bounds == sorted(bounds)
        assert 0 < f["iwae/K=100_se"] < 20
        assert 1 <= f["iwae/K=10_ess"] <= 10 <= 100 * f["iwae/K=100_ess"] <= 10_000
    assert "exact/log_p" not in judged["deep"]
    assert judged["baseline"]["iwae/K=100"] < judged["baseline"]["iwae/exact_log_p"]
    f = near_optimum
    assert 0.01 < f["exact/gap"] < 1
    assert f["exact/gap"] == pytest.approx(f["exact/log_p"] - f["exact/elbo"], abs=1e-6)
    assert f["test/elbo"] == pytest.approx(
        f["exact/elbo"], abs=1
    )  # the same but for the noise of one sample
    assert f["iwae/K=100"] < f["iwae/exact_log_p"] + 0.02
    assert abs(f["ais/log_p"] - f["ais/exact_log_p"]) < 3 * f["ais/mc_se"]
    assert f["test/elbo"] < f["oracle/test_elbo"] + 0.5
    assert sorted(f["collapse/train_kl"], reverse=True) == pytest.approx(
        f["collapse/predicted_kl"], abs=0.1
    )


def test_paired_differences_are_differences_of_the_same_images(judged):
    deep, baseline = judged["deep"], judged["baseline"]
    for key in ("test/elbo", "test/kl", "iwae/K=100", "ais/log_p"):
        assert deep[f"against/{key}"] == pytest.approx(deep[key] - baseline[key], abs=1e-6)
    unpaired = (deep["test/elbo_se"] ** 2 + baseline["test/elbo_se"] ** 2) ** 0.5
    assert 0 < deep["against/test/elbo_se"] < 0.8 * unpaired  # what hard images do to both cancels


def test_a_run_against_itself_differs_by_nothing(runs, judged, tmp_path):
    run = copy_of(runs["baseline"], tmp_path / "run")
    off = OFF
    f = evaluate(composed("evaluate", f"run={run}", f"against={runs['baseline']}", *off))
    assert f["against/test/elbo"] == f["against/test/elbo_se"] == f["against/exact/log_p"] == 0
    off = ("iwae/", "gap/", "bdmc/", "ppc/", "chain/", "samples/", "classifier/")
    assert not any(key.startswith(off) for key in f)
    assert f["bound/method"] == "exact"


def test_parts_of_the_gap_make_up_the_whole(judged, near_optimum):
    for f in (*judged.values(), near_optimum):
        whole = f["gap/log_p"] - f["gap/elbo"]
        assert f["gap/approximation"] + f["gap/amortisation"] == pytest.approx(whole, abs=1e-6)
    f = near_optimum  # exact, of all test images
    assert f["gap/images"] == 300
    assert f["gap/log_p"] == pytest.approx(f["exact/log_p"])
    assert f["gap/approximation"] + f["gap/amortisation"] == pytest.approx(f["exact/gap"])
    f = judged["deep"]
    assert f["gap/images"] == 20
    assert f["gap/log_p"] > f["gap/elbo"]
    assert 1 < f["gap/ess"] <= 50


def test_the_estimate_for_all_images_is_the_regression_s_at_their_mean_elbo():
    images = torch.zeros(200, 1, 1, 1)
    order = subset(images, 60)
    noise = torch.randn(3, 200, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    elbo, bound = 10 * noise[0], 7 * noise[0] + noise[1]
    values = {"test/elbo": elbo + noise[2], "iwae/elbo": elbo[order], "iwae/K=100": bound[order]}
    found = all_images(values, {"iwae/K": [1, 100], "iwae/K=100_ess": 5.0}, images)
    slope, intercept = np.polyfit(elbo[order], bound[order], 1)
    known = values["test/elbo"].clone()
    known[order] = elbo[order]  # with the smaller noise that they have
    expected = intercept + slope * known.mean().item()
    assert found["iwae/log_p_all"] == pytest.approx(expected, abs=1e-6)
    assert found["bound/log_p"] == found["iwae/log_p_all"]


def test_estimates_on_some_images_become_estimates_for_all(judged, near_optimum):
    f = near_optimum
    assert f["bound/log_p"] == pytest.approx(f["exact/log_p"])
    for name in ("iwae", "ais"):  # subsets of 60 and 20 of 300 images
        error = 3 * f[f"{name}/log_p_all_subset_se"] + 3 * f["ais/mc_se"]
        assert f[f"{name}/log_p_all"] == pytest.approx(f["exact/log_p"], abs=error)
        assert f[f"{name}/log_p_all_se"] < 1.2 * f["exact/log_p_se"]
    f = judged["deep"]
    gain = f["iwae/K=100"] - f["iwae/elbo"]  # of the same images
    error = 3 * f["iwae/log_p_all_subset_se"]
    assert f["iwae/log_p_all"] - f["test/elbo"] == pytest.approx(gain, abs=error)
    assert 0 < f["iwae/log_p_all_subset_se"] < f["iwae/log_p_all_se"] < f["iwae/K=100_se"]
    assert f["bound/log_p"] > f["test/elbo"]
    assert f["bound/images"] == 20
    assert f["bound/method"].startswith(("L_50, optimised", "AIS, 30"))


def test_sigma_is_refitted_on_validation_images(runs, judged):
    for name, f in judged.items():
        run = load_run(runs[name])
        x = load_data(run.config).images("val")
        q = run.model.encode(x)
        means = run.model.mean_image(q.loc + q.scale * torch.randn(q.loc.shape))
        assert f["refit/sigma"] == pytest.approx(
            (x - means).square().mean().sqrt().item(), rel=0.01
        )
        assert f["refit/test_elbo"] > f["test/elbo"]
        assert f["refit/log_p"] > f["refit/test_elbo"]
        assert f["refit/oracle_test_elbo"] > f["refit/test_elbo"] - 20
    run = load_run(runs["baseline"])  # exact: N(b, W Wᵀ + sigma² I) with another sigma
    weights = affine_weights(run.model)._replace(sigma=judged["baseline"]["refit/sigma"])
    exact = linear_log_likelihood(weights, load_data(run.config).images("test"))
    assert judged["baseline"]["refit/log_p"] == pytest.approx(exact.mean().item())
    assert judged["deep"]["refit/oracle_sigma"] == judged["baseline"]["refit/oracle_sigma"]


def test_own_images_show_a_sigma_that_is_too_large(judged):
    for f in judged.values():
        assert f["ppc/sigma2"] == 0.25
        assert f["ppc/residual_variance_test"] == pytest.approx(f["refit/sigma"] ** 2, rel=0.2)
        assert f["ppc/residual_variance_samples"] > 0.24 > f["ppc/residual_variance_test"]
        assert f["ppc/log_p_samples"] < f["ppc/log_p_test"]
        assert f["bdmc/gap"] == pytest.approx(f["bdmc/upper"] - f["bdmc/lower"], abs=1e-6)
        assert f["bdmc/gap"] > -3 * f["bdmc/gap_se"]
    f = judged["baseline"]
    assert f["bdmc/lower"] - 1 < f["bdmc/exact_log_p"] < f["bdmc/upper"] + 1


def test_many_runs_are_one_command_that_skips_what_is_done(runs, tmp_path, capsys, monkeypatch):
    sweep = tmp_path / "sweep"
    for name, run in runs.items():
        shutil.copytree(run, sweep / name)
        (sweep / name / "evaluation.json").unlink(missing_ok=True)
    unfinished = sweep / "unfinished"
    shutil.copytree(runs["deep"] / ".hydra", unfinished / ".hydra")
    loaded = []

    def load_once(config, *rest):
        loaded.append(config)
        return load_data(config, *rest)

    monkeypatch.setattr("vae.reports.evaluation.load.load_data", load_once)
    against = f"against={runs['baseline']}"
    first = evaluate(composed("evaluate", f"runs={sweep}", against, *OFF))
    assert list(first) == [str(sweep / "baseline"), str(sweep / "deep")]
    assert len(loaded) == 1  # both were trained on the same
    shown = capsys.readouterr().out
    assert "[1/2]" in shown
    assert "[2/2]" in shown
    assert "left out" in shown
    deep = first[str(sweep / "deep")]
    assert f"{deep['test/elbo']:.2f}" in shown
    assert re.search(r"^run +ELBO +less against's", shown, re.MULTILINE)
    assert f"{deep['against/test/elbo']:.2f} ± {deep['against/test/elbo_se']:.2f}" in shown
    stamps = {path: path.stat().st_mtime_ns for path in sweep.glob("*/evaluation.json")}
    assert len(stamps) == 2
    # 1. Again: nothing is measured; with a page of both, if wanted
    pair, page = f"runs=[{sweep / 'deep'},{sweep / 'baseline'}]", tmp_path / "page"
    root, roots = str(ROOT / "data"), []

    def load_from(config, *rest):
        roots.append(rest[0])
        return load_data(config, *rest)

    monkeypatch.setattr("vae.reports.comparison.selection.load_data", load_from)
    moved = [f"compare={page}", f"data.root={root}"]
    again = evaluate(composed("evaluate", pair, against, *moved, *OFF))
    assert roots == [root]  # the page's images are where the evaluation had them
    compare(composed("compare", pair, f"data.root={root}", f"out={tmp_path / 'alone'}"))
    assert roots == [root, root]
    compared = json.loads((page / "comparison.json").read_text())["entries"]
    assert [entry["name"] for entry in compared] == ["deep", "baseline"]
    assert (page / "index.html").is_file()
    assert capsys.readouterr().out.count("done before") == 2
    assert again[str(sweep / "deep")]["test/elbo"] == first[str(sweep / "deep")]["test/elbo"]
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    # 2. Other weights, or other settings: measured again
    shutil.copy(sweep / "deep" / BEST, sweep / "deep" / "before.ckpt")
    checkpoint = torch.load(sweep / "deep" / BEST, weights_only=True)
    checkpoint["state_dict"]["model.decoder.layers.2.bias"] += 0.01
    torch.save(checkpoint, sweep / "deep" / BEST)
    evaluate(composed("evaluate", f"runs={sweep}", against, *OFF))
    assert capsys.readouterr().out.count("done before") == 1
    evaluate(composed("evaluate", f"runs={sweep}", against, *OFF, "seed=1"))
    assert capsys.readouterr().out.count("done before") == 0


def test_what_no_page_can_show_is_told_before_the_work(runs, tmp_path):
    both, page = f"runs=[{runs['baseline']},{runs['deep']}]", f"compare={tmp_path / 'page'}"
    (tmp_path / "file").touch()
    assert refused(f"run={runs['deep']}", page)[0].endswith(
        "takes runs=[<folder>,<folder>], not run="
    )
    assert "names 1 run; a comparison takes 2" in refused(f"runs=[{runs['deep']}]", page)[0]
    for name, why in (
        ("file", "is a file, and must be a folder"),
        ("file/page", "Not a directory"),
    ):
        (line,) = refused(both, f"compare={tmp_path / name}")
        assert line.startswith(f"compare={tmp_path / name}")
        assert why in line
    (line,) = refused(both, f"compare={runs['deep']}")
    assert line == f"compare={runs['deep']} is a run's folder; name another one for the page"
    with pytest.raises(UserError, match=r"^out=.* is a run's folder"):
        compare(composed("compare", both, f"out={runs['deep']}"))


def test_a_run_that_fails_does_not_stop_the_others(runs, tmp_path, monkeypatch, capsys):
    for name, run in runs.items():
        shutil.copytree(run, tmp_path / name)
        (tmp_path / name / "evaluation.json").unlink(missing_ok=True)
    config = tmp_path / "baseline" / ".hydra" / "config.yaml"
    config.write_text(config.read_text().replace("name: digits", "name: letters"))
    with pytest.raises(RunError, match=r"1 of 2 failed: .*baseline(?!.*no page)"):
        evaluate(composed("evaluate", f"runs={tmp_path}", *OFF))
    assert "test/elbo" in json.loads((tmp_path / "deep" / "evaluation.json").read_text())
    assert not (tmp_path / "baseline" / "evaluation.json").exists()

    def fails(*_):
        raise RunError("the disk is gone")

    monkeypatch.setattr("vae.reports.evaluation.measure.Evaluator.evaluate", fails)
    both, page = f"runs=[{runs['baseline']},{runs['deep']}]", tmp_path / "page"
    with pytest.raises(RunError, match=r"^2 of 2 failed: .*; so there is no page$"):
        evaluate(composed("evaluate", both, f"compare={page}", "seed=3", *OFF))
    assert not [*page.iterdir()]


@pytest.mark.parametrize("m", [1, pytest.param(512, marks=pytest.mark.slow)])
def test_any_number_of_latents_is_judged(tmp_path, m):
    """An untrained deep model: every estimator gives numbers, in order."""
    small = ["model.encoder.hidden=[16]", "model.decoder.hidden=[16]", "trainer.max_epochs=1"]
    run = trained(tmp_path / "run", "model=deep", f"model.latent_dim={m}", *small)
    few = ["gap.images=4", "gap.K=20", "gap.steps=20", "ppc.images=3", "bdmc.images=3"]
    off = ["chain.chains=0", "samples.n=0", "bdmc.distributions=10"]
    f = evaluate(composed("evaluate", f"run={run}", *SMALL, *few, *off))
    assert f["gap/elbo"] < f["gap/log_p"]
    assert f["test/elbo"] < f["bound/log_p"] < upper_bound(784, 0.25)
    assert f["bdmc/lower"] < f["bdmc/upper"] + 1
    assert all(math.isfinite(v) for k, v in f.items() if k.startswith(("ppc/", "refit/")))


def test_chain_metrics_hold_together(judged, near_optimum):
    f = near_optimum
    assert f["chain/finite"] == 1
    assert f["chain/local_gain"] == pytest.approx(f["chain/spectral_radius"], abs=1e-4)
    assert f["chain/mixing_steps"] == pytest.approx(1 / (1 - f["chain/spectral_radius"]))
    assert f["chain/agreement_p"] > 1e-3
    assert abs(f["chain/agreement_kl"]) < 4 * f["chain/agreement_kl_se"]
    assert f["chain/t"] == [0, 1, 3, 10, 30, 100, 120]
    for f in (judged["deep"], near_optimum):
        assert [sum(shares) for shares in f["chain/classes_t"]] == pytest.approx([1] * 7, abs=1e-5)
        assert 1 <= f["chain/classes_visited"] <= 10


def test_samples_stand_next_to_their_floor(judged):
    for f in judged.values():
        assert f["samples/n"] == 300
        assert f["samples/fid"] > 2 * f["samples/fid_floor"] > 0  # a run of seconds makes no digits
        assert f["samples/nn_fake"] > f["samples/nn_fake_floor"]
        assert f["samples/coverage_floor"] == pytest.approx(
            f["samples/expected_coverage"], abs=0.06
        )


def test_table_shows_what_the_file_holds(runs, judged):
    shown = table(judged["deep"])
    for key in ("test/elbo", "iwae/K=100", "ais/log_p", "against/test/elbo", "bound/log_p"):
        assert f"{judged['deep'][key]:.2f}" in shown
    tight = judged["baseline"] | {"iwae/K=10_ess": 9.0, "iwae/K=100_ess": 90.0}
    assert "WARNING" not in table(tight)
    warning = "WARNING: a few samples carry all the weight in L_100: the bound is loose"
    assert warning in table(tight | {"iwae/K=100_ess": 2.0})
    unknown = judged["deep"] | {"chain/mixing_steps": None, "chain/mixing_method": "not resolved"}
    assert "mixing time: not resolved by 120 steps" in table(unknown)
    without = table(unknown | {"bdmc/gap": None, "bdmc/gap_se": None, "samples/fid": None})
    assert "nothing is known of the error of AIS" in without
    assert "nan" not in without.replace("inference", "")
    assert "None" not in without


def test_evaluation_repeats_and_its_parts_do_not_disturb_each_other(runs, judged, tmp_path):
    run = copy_of(runs["deep"], tmp_path / "run")
    torch.manual_seed(99)
    f = evaluate(
        composed("evaluate", f"run={run}", *SMALL, "samples.n=0", f"classifier.folder={tmp_path}")
    )
    for key in (
        "test/elbo",
        "iwae/K=100",
        "chain/one_step_p",
        "chain/local_gain",
        "chain/classes_visited",
    ):
        assert f[key] == judged["deep"][key]


def test_a_chain_that_explodes_is_reported(runs, tmp_path):
    run = copy_of(runs["baseline"], tmp_path / "run")
    checkpoint = torch.load(run / BEST, weights_only=True)
    checkpoint["state_dict"]["model.decoder.layers.0.weight"] *= 4
    torch.save(checkpoint, run / BEST)
    few = [
        *SMALL,
        "chain.steps=400",
        "samples.n=0",
        "iwae.images=0",
        f"classifier.folder={tmp_path}",
    ]
    f = evaluate(composed("evaluate", f"run={run}", *few))
    assert f["chain/spectral_radius"] > 1
    assert f["chain/finite"] == 0
    model = load_run(run).model
    start, *noise = (chain_generator(stream, seed=0) for stream in STREAMS)
    first = torch.randn(f["chain/chains"], model.latent_dim, generator=start)
    finite = [bool(torch.isfinite(z).all()) for z, _ in run_chain(model, first, 400, *noise)]
    assert f["chain/finite_steps"] == finite.index(False)  # "from this step on"
    assert f["chain/has_limit"] == 0
    written = json.loads((run / "evaluation.json").read_text())
    assert written["chain/drift"] is None
    assert "NOT finite" in table(f)
    assert "a chain that runs away has no limit" in table(f)
    assert table(written) == table(f)


def refused(*overrides: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        evaluate(composed("evaluate", *overrides))
    return list(caught.value.problems)


def test_all_wrong_settings_are_reported_at_once_by_their_override(tmp_path):
    wrong = [
        "seed=-1",
        "iwae.K=[10,1]",
        "samples.kind=clip",
        "accelerator=tpu",
        "ais.chains=1",
        "chain.steps=1.5",
    ]
    problems = refused(f"run={tmp_path}", *wrong)
    assert len(problems) == 7
    for override in wrong:
        key = override.split("=")[0]
        assert sum(problem.startswith(f"{key}=") for problem in problems) == 1
    assert any("did you mean clipped?" in problem for problem in problems)
    assert any(
        problem.startswith("run: ") and "is no run folder" in problem for problem in problems
    )
    assert refused(f"run={tmp_path}", "samples.n=5")[1].startswith(
        "samples.n=5 must be more than samples.k=5"
    )
    assert refused() == ["run: name a run folder, such as outputs/2030-01-31/12-00-00-deep"]


@pytest.mark.parametrize(
    "damage",
    ["missing", "half-written", "code", "gone", "foreign", "other weights", "evil data", "nan"],
)
def test_a_run_that_cannot_be_read_is_one_line_and_loses_nothing(runs, tmp_path, damage):
    run = copy_of(runs["baseline"], tmp_path / "run")
    checkpoint, config = run / BEST, run / ".hydra" / "config.yaml"
    harm = tmp_path / "harm"
    if damage == "missing":
        checkpoint.unlink()
        (run / LAST).unlink()
        expected = "is missing"
    elif damage == "half-written":
        checkpoint.write_bytes(checkpoint.read_bytes()[:2000])
        expected = "is damaged"
    elif damage == "code":
        torch.save({"state_dict": Runs(str(harm)), "vae_format": 1}, checkpoint)
        expected = "holds more than tensors"
    elif damage == "gone":
        config.write_text(config.read_text().replace("vae.models.Decoder", "vae.models.Gone"))
        expected = "vae.models.Gone does not exist"
    elif damage == "foreign":
        config.write_text(config.read_text().replace("vae.models.Decoder", "os.system"))
        expected = "os.system is refused"
    elif damage == "other weights":
        config.write_text(config.read_text().replace("latent_dim: 4", "latent_dim: 5"))
        expected = "do not fit"
    elif damage == "nan":
        content = torch.load(checkpoint, weights_only=True)
        content["state_dict"]["model.decoder.layers.0.bias"][7] = torch.nan
        torch.save(content, checkpoint)
        expected = "not finite: its training diverged"
    else:
        config.write_text(
            config.read_text().replace("vae.data.ImageDataModule", "vae.runs.files.write_json")
        )
        expected = "vae.runs.files.write_json is refused"
    (problem,) = refused(f"run={run}")
    assert expected in problem
    assert problem.startswith("run: ")
    assert not harm.exists()
    assert (run / "evaluation.json").read_text() == '{"kept": 1}'


class Runs:
    """Unpickled carelessly, it writes a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (self.path,))


def test_a_failure_on_the_way_overwrites_nothing(runs, tmp_path, monkeypatch):
    run = copy_of(runs["baseline"], tmp_path / "run")

    def broken(*_):
        raise MemoryError

    monkeypatch.setattr("vae.reports.evaluation.measure.samples", broken)
    with pytest.raises(MemoryError):
        evaluate(composed("evaluate", f"run={run}", *SMALL, f"classifier.folder={tmp_path}"))
    assert (run / "evaluation.json").read_text() == '{"kept": 1}'


def test_a_full_disk_is_reported_after_the_metrics(runs, tmp_path, monkeypatch, capsys):
    run = copy_of(runs["baseline"], tmp_path / "run")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(
        RunError, match=r"evaluation.json cannot be written \(No space left on device\)"
    ):
        evaluate(composed("evaluate", f"run={run}", *OFF))
    assert "ELBO" in capsys.readouterr().out
    assert (run / "evaluation.json").read_text() == '{"kept": 1}'


def test_runs_of_different_data_are_not_paired(runs, tmp_path):
    other = copy_of(runs["baseline"], tmp_path / "run")
    config = other / ".hydra" / "config.yaml"
    config.write_text(config.read_text().replace("name: digits", "name: mnist"))
    (problem,) = refused(f"run={runs['baseline']}", f"against={other}")
    assert problem.startswith("against=")
    assert "mnist" in problem


def command(monkeypatch: pytest.MonkeyPatch, cwd: Path, *arguments: str) -> int:
    """The command as a user types it, in the folder `cwd`; its exit code."""
    monkeypatch.chdir(cwd)
    monkeypatch.setattr(sys, "argv", ["vae.evaluate", *arguments])
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*found in sys.modules.*")
            runpy.run_module("vae.evaluate", run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        return ended.code
    return 0


def test_the_command_leaves_one_file_and_no_folder(runs, tmp_path, monkeypatch, capsys):
    run, root = copy_of(runs["baseline"], tmp_path / "run"), Path("data").resolve()

    def stamps() -> dict[Path, int]:
        files = [
            path for path in run.rglob("*") if path.is_file() and path.name != "evaluation.json"
        ]
        return {path: path.stat().st_mtime_ns for path in files}

    before = stamps()
    off = OFF
    assert command(monkeypatch, tmp_path, "run=run", f"data.root={root}", *off) == 0
    elbo = json.loads((run / "evaluation.json").read_text())["test/elbo"]
    assert f"{elbo:.2f}" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"run"}
    assert stamps() == before


def test_the_command_refuses_in_one_line_with_exit_code_2(tmp_path, monkeypatch, capsys):
    assert command(monkeypatch, tmp_path, "run=nowhere") == 2
    expected = "error: run: nowhere is no run folder: it has no .hydra/config.yaml\n"
    assert capsys.readouterr().err == expected
    assert list(tmp_path.iterdir()) == []


def test_settings_are_shown_without_heavy_imports(tmp_path):
    def python(*arguments: str) -> str:
        environment = os.environ | {"PYTHONPATH": str(Path.cwd())}
        line = [sys.executable, *arguments]
        return subprocess.run(
            line, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
        ).stdout

    started = time.perf_counter()
    assert "distributions: 500" in python("-m", "vae.evaluate", "--cfg", "job")
    assert time.perf_counter() - started < 5  # 0.4 s on an idle machine
    heavy = (
        "import sys, vae.evaluate; print([m for m in ('torch', 'lightning') if m in sys.modules])"
    )
    assert python("-c", heavy) == "[]\n"


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run on zeros and ones, and a linear one with a learned sigma on dequantised pixels."""
    folder, short = (
        tmp_path_factory.mktemp("others"),
        ["model.latent_dim=3", "trainer.max_epochs=20"],
    )
    bernoulli = [
        "model=deep",
        "likelihood=bernoulli",
        "data.pixels=binarised",
        "optimizer.lr=0.003",
    ]
    learned = ["likelihood=learned_sigma", "data.pixels=dequantised", "optimizer.lr=0.01"]
    return {
        "bernoulli": trained(folder / "bernoulli", *bernoulli, *short),
        "learned": trained(folder / "learned", *learned, *short),
    }


@pytest.mark.parametrize("name", ["bernoulli", "learned"])
def test_other_likelihoods_are_judged_by_the_same_code(
    others: dict[str, Path], name: str, tmp_path: Path
):
    options = [
        *SMALL,
        f"classifier.folder={tmp_path}",
        "accelerator=cpu",
        "ais.images=10",
        "ais.distributions=30",
    ]
    metrics = evaluate(composed("evaluate", f"run={others[name]}", "samples.kind=noisy", *options))
    training_metrics = json.loads((others[name] / "metrics.json").read_text())
    assert metrics["test/elbo"] == pytest.approx(training_metrics["test/elbo"], abs=1e-2)
    assert metrics["iwae/K=1"] < metrics["iwae/K=100"]
    assert ("exact/log_p" in metrics) == (name == "learned")
    if name == "bernoulli":
        assert (
            -784 < metrics["test/elbo"] < 0
        )  # a probability of 784 pixels, better than tossing a coin
        assert not any(key.startswith("bits/") for key in metrics)
        return
    assert (
        metrics["exact/log_p"] <= metrics["oracle/test_elbo"] + 30
    )  # its optimum is that of the training split
    assert metrics["test/elbo"] < metrics["exact/log_p"]
    bits = -metrics["test/elbo"] / 784 / 0.6931471805599453 + 8
    assert metrics["bits/test/elbo"] == pytest.approx(bits)
    assert metrics["bits/exact/log_p"] < bits
    assert f"{bits:.4f}" in table(metrics)


def test_runs_on_other_pixels_are_not_paired(others: dict[str, Path]):
    with pytest.raises(
        UserError,
        match=r"digits, dequantised pixels, by density.*digits, binarised pixels, by prob",
    ):
        evaluate(composed("evaluate", f"run={others['bernoulli']}", f"against={others['learned']}"))
    with pytest.raises(UserError, match=r"data\.pixels is binarised"):
        common_data([load_run(run) for run in others.values()])


def test_runs_of_other_likelihoods_compare_on_one_page(others: dict[str, Path], tmp_path: Path):
    """No closed form, no sigma: the page says nothing of either."""
    copy_of(others["bernoulli"], tmp_path / "copy")
    folders = f"runs=[{others['bernoulli']},{tmp_path / 'copy'}]"
    page = compare(composed("compare", folders, f"out={tmp_path / 'out'}")).read_text()
    assert "Bernoulli" in page
    assert "linear pair" not in page
    assert "oracle" not in (tmp_path / "out" / "comparison.json").read_text()
