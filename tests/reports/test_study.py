"""The study: sentences follow from metrics and errors; a tiny one from command to page."""

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, composed_command, run_vae
from test_sweep import composed, write_run

from vae.compare import compare
from vae.evaluate import evaluate
from vae.reports.comparison.statistics import Measured
from vae.reports.study.comparisons import Comparisons, moderated_difference, typical_spread
from vae.reports.study.effects import depth_or_width, encoder_or_decoder
from vae.reports.study.fitting import overfitting, trained_too_little
from vae.reports.study.ladder import DECODER_ALONE, ENCODER_ALONE, Layers, Point, read_points
from vae.reports.study.measures import ELBO, LOG_P, MEASURES, OVERFIT, SAMPLES, TRAIN
from vae.reports.study.verdict import COMPARED, growth_sentence, verdict
from vae.reports.study.words import with_error
from vae.runs.errors import UserError

SPREAD = (-0.3, 0.0, 0.3)  # of three trainings
SIZES = [(0, 0), (1, 8), (1, 64), (2, 8), (2, 64)]


def point(depth: int, width: int, ladder: str = "", **values: Any) -> Point:
    """Trainings with these metrics (`test__elbo=(200.0, 201.0)`), each with an error of 0.1."""
    layers, none = Layers(depth, width if depth else 0), Layers(0, 0)
    sides = {ENCODER_ALONE: (layers, none), DECODER_ALONE: (none, layers)}
    encoder, decoder = sides.get(ladder, (layers, layers))
    columns = {key.replace("__", "/"): value for key, value in values.items()}
    metrics: list[dict[str, Any]] = [
        {
            "model/encoder_parameters": 100 * (1 + depth) * (1 + width),
            "model/decoder_parameters": 100,
            **{key: value[i] for key, value in columns.items()},
            **{f"{key}_se": 0.1 for key in columns},
        }
        for i in range(len(next(iter(columns.values()))))
    ]
    name = ladder or ("linear" if not depth else f"{depth} × {width}")
    return Point(name, ladder or name, encoder, decoder, [Path()] * len(metrics), metrics)


def around(mean: float) -> tuple[float, ...]:
    return tuple(mean + step for step in SPREAD)


def compared(points: list[Point], **options: Any) -> Comparisons:
    return Comparisons(sorted(points, key=lambda p: p.parameters), COMPARED, **options)


def grid(elbo: Callable[[int, int], float], key: str = "test__elbo") -> Comparisons:
    """Linear, and depths 1 and 2 at widths 8 and 64; `elbo` of depth and width."""
    return compared([point(d, w, **{key: around(elbo(d, w))}) for d, w in SIZES])


# --- when a difference is decided -----------------------------------------------------------------


def test_the_typical_spread_is_that_of_normal_trainings_and_minds_no_outlier():
    torch.manual_seed(0)
    values = 5 * torch.randn(400, 3, dtype=torch.float64)
    measured = [Measured.of(row.tolist(), None) for row in values]
    assert typical_spread(measured).variance == pytest.approx(25, rel=0.15)
    wild = [Measured(0.0, None, 1e6, 3)] * 20
    assert typical_spread(measured + wild).variance == pytest.approx(25, rel=0.25)


def test_the_spread_of_three_alike_trainings_is_not_trusted_and_a_wide_one_is():
    typical = typical_spread([Measured(0.0, None, 1.0, 3)] * 9)
    lucky, wide = Measured(3.0, None, 1e-6, 3), Measured(3.0, None, 10.0, 3)
    usual = Measured(0.0, None, 1.0, 3)
    found = moderated_difference(usual, lucky, typical)
    assert found.se == pytest.approx((2 * typical.variance / 3) ** 0.5)
    assert moderated_difference(usual, wide, typical).se == pytest.approx(
        ((typical.variance + 100) / 3) ** 0.5
    )


def test_errors_over_shared_images_are_paired():
    points = [point(0, 0, test__elbo=around(200.0)), point(1, 8, test__elbo=around(200.0))]
    values = torch.randn(100, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    shared = {ELBO.key: {each.name: values for each in points}}
    alone, paired = compared(points), compared(points, per_image=shared)
    errors = [found.of(ELBO, *points).se for found in (alone, paired)]
    assert errors[0] ** 2 - errors[1] ** 2 == pytest.approx(2 * 0.1**2)
    assert paired.covariance(LOG_P, *points) == pytest.approx(0.1**2)


def test_every_comparison_counts():
    """One more measure makes every difference harder to decide."""
    few = grid(lambda d, w: 200.0)
    assert few.number == 10
    both = [
        point(d, w, test__elbo=around(200.0), train__elbo=around(200.0), active=around(3.0))
        for d, w in SIZES
    ]
    assert compared(both).number == 20  # active latents are shown, not compared


@pytest.mark.parametrize("seed", range(20))
def test_shuffled_trainings_decide_nothing(seed: int):
    """The same trainings dealt to the architectures by chance."""
    values = [value for d, _ in SIZES for value in around(200.0 + 30.0 * d)]
    random.Random(seed).shuffle(values)
    dealt = [values[3 * i : 3 * i + 3] for i in range(len(SIZES))]
    found = compared([point(d, w, test__elbo=v) for (d, w), v in zip(SIZES, dealt, strict=True)])
    assert "not decided" in growth_sentence(found, ELBO)
    assert depth_or_width(found, ELBO).count("is not decided") == 2
    assert found.decided_pairs(ELBO) == []


def test_chance_alone_decides_nothing_in_fewer_than_1_of_100_studies():
    generator = torch.Generator().manual_seed(0)
    false = 0
    for _ in range(200):
        values = torch.randn(len(SIZES), 3, generator=generator, dtype=torch.float64)
        points = [
            point(d, w, samples__fid=row.tolist())
            for (d, w), row in zip(SIZES, values, strict=True)
        ]
        false += bool(compared(points).decided_pairs(SAMPLES[0]))
    assert false <= 2


def test_equal_metrics_decide_nothing():
    points = [point(d, w, test__elbo=(200.0,) * 3) for d, w in SIZES]
    points += [
        point(2, 8, each, test__elbo=(200.0,) * 3) for each in (ENCODER_ALONE, DECODER_ALONE)
    ]
    found = compared(points)
    assert "not decided, none of 4 sizes" in growth_sentence(found, ELBO)
    assert depth_or_width(found, ELBO).count("is not decided") == 2
    assert "which of the two is worth more is not decided" in encoder_or_decoder(found, ELBO)
    words = verdict(found)
    assert set(words) == {"Depth or width?", "Encoder or decoder?", "Not decided"}
    assert words["Not decided"][0] == "Whether these change with complexity: test ELBO."
    assert words["Not decided"][1].startswith("Which is best by test ELBO: linear, ")


def test_single_trainings_decide_nothing():
    found = compared([point(d, w, test__elbo=(200.0 + 30 * d + w,)) for d, w in SIZES])
    assert found.decided_pairs(ELBO) == []
    assert verdict(found)["Not decided"][-1].startswith("Anything: each architecture was trained")


# --- what the sentences say -----------------------------------------------------------------------


def test_a_measure_that_grows_up_to_a_size():
    found = grid(lambda d, w: 200.0 + (50.0 if d else 0.0) + (0.2 if (d, w) == (2, 8) else 0.0))
    text = growth_sentence(found, ELBO)
    assert text.startswith("test ELBO: 200.00 ± 0.20 at linear (200 parameters), best 250.20")
    assert "at 2 × 8 (2,800 parameters), from which the smaller 1 × 8 cannot be told." in text
    assert verdict(found)["Does it grow with complexity?"][0] == (
        "Networks with hidden layers are better than linear at some sizes and worse at none by "
        "test ELBO."
    )


def test_a_measure_that_falls():
    text = growth_sentence(grid(lambda d, w: 200.0 - 50.0 * d), ELBO)
    assert "worst 100.00" in text
    assert text.endswith("decided for 4 of 4 sizes, and none is better than linear.")


def test_one_that_rises_and_falls():
    text = growth_sentence(grid(lambda d, w: {0: 200.0, 1: 300.0 + w, 2: 100.0}[d]), ELBO)
    assert "best 364.00" in text
    assert "the larger 2 × 64 (100.00 ± 0.20) is worse again" in text
    assert text.endswith("but 2 × 8 and 2 × 64 are worse than linear.")


def test_lower_is_better_for_distances_and_one_half_for_the_nearest_neighbour():
    fid = grid(lambda d, w: 300.0 - 100.0 * d, "samples__fid")
    assert "best 100.00" in growth_sentence(fid, SAMPLES[0])
    (nearest,) = [m for m in SAMPLES if m.key == "samples/nn_real"]
    found = compared(
        [
            point(0, 0, samples__nn_real=(99.0, 99.1, 99.2)),
            point(1, 8, samples__nn_real=(0.5, 0.4, 0.6)),
            point(1, 64, samples__nn_real=(-60.0, -60.1, -59.9)),
        ]
    )
    signs = {p.name: found.sign(nearest, found.points[0], p) for p in found.points[1:]}
    assert signs == {"1 × 8": 1, "1 × 64": 1}
    assert found.sign(nearest, found.points[1], found.points[2]) == -1


def test_depth_or_width():
    text = depth_or_width(grid(lambda d, w: 200.0 + 30 * d - w), ELBO)
    assert "width costs, −56.00 ± 0.32 and −56.00 ± 0.32 from 8 to 64 units" in text
    assert "depth pays, +30.00 ± 0.32 and +30.00 ± 0.32 from 1 to 2 hidden layers" in text
    both = depth_or_width(grid(lambda d, w: 200.0 + 30 * d + w), ELBO)
    assert both.endswith("1 × 64 against 2 × 8: width pays more.")
    crossed = depth_or_width(grid(lambda d, w: 200.0 + (30 if w == 8 else -30) * d), ELBO)
    assert "depth pays here and costs there" in crossed
    even = depth_or_width(grid(lambda d, w: 200.0 + 30 * d + (30 if w == 64 else 0)), ELBO)
    assert even.endswith("1 × 64 against 2 × 8: not decided.")


def test_encoder_or_decoder():
    def found(encoder: float, decoder: float) -> str:
        points = [
            point(0, 0, test__elbo=around(200.0), oracle__test_elbo=around(210.0)),
            point(3, 8, ENCODER_ALONE, test__elbo=around(encoder)),
            point(3, 8, DECODER_ALONE, test__elbo=around(decoder)),
            point(3, 8, test__elbo=around(270.0)),
        ]
        return encoder_or_decoder(compared(points), ELBO)

    text = found(210.0, 260.0)
    assert "the encoder alone pays, +10.00 ± 0.32; the decoder alone pays, +60.00 ± 0.32" in text
    assert "the decoder is worth more at each of them; both together +70.00 ± 0.32" in text
    assert text.endswith("whose test ELBO is 210.0.")
    assert "the encoder is worth more" in found(260.0, 210.0)
    assert "which of the two is worth more is not decided" in found(260.0, 260.1)


def test_overfitting_begins_at_the_smallest_that_shows_it():
    def found(excess: tuple[float, ...], train: tuple[float, ...], test: tuple[float, ...]):
        rows = zip((0, 1, 2, 3), excess, train, test, strict=True)
        return compared(
            [
                point(d, 8, overfit=around(e), train__elbo=around(a), test__elbo=around(b))
                for d, e, a, b in rows
            ]
        )

    rising = (200.0, 210.0, 220.0, 230.0)
    harmless = overfitting(found((0.0, 0.05, 6.0, 20.0), rising, rising))
    assert harmless[0].startswith("Train − test ELBO is above the linear networks' from 2 × 8")
    assert "by 6.00 ± 0.32 nats there and by up to 20.00 ± 0.32 at 3 × 8" in harmless[0]
    assert harmless[1].startswith("It costs nothing yet")
    costly = overfitting(found((0.0, 0.05, 6.0, 20.0), rising, (200.0, 210.0, 210.0, 205.0)))
    assert costly[1].endswith("rises from 1 × 8 to 3 × 8 and from 2 × 8 to 3 × 8.")
    assert overfitting(found((0.0,) * 4, rising, rising))[0].startswith(
        "Where it begins is not decided"
    )
    falling = found((0.0,) * 4, (200.0, 230.0, 220.0, 190.0), (200.0, 230.0, 220.0, 190.0))
    assert "2 × 8 than 1 × 8" in trained_too_little(falling)[0]
    assert trained_too_little(found((0.0,) * 4, rising, rising)) == []
    assert OVERFIT in falling.measures
    assert TRAIN in falling.measures


def test_numbers_have_the_digits_of_their_errors():
    assert with_error(281.6149, 0.3456) == "281.61 ± 0.35"
    assert with_error(635.7, 7.6) == "635.7 ± 7.6"
    assert with_error(-213.4, 18.3, "+") == "−213 ± 18"
    assert with_error(0.94441, 0.0036) == "0.9444 ± 0.0036"
    assert with_error(3.5, None) == "3.5"


# --- from folders ---------------------------------------------------------------------------------


def write_study(folder: Path, runs: list[list[str]]) -> Path:
    """Finished runs with these overrides, without networks."""
    for i, overrides in enumerate(runs):
        run = folder / str(i)
        write_run(run, composed(*overrides), overrides, 100.0 + i)
        sizes = {"model/encoder_parameters": 1000 * (i + 1), "model/decoder_parameters": 1}
        metrics = json.loads((run / "metrics.json").read_text()) | sizes
        (run / "metrics.json").write_text(json.dumps(metrics))
        (run / "checkpoints").mkdir()
        (run / "checkpoints" / "best.ckpt").touch()
    return folder


def test_points_by_architecture_and_seed(tmp_path: Path):
    """One architecture under two names is one point; a seed counts once."""
    runs = [
        ["model=baseline", "seed=0"],
        ["model=baseline", "seed=1"],
        ["model=mlp", "model.depth=0", "seed=0"],
        ["model=mlp_2x64", "seed=0"],
        ["model=mlp", "model.width=64", "model.decoder.depth=0", "seed=0"],
        ["model=conv", "seed=0"],
    ]
    points = read_points(str(write_study(tmp_path, runs)))
    assert {p.name: len(p.folders) for p in points} == {
        "linear": 2,
        "2 × 64": 1,
        "encoder 2 × 64": 1,
        "conv": 1,
    }


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (["model=deep", "model.sigma=0.5"], r"model\.sigma differs: 0\.25, 0\.5"),
        (["model=deep", "trainer.max_epochs=7"], r"trainer\.max_epochs differs: 30, 7"),
    ],
)
def test_runs_that_differ_in_more_than_their_networks_are_refused(
    tmp_path: Path, overrides: list[str], problem: str
):
    write_study(tmp_path, [["model=baseline"], overrides])
    with pytest.raises(UserError, match=problem):
        read_points(str(tmp_path))


def test_one_size_with_two_activations_is_no_single_architecture(tmp_path: Path):
    relu = ["model.encoder.activation=relu", "seed=1"]
    write_study(tmp_path, [["model=baseline"], ["model=mlp_1x64"], ["model=mlp_1x64", *relu]])
    with pytest.raises(UserError, match=r"encoder\.activation differs at 1 × 64: relu, silu"):
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
    sentences = [sentence for texts in content["verdict"].values() for sentence in texts]
    measures = {key for point in content["points"] for key in point["metrics"]}
    assert {"samples/fid", "bound/log_p", "gap/total", "refit/test_elbo"} <= measures
    assert measures <= {measure.key for measure in MEASURES}
    for width in (1300, 390):
        shown = open_page(page, width)
        said = [
            text.replace("\xa0", " ") for text in shown.locator("#verdict dd p").all_inner_texts()
        ]
        assert said == sentences
        assert shown.locator("#charts img").count() == len(measures)
        assert shown.locator("#ladder img").count() == 1 + 2 * 3


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
