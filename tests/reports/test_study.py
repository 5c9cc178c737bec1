"""The study: sentences follow from metrics and errors; a tiny one from command to page."""

import base64
import json
import re
from pathlib import Path

import pytest
from conftest import ROOT, composed, run_vae, settings
from study_points import architecture, around, compared, grid

from vae.compare import compare
from vae.evaluate import evaluate
from vae.reports.study.charts import measure_chart
from vae.reports.study.comparisons import Comparisons
from vae.reports.study.effects import depth_or_width, encoder_or_decoder
from vae.reports.study.fitting import overfitting, trained_too_little
from vae.reports.study.measures import ELBO, MEASURES, OVERFIT, SAMPLES, TRAIN
from vae.reports.study.page import better
from vae.reports.study.sizes import DECODER_ALONE, ENCODER_ALONE
from vae.reports.study.verdict import growth_sentence, other_networks, verdict, without_limit
from vae.reports.study.words import with_error
from vae.reports.study.write import as_json

# --- what the sentences say -----------------------------------------------------------------------


def test_a_measure_that_grows():
    found = grid(lambda d, w: 200.0 + (50.0 if d else 0.0) + (0.2 if (d, w) == (2, 8) else 0.0))
    assert growth_sentence(found, ELBO) == (
        "test ELBO: 200.00 ± 0.20 at linear (200 parameters); 4 of 4 sizes are better than linear, "
        "by the mean best 250.20 ± 0.20 at 2 × 8 (2,800 parameters)."
    )
    assert verdict(found)["Does it grow with complexity?"][0] == (
        "Networks with hidden layers are better than linear at some sizes and worse at none by "
        "test ELBO."
    )
    line = "No planned comparison by test ELBO decides between 2 × 8, 1 × 8 and 2 × 64."
    assert line in verdict(found)["Not decided"]


def test_a_measure_that_falls():
    text = growth_sentence(grid(lambda d, w: 200.0 - 50.0 * d), ELBO)
    assert "4 of 4 sizes are worse than linear and none is better" in text
    assert "by the mean worst 100.00" in text


def test_one_that_rises_and_falls():
    means = {0: 200.0, 1: 300.0, 2: 100.0}
    found = grid(lambda d, w: 200.0 if (d, w) == (2, 8) else means[d] + w * (d == 1))
    assert growth_sentence(found, ELBO) == (
        "test ELBO: 200.00 ± 0.20 at linear (200 parameters); 1 × 8 and 1 × 64 are better than "
        "linear, by the mean best 364.00 ± 0.20 at 1 × 64 (13,100 parameters); 2 × 64 is worse, "
        "100.00 ± 0.20; 2 × 8 is not decided."
    )


def test_lower_is_better_for_distances_and_one_half_for_the_nearest_neighbour():
    fid = grid(lambda d, w: 300.0 - 100.0 * d, "samples__fid")
    assert "best 100.00" in growth_sentence(fid, SAMPLES[0])
    (nearest,) = [m for m in SAMPLES if m.key == "samples/nn_real"]
    found = compared(
        [
            architecture(0, 0, samples__nn_real=(99.0, 99.1, 99.2)),
            architecture(1, 8, samples__nn_real=(0.5, 0.4, 0.6)),
            architecture(1, 64, samples__nn_real=(-60.0, -60.1, -59.9)),
        ]
    )
    signs = {
        p.name: found.sign(nearest, found.architectures[0], p) for p in found.architectures[1:]
    }
    assert signs == {"1 × 8": 1, "1 × 64": 1}


@pytest.mark.parametrize("key", ["samples/precision", "samples/density"])
def test_precision_and_density_are_best_at_what_training_images_score(key: str):
    """As on a comparison's page: 0.90 of 0.90 is perfect, and 0.99 is that of a few easy images."""
    (measure,) = [m for m in SAMPLES if m.key == key]
    name = key.replace("/", "__")

    def found(*means: float, floor: float | None = 0.9) -> Comparisons:
        floors = {} if floor is None else {f"{name}_floor": (floor,) * 3}
        return compared(
            [
                architecture(d, 8, error=0.001, **{name: around(mean, 0.001)}, **floors)
                for d, mean in enumerate(means)
            ]
        )

    judged = found(0.99, 0.90, 0.80, 0.70)
    linear, *others = judged.architectures
    assert [judged.sign(measure, linear, each) for each in others] == [1, -1, -1]
    assert judged.find(measure, linear, others[0]).difference.mean == pytest.approx(-0.09)
    assert growth_sentence(judged, measure) == (
        f"{measure.title} (best at 0.9, what training images score): 0.9900 ± 0.0010 at linear "
        "(1,000 parameters); 1 × 8 is better than linear, 0.9000 ± 0.0010; 2 × 8 and 3 × 8 are "
        "worse, by the mean worst 0.7000 ± 0.0010 at 3 × 8 (3,700 parameters)."
    )
    assert better(judged, measure) == "best at 0.9"
    assert as_json(judged, {})["targets"] == {key: pytest.approx(0.9)}
    plain = found(0.99, 0.90, floor=None)  # an evaluation without a floor: the more the better
    assert plain.sign(measure, *plain.architectures) == -1
    assert better(plain, measure) == "higher is better"


def test_every_step_in_depth_and_width_is_judged():
    means = {(0, 0): 200.0, (1, 8): 220.0, (1, 64): 240.0, (2, 8): 210.0, (2, 64): 240.1}
    depth, width = depth_or_width(grid(lambda d, w: means[d, w]), ELBO)
    assert depth == (
        "test ELBO, depth: 0 → 1 hidden layers pays at 8 and 64 units (+20.00 ± 0.32 and "
        "+40.00 ± 0.32); 1 → 2 hidden layers costs at 8 units (−10.00 ± 0.32), is not decided at "
        "64 (+0.10 ± 0.32)."
    )
    assert width == (
        "test ELBO, width: 8 → 64 units pays at 1 and 2 hidden layers (+20.00 ± 0.32 and "
        "+30.10 ± 0.32)."
    )
    distances = depth_or_width(grid(lambda d, w: 300.0 - 100.0 * d, "samples__fid"), SAMPLES[0])
    assert "0 → 1 hidden layers pays at 8 and 64 units (−100.00" in distances[0]


def test_three_depths_pay_first_and_cost_then():
    """A rise and a fall of one width is no draw between its ends."""
    elbo = (200.0, 250.0, 260.0, 250.0)
    found = compared([architecture(d, 64, test__elbo=around(elbo[d])) for d in range(4)])
    (depth,) = depth_or_width(found, ELBO)
    assert "1 → 2 hidden layers pays at 64 units (+10.00" in depth
    assert "2 → 3 hidden layers costs at 64 units (−10.00" in depth


def test_other_networks_are_held_against_the_sizes_with_more_parameters():
    sizes = {(0, 0): 200.0, (1, 8): 210.0, (1, 64): 250.0, (2, 64): 270.0}
    architectures = [architecture(d, w, test__elbo=around(mean)) for (d, w), mean in sizes.items()]
    architectures.append(architecture(1, 16, "conv", test__elbo=around(260.0)))
    (text,) = other_networks(compared(architectures), [ELBO])
    assert text == (
        "conv 1 × 16 (3,500 parameters) against the fully connected sizes with more: by test ELBO "
        "(260.00 ± 0.20) better than 1 × 64, worse than 2 × 64."
    )


@pytest.mark.parametrize(
    ("width", "against"),
    [
        (15, "the fully connected sizes with more"),
        (16, "the fully connected sizes with as many or more"),
        (17, "the largest fully connected size, with fewer parameters"),
    ],
)
def test_other_networks_name_what_they_are_held_against(width: int, against: str):
    found = [architecture(d, 16, test__elbo=around(200.0 + 10 * d)) for d in (0, 1)]
    found.append(architecture(1, width, "conv", test__elbo=around(260.0)))
    (text,) = other_networks(compared(found), [ELBO])
    values = "by test ELBO (260.00 ± 0.20) better than 1 × 16"
    assert text.endswith(f" parameters) against {against}: {values}.")


def test_a_chain_without_a_limit_may_have_stayed_finite():
    """ρ ≥ 1 with finite chains is another thing than chains that left the finite numbers."""
    endless = architecture(1, 8, chain__finite=(0.0, 0.0, 1.0), chain__has_limit=(0.0,) * 3)
    finite = architecture(0, 0, chain__finite=(1.0,) * 3, chain__has_limit=(0.0, 1.0, 1.0))
    assert without_limit([finite, endless]) == [
        "The chain decode → encode leaves the finite numbers, without a limit: 1 × 8 (2 of 3 "
        "trainings).",
        "No stationary distribution of the chain decode → encode was found: linear (1 of 3 "
        "trainings) and 1 × 8 (1 of 3 trainings).",
    ]
    assert without_limit([architecture(0, 0, chain__has_limit=(1.0, None))]) == []


def test_encoder_or_decoder():
    def found(encoder: float, decoder: float) -> str:
        architectures = [
            architecture(0, 0, test__elbo=around(200.0), oracle__test_elbo=around(210.0)),
            architecture(3, 8, ENCODER_ALONE, test__elbo=around(encoder)),
            architecture(3, 8, DECODER_ALONE, test__elbo=around(decoder)),
            architecture(3, 8, test__elbo=around(270.0)),
        ]
        return encoder_or_decoder(compared(architectures), ELBO)

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
                architecture(d, 8, overfit=around(e), train__elbo=around(a), test__elbo=around(b))
                for d, e, a, b in rows
            ]
        )

    rising = (200.0, 210.0, 220.0, 230.0)
    harmless = overfitting(found((0.0, 0.05, 6.0, 20.0), rising, rising))
    assert harmless[0] == (
        "Train − test ELBO is above the linear networks' from 2 × 8 (2,800 parameters) on, by "
        "6.00 ± 0.32 nats there and by up to 20.00 ± 0.32 at 3 × 8. Its error counts trainings and "
        "the images of both splits, not paired between architectures, so it is an upper bound."
    )
    assert harmless[1].startswith("No step in depth or width is decided to raise training ELBO")
    costly = overfitting(found((0.0, 0.05, 6.0, 20.0), rising, (200.0, 210.0, 210.0, 200.0)))
    assert costly[1].endswith("rises from 2 × 8 to 3 × 8.")
    assert overfitting(found((0.0,) * 4, rising, rising))[0].startswith(
        "Where it begins is not decided"
    )
    falling = found((0.0,) * 4, (200.0, 230.0, 220.0, 190.0), (200.0, 230.0, 220.0, 190.0))
    assert trained_too_little(falling) == [
        "Lower on training images too are 2 × 8 than 1 × 8 and 3 × 8 than 2 × 8, though the larger "
        "contains the smaller: that is training, which has not found what the larger networks can "
        "represent, and no over-fitting."
    ]
    assert trained_too_little(found((0.0,) * 4, rising, rising)) == []
    assert OVERFIT in falling.measures
    assert TRAIN in falling.measures


def test_hidden_layers_contain_no_linear_network():
    """Eight units cannot carry 32 latents, and the output is another."""
    elbo = (200.0, 190.0, 180.0)
    means = [{"train__elbo": around(each), "test__elbo": around(each)} for each in elbo]
    found = compared([architecture(d, 8, **means[d]) for d in range(3)])
    deeper, wider = trained_too_little(found)
    assert deeper.startswith("Lower on training images too is 2 × 8 than 1 × 8, though the larger")
    assert wider == "Lower on training images too is 1 × 8 than linear: that is no over-fitting."


def test_overfitting_is_claimed_beyond_the_error_over_images_alone():
    """1.5 nats over trainings that hardly spread: decided with images known, not with 0.3 nats."""

    def first(error: float) -> str:
        overfit = {d: around(1.5 * d, 0.05) for d in (0, 1)}
        architectures = [architecture(d, 8, error=error, overfit=overfit[d]) for d in (0, 1)]
        return overfitting(compared(architectures))[0]

    assert first(0.01).startswith("Train − test ELBO is above the linear networks' from 1 × 8")
    assert first(0.5).startswith("Where it begins is not decided")


def test_the_axis_of_a_chart_has_numbers_and_no_formulas():
    found = grid(lambda d, w: 200.0 + d)
    source = measure_chart(found.architectures, ELBO).removeprefix("data:image/svg+xml;base64,")
    text = base64.b64decode(source).decode()
    assert ">1,000<" in text
    assert "mathdefault" not in text


def test_numbers_have_the_digits_of_their_errors():
    assert with_error(281.6149, 0.3456) == "281.61 ± 0.35"
    assert with_error(635.7, 7.6) == "635.7 ± 7.6"
    assert with_error(-213.4, 18.3, "+") == "−213 ± 18"
    assert with_error(0.94441, 0.0036) == "0.9444 ± 0.0036"
    assert with_error(3.5, None) == "3.5"


# --- from folders ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_tiny_study_from_command_to_page(tmp_path: Path, open_page):
    """Three architectures, two seeds each; the page in a real browser, on two widths."""
    sweep = ["model=baseline,mlp_1x64,mlp_2x64", "seed=0,1", f"hydra.sweep.dir={tmp_path / 's'}"]
    short = ["data=digits", "trainer.max_epochs=3", "trainer.accelerator=cpu", "callbacks=none"]
    done = run_vae("train", "-m", *sweep, *short)
    assert done.returncode == 0, done.stderr
    quick = ["iwae.images=0", "chain.chains=20", "chain.steps=100", "samples.n=100"]
    quick += ["gap.images=4", "gap.steps=20", "gap.K=10", "ppc.images=0", "classifier.epochs=1"]
    evaluate(composed("evaluate", f"runs={tmp_path / 's'}", *quick))
    page = compare(
        composed("compare", f"runs={tmp_path / 's'}", "page=study", f"out={tmp_path / 'out'}")
    )
    content = json.loads((tmp_path / "out" / "study.json").read_text())
    assert [p["name"] for p in content["points"]] == ["linear", "1 × 64", "2 × 64"]
    assert {p["metrics"]["test/elbo"]["trainings"] for p in content["points"]} == {2}
    assert (tmp_path / "out" / "study.md").read_text().count("\n") == 5
    sentences = [sentence for texts in content["verdict"].values() for sentence in texts]
    measures = {key for each in content["points"] for key in each["metrics"]}
    assert {"samples/fid", "bound/log_p", "gap/total", "refit/test_elbo"} <= measures
    assert measures <= {measure.key for measure in MEASURES}
    for width in (1300, 390):
        shown = open_page(page, width)
        shown_sentences = [
            text.replace("\xa0", " ") for text in shown.locator("#verdict dd p").all_inner_texts()
        ]
        assert shown_sentences == sentences
        assert shown.locator("#charts img").count() == len(measures)
        assert shown.locator("#ladder img").count() == 1 + 2 * 3


def test_every_model_of_the_ladder_has_its_size():
    """The experiment sweeps depth 1 to 3 at widths 64, 256 and 1024."""
    names = re.findall(r"mlp_\dx\d+", (ROOT / "conf/experiment/complexity.yaml").read_text())
    assert sorted(names) == sorted(f"mlp_{d}x{w}" for d in (1, 2, 3) for w in (64, 256, 1024))
    for name in names:
        config = settings(f"model={name}")
        depth, width = map(int, name.removeprefix("mlp_").split("x"))
        assert (config.model.depth, config.model.width) == (depth, width)
        for part in (config.model.encoder, config.model.decoder):
            assert (part.depth, part.width) == (depth, width)
