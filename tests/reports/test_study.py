"""The study: sentences follow from metrics and errors; a tiny one from command to page."""

import json
import random
import re
from pathlib import Path

import pytest
from conftest import ROOT, composed_command, run_vae
from test_sweep import composed, write_run

from vae.compare import compare
from vae.evaluate import evaluate
from vae.reports.study.ladder import Layers, Point, read_points
from vae.reports.study.measures import MEASURES
from vae.reports.study.verdict import (
    depth_or_width,
    encoder_or_decoder,
    overfitting,
    trend,
    verdict,
)
from vae.runs.errors import UserError

ELBO = MEASURES[0]
SPREAD = (-0.3, 0.0, 0.3)  # of three trainings


def point(depth: int, width: int, *values: float, ladder: str = "", **more: float) -> Point:
    layers, none = Layers(depth, width if depth else 0), Layers(0, 0)
    sides = {"encoder alone": (layers, none), "decoder alone": (none, layers)}
    encoder, decoder = sides.get(ladder, (layers, layers))
    metrics = [
        {
            "test/elbo": value,
            "test/elbo_se": 0.1,
            "model/encoder_parameters": 100 * (1 + depth) * (1 + width),
            "model/decoder_parameters": 100,
            **more,
        }
        for value in values
    ]
    name = ladder or ("linear" if not depth else f"{depth} × {width}")
    return Point(name, ladder or name, encoder, decoder, [Path()] * len(values), metrics)


def around(mean: float) -> tuple[float, ...]:
    return tuple(mean + step for step in SPREAD)


def grid(elbo) -> list[Point]:
    """Linear, and depths 1 and 2 at widths 8 and 64; `elbo` of depth and width."""
    sizes = [(0, 0), (1, 8), (1, 64), (2, 8), (2, 64)]
    points = [point(d, w, *around(elbo(d, w))) for d, w in sizes]
    return sorted(points, key=lambda p: p.parameters)


def test_a_measure_that_grows_is_said_to_grow_and_up_to_where():
    points = grid(lambda d, w: 200.0 + (50.0 if d else 0.0) + (0.1 if d == 2 else 0.0))
    text = trend(points, ELBO)
    assert text.startswith("test ELBO gets better with complexity: 200 ± 0.1")
    assert re.search(r"best 250\.1 .* at 2 × \d+, from which 1 × 8 is not told apart", text)


def test_a_measure_that_falls_is_said_to_fall():
    text = trend(grid(lambda d, w: 200.0 - 50.0 * d), ELBO)
    assert text.startswith("test ELBO gets worse with complexity")
    assert "worst 100 " in text


def test_one_that_rises_and_falls_is_no_trend():
    text = trend(grid(lambda d, w: {0: 200.0, 1: 300.0, 2: 100.0}[d]), ELBO)
    assert "not decided as a trend" in text


def test_equal_metrics_decide_nothing():
    points = grid(lambda d, w: 200.0)
    points += [
        point(2, 8, *around(200.0), ladder=f"{part} alone") for part in ("encoder", "decoder")
    ]
    for text in (
        trend(points, ELBO),
        depth_or_width(points, ELBO),
        encoder_or_decoder(points, ELBO),
    ):
        assert "not decided" in text
        assert "pays more." not in text
    found = verdict(points)
    assert found["Not decided"] == ["Whether these grow with complexity: test ELBO."]


@pytest.mark.parametrize("seed", range(20))
def test_shuffled_trainings_decide_nothing(seed: int):
    """The same trainings dealt to the architectures by chance."""
    values = [
        v
        for p in grid(lambda d, w: 200.0 + 30.0 * d)
        for v in around(200.0 + 30.0 * p.encoder.depth)
    ]
    random.Random(seed).shuffle(values)
    dealt = iter(values)
    points = [
        point(d, w, *(next(dealt) for _ in SPREAD))
        for d, w in [(0, 0), (1, 8), (1, 64), (2, 8), (2, 64)]
    ]
    assert "not decided" in trend(points, ELBO)
    assert "not decided" in depth_or_width(points, ELBO)


def test_single_trainings_decide_no_contrast():
    points = [point(d, w, 200.0 + 30 * d + w) for d, w in [(1, 8), (1, 64), (2, 8), (2, 64)]]
    assert "not decided" in depth_or_width(points, ELBO)


def test_depth_or_width():
    assert "; depth pays more." in depth_or_width(grid(lambda d, w: 200.0 + 30 * d + w / 64), ELBO)
    assert "; width pays more." in depth_or_width(grid(lambda d, w: 200.0 + d / 10 + w), ELBO)
    text = depth_or_width(grid(lambda d, w: 200.0 + 30 * d + 30 * (w > 8)), ELBO)
    assert "+30 ± " in text
    assert "not decided" in text


def test_encoder_or_decoder():
    points = [
        point(0, 0, *around(200.0)),
        point(3, 8, *around(210.0), ladder="encoder alone"),
        point(3, 8, *around(260.0), ladder="decoder alone"),
    ]
    text = encoder_or_decoder(points, ELBO)
    assert "+10 ± " in text
    assert "+60 ± " in text
    assert text.endswith("the decoder pays more.")


def test_overfitting_begins_at_the_smallest_that_shows_it():
    points = [point(d, 8, *around(200.0)) for d in (0, 1, 2, 3)]
    for each, excess in zip(points, (0.0, 0.05, 6.0, 20.0), strict=True):
        for metrics, step in zip(each.metrics, SPREAD, strict=True):
            metrics["overfit"] = excess + step
    (text,) = overfitting(points)
    assert text.startswith("It begins at 2 × 8")
    for each in points:
        for metrics, step in zip(each.metrics, SPREAD, strict=True):
            metrics["overfit"] = step
    assert overfitting(points)[0].startswith("Not decided")


# --- from folders ---------------------------------------------------------------------------------


def test_points_by_architecture_and_seed(tmp_path: Path):
    """One architecture under two names is one point; a seed counts once."""
    runs = [
        ["model=baseline", "seed=0"],
        ["model=baseline", "seed=1"],
        ["model=mlp", "model.depth=0", "seed=0"],
        ["model=mlp_2x64", "seed=0"],
        ["model=mlp", "model.width=64", "model.decoder.depth=0", "seed=0"],
    ]
    for i, overrides in enumerate(runs):
        write_run(tmp_path / str(i), composed(*overrides), overrides, 100.0 + i)
        path = tmp_path / str(i) / "metrics.json"
        sizes = {"model/encoder_parameters": 1000 * (i + 1), "model/decoder_parameters": 1}
        path.write_text(json.dumps(json.loads(path.read_text()) | sizes))
        (tmp_path / str(i) / "checkpoints").mkdir()
        (tmp_path / str(i) / "checkpoints" / "best.ckpt").touch()
    found = {p.name: len(p.folders) for p in read_points(str(tmp_path))}
    assert found == {"linear": 2, "2 × 64": 1, "encoder 2 × 64": 1}


def test_runs_that_differ_in_more_than_their_networks_are_refused(tmp_path: Path):
    for i, overrides in enumerate((["model=baseline"], ["model=deep", "model.sigma=0.5"])):
        write_run(tmp_path / str(i), composed(*overrides), overrides, 1.0)
        (tmp_path / str(i) / "checkpoints").mkdir()
        (tmp_path / str(i) / "checkpoints" / "best.ckpt").touch()
    with pytest.raises(UserError, match=r"model\.sigma differs: 0\.25, 0\.5"):
        read_points(str(tmp_path))


@pytest.mark.slow
def test_a_tiny_study_from_command_to_page(tmp_path: Path, open_page):
    """Three architectures, two seeds each; the page in a real browser, on two widths."""
    sweep = ["model=baseline,mlp_1x64,mlp_2x64", "seed=0,1", f"hydra.sweep.dir={tmp_path / 's'}"]
    short = ["data=digits", "trainer.max_epochs=3", "trainer.accelerator=cpu", "callbacks=none"]
    done = run_vae("train", "-m", *sweep, *short)
    assert done.returncode == 0, done.stderr
    quick = ["iwae.images=0", "chain.chains=20", "chain.steps=100", "samples.n=100"]
    quick += ["gap.images=4", "gap.steps=20", "gap.K=10", "ppc.images=0", "classifier.epochs=1"]
    evaluate(composed_command("evaluate", f"runs={tmp_path / 's'}", *quick))
    page = compare(
        composed_command(
            "compare", f"runs={tmp_path / 's'}", "page=study", f"out={tmp_path / 'out'}"
        )
    )
    content = json.loads((tmp_path / "out" / "study.json").read_text())
    assert [p["name"] for p in content["points"]] == ["linear", "1 × 64", "2 × 64"]
    assert {p["metrics"]["test/elbo"]["trainings"] for p in content["points"]} == {2}
    assert (tmp_path / "out" / "study.md").read_text().count("\n") == 5
    text = page.read_text()
    for sentences in content["verdict"].values():
        assert all(sentence.replace("'", "&#39;") in text for sentence in sentences)
    for width in (1300, 390):
        shown = open_page(page, width)
        measures = {key for point in content["points"] for key in point["metrics"]}
        assert shown.locator("#charts img").count() == len(measures)


def test_every_model_of_the_ladder_has_its_size():
    """The experiment sweeps depth 1 to 3 at widths 64, 256 and 1024."""
    names = re.findall(r"mlp_\dx\d+", (ROOT / "conf/experiment/complexity.yaml").read_text())
    assert sorted(names) == sorted(f"mlp_{d}x{w}" for d in (1, 2, 3) for w in (64, 256, 1024))
    for name in names:
        config = composed(f"model={name}")
        depth, width = map(int, name.removeprefix("mlp_").split("x"))
        assert (config.model.depth, config.model.width) == (depth, width)
        for part in (config.model.encoder, config.model.decoder):
            assert (part.depth, part.width) == (depth, width)
