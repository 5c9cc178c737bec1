"""The error of one difference between two architectures: trainings, and images that both share."""

import json
import math
from pathlib import Path

import pytest
import torch
from study_points import architecture, around, compared

from vae.analysis.bounds import ControlVariate, control_variate
from vae.models import VAE, Decoder, Encoder
from vae.reports.comparison.statistics import Difference, Measured, difference, two_sided_p
from vae.reports.evaluation.checks import gap
from vae.reports.evaluation.likelihood import all_images, subset
from vae.reports.evaluation.metrics import means
from vae.reports.study.comparisons import typical_variance
from vae.reports.study.ladder import evaluation_metrics, gap_metrics
from vae.reports.study.measures import ELBO, GAP, LOG_P, LOG_P_SLOPE, OVERFIT, SAMPLES
from vae.reports.sweep.runs import SweepRun


def test_the_typical_variance_is_that_of_normal_trainings_and_minds_no_outlier():
    torch.manual_seed(0)
    variances = (5 * torch.randn(400, 3, dtype=torch.float64)).var(-1)
    trainings = torch.full((420,), 3.0)
    assert typical_variance(variances, trainings[:400]).item() == pytest.approx(25, rel=0.15)
    wild = torch.cat([variances, torch.full((20,), 1e12)])
    assert typical_variance(wild, trainings).item() == pytest.approx(25, rel=0.25)


def test_a_small_variance_counts_as_the_typical_one_and_a_large_one_as_itself():
    lucky, wide = Measured(3.0, None, 1e-6, 3), Measured(3.0, None, 10.0, 3)
    found = difference(Measured(0.0, None, 1.0, 3), lucky, least_variance=3.0)
    assert found.se == pytest.approx(2**0.5)
    assert found.p == pytest.approx(two_sided_p(3 / 2**0.5, 4))  # no more than its own trainings
    assert difference(lucky, wide, least_variance=3.0).se == pytest.approx((103 / 3) ** 0.5)


def test_errors_over_shared_images_are_paired():
    architectures = [
        architecture(0, 0, test__elbo=around(200.0)),
        architecture(1, 8, test__elbo=around(200.0)),
    ]
    values = torch.randn(100, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    shared = {ELBO.key: {each.name: values for each in architectures}}
    alone, paired = compared(architectures), compared(architectures, per_image=shared)
    errors = [found.find(ELBO, *architectures).difference.se for found in (alone, paired)]
    assert errors[0] ** 2 - errors[1] ** 2 == pytest.approx(2 * 0.1**2)


def bounds(elbo: torch.Tensor, log_p: torch.Tensor, n: int) -> list[ControlVariate]:
    """log p of two models, [2, N] each, regressed on the ELBO of all from the first n images."""
    order = torch.arange(elbo.shape[1])
    return [control_variate(elbo[i], order, (elbo[i, :n], log_p[i, :n])) for i in (0, 1)]


def draw(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """ELBOs that go together, and a log p that has half of their spread; [2, 500] each."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(5, 500, generator=generator, dtype=torch.float64)
    elbo = 200 + 50 * noise[0] + 20 * noise[1:3]
    return elbo, 100 + 0.55 * elbo + 25 * noise[3:]


def of_bounds(seed: int, keeps_slope: bool = True) -> tuple[float, float]:
    """The error of the difference of two bounds as a study has it, and their difference."""
    elbo, log_p = draw(seed)
    found = []
    for d, one in enumerate(bounds(elbo, log_p, 100)):
        each = architecture(d, 8, bound__log_p=(one.mean,) * 3, test__elbo=around(200.0))
        for metrics in each.metrics:
            metrics |= {"bound/log_p_se": one.se, "test/elbo_se": elbo[d].std().item() / 500**0.5}
            metrics |= {LOG_P_SLOPE: one.slope} if keeps_slope else {}
        found.append(each)
    per_image = {ELBO.key: {each.name: elbo[d] for d, each in enumerate(found)}}
    comparison = compared(found, per_image=per_image).find(LOG_P, *found)
    return comparison.difference.estimate_se, comparison.difference.mean


def test_bounds_on_log_p_share_the_elbos_of_all_images_times_both_slopes():
    """The error of many studies against the spread of their differences; all of the ELBO's
    covariance taken off would leave none."""
    errors, differences = zip(*(of_bounds(seed) for seed in range(300)), strict=True)
    spread = torch.tensor(differences).std().item()
    assert sum(errors) / 300 == pytest.approx(spread, rel=0.1)
    unpaired, _ = of_bounds(0, keeps_slope=False)
    assert unpaired == pytest.approx(math.hypot(*(one.se for one in bounds(*draw(0), 100))))
    assert unpaired > 1.1 * errors[0]


def test_the_slope_over_two_levels_is_the_product_of_both():
    elbo, log_p = draw(0)
    (one, _) = bounds(elbo, log_p, 100)
    assert one.slope == pytest.approx(0.55, abs=0.1)
    order, tight = torch.arange(500), 3 + 0.8 * log_p[0]
    levels = (elbo[0, :100], log_p[0, :100]), (log_p[0, :30], tight[:30])
    assert control_variate(elbo[0], order, *levels).slope == pytest.approx(0.8 * one.slope)
    assert control_variate(elbo[0], order, (elbo[0, :10], log_p[0, :10])).slope == 1


def test_an_evaluation_keeps_the_slope():
    elbo, log_p = draw(0)
    images = torch.zeros(500, 1)
    exact = {"test/elbo": elbo[0], "exact/elbo": elbo[0], "exact/log_p": log_p[0]}
    covariance, variance = torch.cov(torch.stack([elbo[0], log_p[0]]))[0, [1, 0]].tolist()
    assert all_images(exact, {}, images)[LOG_P_SLOPE] == pytest.approx(covariance / variance)
    chosen = subset(images, 100)
    some = {"test/elbo": elbo[0], "iwae/elbo": elbo[0, chosen], "iwae/K=5": log_p[0, chosen]}
    found = all_images(some, {"iwae/K": [5], "iwae/K=5_ess": 2.0}, images)
    levels = elbo[0, chosen], log_p[0, chosen]
    assert found[LOG_P_SLOPE] == control_variate(elbo[0], chosen, levels).slope
    assert all_images({"test/elbo": elbo[0]}, {}, images)[LOG_P_SLOPE] == pytest.approx(1)


def test_over_fitting_counts_the_images_of_both_splits():
    """Two parts, each paired over its own images; without values of images their sum, unpaired."""
    keys = ("overfit", "overfit__train", "overfit__test")
    architectures = [
        architecture(d, 8, error=0.3, **{key: around(4.0 * d, 0.01) for key in keys})
        for d in (0, 1)
    ]
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(2, 400, dtype=torch.float64, generator=generator)
    parts = ("overfit/train", "overfit/test")
    shared = {part: {p.name: values[i] for p in architectures} for i, part in enumerate(parts)}
    alone, paired = (
        compared(architectures, per_image=each).find(OVERFIT, *architectures).difference
        for each in ({}, shared)
    )
    trainings = 2 * (0.01 * 0.3) ** 2 / 3 / (1 - 1 / 9) ** 3
    assert alone.se**2 == pytest.approx(2 * 0.3**2 + trainings)
    assert paired.se**2 == pytest.approx(trainings)  # alike on every image: nothing of them is left
    opposite = {
        part: {p.name: (1 - 2 * i) * each[p.name] for i, p in enumerate(architectures)}
        for part, each in shared.items()
    }
    found = compared(architectures, per_image=opposite).find(OVERFIT, *architectures).difference
    assert found.se**2 == pytest.approx(2 * 0.3**2 + 2 * 2 * 0.3**2 + trainings)


@pytest.mark.parametrize(("mean", "twice"), [(0.8, 0.04), (0.95, 0.0)])
def test_the_error_of_what_training_images_score_counts_between_both_sides_of_it(
    mean: float, twice: float
):
    """0.99 and 0.8 lie on both sides of 0.9 ± 0.02; of 0.95 and 0.99 it cancels."""
    (measure,) = [each for each in SAMPLES if each.key == "samples/precision"]
    found = [
        architecture(
            d, 8, error=0.02, samples__precision=(value,) * 3, samples__precision_floor=(0.9,) * 3
        )
        for d, value in enumerate((0.99, mean))
    ]
    error = compared(found).find(measure, *found).difference.estimate_se
    assert error == pytest.approx(math.hypot(0.02, 0.02, twice))


# --- few images -----------------------------------------------------------------------------------


def gaps(mean: float, images: int | None = None) -> tuple[Difference, float]:
    """From a gap of 5 ± 0.1 nats over 10,000 images to another ± 1 over fewer; trainings hardly
    differ."""
    found = []
    for d, total, error, n in ((0, 5.0, 0.1, 10_000), (1, mean, 1.0, images)):
        each = architecture(d, 8, error=error, gap__total=around(total, 1e-9))
        for metrics in each.metrics:
            metrics["gap/images"] = n if images else None
        found.append(each)
    difference = compared(found).find(GAP, *found).difference
    return difference, difference.mean / difference.se


def test_an_error_over_few_images_has_their_degrees_of_freedom():
    """At 4.4 standard errors the normal law has p = 1.1e-5, Student's with 31 ten times that."""
    mean = 5 + 4.4 * math.hypot(0.1, 1)
    few, t = gaps(mean, 32)
    assert t == pytest.approx(4.4)
    # Welch and Satterthwaite: 0.1² has 9,999 and 1² has 31
    freedom = 1.01**2 / (0.01**2 / 9999 + 1 / 31)
    assert few.p == pytest.approx(two_sided_p(4.4, freedom))
    assert few.p == pytest.approx(1.1e-4, rel=0.1)
    unknown, _ = gaps(mean)
    assert unknown.p == pytest.approx(1.1e-5, rel=0.05)


def test_only_the_part_of_a_bound_from_some_images_has_few_degrees_of_freedom():
    def p(subset: float | None, n: int) -> float:
        """Of bounds 40 nats apart with an error of 10 each; the covariance leaves the parts."""
        found = []
        for d in (0, 1):
            each = architecture(d, 8, error=10.0, bound__log_p=around(200.0 + 40 * d, 1e-9))
            for metrics in each.metrics:
                metrics |= {"bound/images": n}
                metrics |= {} if subset is None else {"bound/log_p_subset_se": subset}
            found.append(each)
        return compared(found).find(LOG_P, *found).difference.p

    t = 40 / 200**0.5
    assert p(None, 32) == p(0.0, 32) == two_sided_p(t, math.inf)
    assert p(10.0, 32) == pytest.approx(two_sided_p(t, 60))
    assert p(8.0, 32) == pytest.approx(two_sided_p(t, 200**2 / (2 * 64**2 / 30)))
    assert math.isfinite(p(10.0, 2))


def test_the_gap_is_of_single_images_or_bounded_by_its_parts(tmp_path: Path):
    parts = {"gap/approximation": 2.0, "gap/amortisation": 3.0}
    errors = {"gap/approximation_se": 0.3, "gap/amortisation_se": 0.4}
    assert gap_metrics(parts | errors) == {"gap/total": 5.0, "gap/total_se": pytest.approx(0.7)}
    assert gap_metrics(parts | {"gap/approximation_se": 0.3}) == {"gap/total": 5.0}
    assert gap_metrics({"gap/approximation": 2.0}) == {}
    kept = {"gap/total": 5.0, "gap/total_se": 0.1}
    (tmp_path / "evaluation.json").write_text(json.dumps(parts | errors | kept))
    run = SweepRun("", "finished", [], {}, [], {}, {})
    assert evaluation_metrics(tmp_path, run).items() >= kept.items()


def test_an_evaluation_keeps_the_error_of_the_gap_image_by_image():
    torch.manual_seed(0)
    shape = (1, 2, 2)
    model = VAE(
        Encoder(2, image_shape=shape), Decoder(2, image_shape=shape), 2, 0.5, image_shape=shape
    )
    images = torch.rand(50, *shape)
    values, metrics = gap(model, images, {"gap": {"images": 5}, "batch_size": 20, "seed": 0})
    total = values["gap/log_p"] - values["gap/elbo"]
    assert metrics["gap/images"] == len(total) == 50
    found = means(values)
    assert found["gap/total"] == pytest.approx(total.mean().item())
    assert found["gap/total_se"] == pytest.approx(total.std().item() / 50**0.5)
