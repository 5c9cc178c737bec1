"""Each sentence of the comparison follows from metrics and their errors."""

import copy
import dataclasses
import math
from typing import Any

import pytest
import torch
from comparison_runs import (
    changed,
    entries,
    entry,
    evaluated,
    folders,
)

from vae.analysis.chain import ChainTrace, prior_latents, simulate
from vae.analysis.limit import Limit, Mixing
from vae.models.likelihoods import Gaussian
from vae.reports.comparison import cautions, chain_verdict, verdict
from vae.reports.comparison.entries import Entry
from vae.reports.comparison.likelihood_verdict import log_likelihood
from vae.reports.comparison.measure import Training
from vae.reports.comparison.sample_verdict import samples
from vae.runs.folder import load_run


@pytest.fixture
def baseline(entries: list[Entry]) -> Training:
    return entries[0].first


@pytest.fixture
def deep(entries: list[Entry]) -> Training:
    return dataclasses.replace(entries[1].first, evaluation={})


# --- ELBO -------------------------------------------------------------------------------------


def test_elbo_names_the_higher_one_and_its_error(baseline: Training, deep: Training) -> None:
    a, b = entry("A", baseline, {"test__elbo": 50.0}), entry("B", deep, {"test__elbo": 10.0})
    assert verdict.elbo([a, b])[0].startswith("A has the higher test ELBO: 50.00 ±")
    b = entry("B", deep, {"test__elbo": 90.0})
    text = verdict.elbo([a, b])[0]
    assert text.startswith("B has the higher test ELBO: 90.00 ±")
    assert "the paired difference is 40.00 ±" in text
    assert "standard error over the test images; one training each" in text


def test_elbo_within_its_error_is_no_difference(baseline: Training, deep: Training) -> None:
    a, b = entry("A", baseline, {"test__elbo": 10.0}), entry("B", deep, {"test__elbo": 10.01})
    assert "cannot be told apart by test ELBO" in verdict.elbo([a, b])[0]


def test_trainings_that_scatter_make_no_difference(baseline: Training) -> None:
    """The same two means: claimed where trainings agree, not where they scatter."""

    def text(*spread: float) -> str:
        a, b = (
            entry(name, baseline, *({"test__elbo": mean + s} for s in spread))
            for name, mean in (("A", 10.0), ("B", 20.0))
        )
        return verdict.elbo([a, b])[0]

    assert text(-0.1, 0.0, 0.1).startswith("B has the higher test ELBO: 20.00 ±")
    assert "(sd over 3 trainings 0.10)" in text(-0.1, 0.0, 0.1)
    assert "standard error over 3 trainings each and over the test images" in text(-0.1, 0.0, 0.1)
    assert "cannot be told apart" in text(-9.0, 0.0, 9.0)


def test_a_gain_of_the_networks_is_judged_on_test_images(deep: Training) -> None:
    above = entry("B", deep, {"test__over_linear": 70.0, "train__over_linear": -3.0})
    assert verdict.against_linear(above).endswith("on test images: a gain of the networks.")
    assert "B is 70.00 ±" in verdict.against_linear(above)
    below = entry("B", deep, {"test__over_linear": -70.0, "train__over_linear": 3.0})
    assert "B ends 70.00 ±" in verdict.against_linear(below)
    assert "trained too little" in verdict.against_linear(below)
    equal = entry("B", deep, {"test__over_linear": 0.01})
    assert "cannot be told from the linear encoder and decoder" in verdict.against_linear(equal)
    label = f"best on the training images ({deep.metrics['oracle/test_elbo']:.2f})"
    assert label in verdict.against_linear(above)


def test_a_linear_model_above_its_optimum_is_an_alarm(baseline: Training) -> None:
    sound = verdict.against_linear(entry("A", baseline))
    assert "below its closed-form optimum" in sound
    assert "wrong" not in sound
    per_image = baseline.per_image | {
        "train/over_linear": baseline.per_image["train/over_linear"] * 0 + 0.05
    }
    metrics = {"train/over_linear": 0.05, "train/over_linear_se": 0.001}
    broken = dataclasses.replace(baseline, per_image=per_image, metrics=baseline.metrics | metrics)
    text = verdict.against_linear(Entry("A", [baseline, broken]))
    assert "A training lies 0.05 ± 0.00 nats above it, paired on the same images" in text
    assert "something is wrong" in text


def test_no_trained_linear_model_is_above_its_optimum(baseline: Training) -> None:
    """The excess with the expectation over z done exactly is negative whatever the noise."""
    assert baseline.metrics["train/over_linear"] < 0
    assert not verdict.beats_optimum(baseline.metrics)


# --- sigma ------------------------------------------------------------------------------------


def test_the_size_of_a_gap_belongs_to_its_sigma(entries: list[Entry]) -> None:
    first, gap, *optimum = verdict.sigma(entries)
    assert "sigma refitted on validation images and the networks unchanged" in first
    for each in entries:
        assert f"{each.mean('test/refit_elbo'):.2f}" in first
        assert f"(sigma {each.mean('refit/sigma'):.3f})" in first
    difference = entries[1].mean("test/refit_elbo") - entries[0].mean("test/refit_elbo")
    assert f"{abs(difference):.2f} ±" in gap
    assert "at sigma 0.25 and" in gap
    assert gap.endswith("the size of a gap belongs to its sigma.")
    assert f"{entries[0].mean('refit/oracle_test_elbo'):.1f} on test images" in optimum[0]


def test_a_gap_that_vanishes_or_turns_round_is_stated(baseline: Training) -> None:
    def text(**of_b: float) -> str:
        a = entry("A", baseline, {"test__elbo": 0.0, "test__refit_elbo": 0.0})
        return verdict.sigma([a, entry("B", baseline, of_b)])[1]

    equal = text(test__elbo=9.0, test__refit_elbo=0.0)
    assert "cannot be told from zero at the refitted ones" in equal
    assert "turns round to 5.00" in text(test__elbo=9.0, test__refit_elbo=-5.0)


# --- latents and samples ----------------------------------------------------------------------


def test_latents_in_use(baseline: Training, deep: Training) -> None:
    assert "A uses 5 of 8" in verdict.latents(entry("A", baseline, {"test__collapsed": 3.0}))
    grouped = entry("A", deep, {"test__collapsed": 3.0}, {"test__collapsed": 4.0})
    assert "A uses 4.5 of 8" in verdict.latents(grouped)
    assert "mean of 2 trainings, sd 0.7" in verdict.latents(grouped)


def test_samples_are_judged_only_by_what_was_measured(baseline: Training) -> None:
    def text(of_a: dict[str, Any], of_b: dict[str, Any]) -> str:
        return " ".join(samples([evaluated("A", baseline, of_a), evaluated("B", baseline, of_b)]))

    fid = {"samples/fid_se": 0.1}
    assert text({}, {}).startswith("Not judged: no measures of samples")
    assert text({}, {"samples/fid": 1.0}).startswith("Not judged for A: no measures")
    assert text({}, {"samples/fid": 1.0}) == text({"samples/fid": None}, {"samples/fid": 1.0})
    better = text({"samples/fid": 9.0} | fid, {"samples/fid": 3.0} | fid)
    assert better.startswith("B is better by Fréchet distance (3 ± 0.1 against 9 ± 0.1)")
    assert text({"samples/fid": 3.0} | fid, {"samples/fid": 9.0} | fid).startswith("A is better")
    no_error = text({"samples/fid": 3.0}, {"samples/fid": 9.0})
    assert "No measure tells the samples apart beyond its error" in no_error


def test_measures_within_their_errors_claim_nothing(baseline: Training) -> None:
    """100.0 ± 2.2 is not closer than 100.1 ± 2.2."""
    keys = ("fid", "kid", "precision", "density", "recall", "coverage", "nn_real", "nn_fake")
    of_a = {f"samples/{key}": 0.6 for key in keys} | {f"samples/{key}_se": 0.02 for key in keys}
    of_b = {f"samples/{key}": 0.63 for key in keys} | {f"samples/{key}_se": 0.02 for key in keys}
    both = [evaluated("A", baseline, of_a), evaluated("B", baseline, of_b)]
    text = " ".join(samples(both))
    assert text.startswith("No measure tells the samples apart beyond its error")
    assert "better" not in text
    assert "best" not in text
    assert "disagree" not in text


def test_measures_that_disagree_say_what_they_see(baseline: Training) -> None:
    of_a = {"samples/precision": 0.897, "samples/recall": 0.094, "samples/nn_fake": 0.9}
    of_b = {"samples/precision": 0.800, "samples/recall": 0.883, "samples/nn_fake": 0.4}
    errors = {f"{key}_se": 0.005 for key in of_a}
    both = [evaluated("A", baseline, of_a | errors), evaluated("B", baseline, of_b | errors)]
    text = " ".join(samples(both))
    assert "A is better by precision (0.897 ± 0.005 against 0.8 ± 0.005), which see" in text
    assert "B is better by recall" in text
    assert "1-NN accuracy of samples (0.4 ± 0.005 against 0.9 ± 0.005)" in text  # 0.5 is best
    assert "single samples look like test images" in text
    assert "The measures disagree" in text


def test_precision_beyond_that_of_training_images_is_no_win(baseline: Training) -> None:
    """Samples that repeat a few easy images have a precision that real images do not reach."""

    def precision(value: float) -> dict[str, float]:
        return {
            "samples/precision": value,
            "samples/precision_se": 0.005,
            "samples/precision_floor": 0.75,
        }

    both = [evaluated(name, baseline, precision(v)) for name, v in (("A", 0.95), ("B", 0.77))]
    (text, *_) = samples(both)
    assert text.startswith("B is better by precision (0.77 ± 0.005 against 0.95 ± 0.005; ")
    assert "training images 0.75" in text


# --- chain ------------------------------------------------------------------------------------


def test_the_chain_of_known_weights(baseline: Training) -> None:
    """x → v x, z → w z on two pixels and sd s: the variance is (s² + v² sigma²) / (1 − (v w)²)."""
    v, w, s, sigma = 0.5, 1.2, 0.4, 0.25
    model = copy.deepcopy(baseline.run.model)
    m, pixels = model.latent_dim, math.prod(model.image_shape)
    axes = torch.eye(m, pixels)
    with torch.no_grad():
        model.encoder.layers[0].weight.copy_(torch.cat([v * axes, 0 * axes]))
        model.encoder.layers[0].bias.copy_(torch.cat([torch.zeros(m), math.log(s) * torch.ones(m)]))
        model.decoder.layers[0].weight.copy_(w * axes.T)
        model.decoder.layers[0].bias.zero_()
    assert model.sigma == sigma
    trace = simulate(model, prior_latents(64, m), 10)
    variance = (s**2 + v**2 * sigma**2) / (1 - (v * w) ** 2)
    kl = m / 2 * (variance - 1 - math.log(variance))
    known = dataclasses.replace(baseline, trace=trace, limit=trace.limit, mixing=trace.mixing)
    text = chain_verdict.chain(Entry("A", [known]))
    assert f"A: the limit of the chain is {kl:.2f} nats from the prior (stationary law" in text
    assert kl > 0.5
    assert trace.mixing.steps == pytest.approx(1 / (1 - v * w))


def chain_of(training: Training, limit: Limit, mixing: Mixing, finite_steps: int = 101) -> Training:
    trace = ChainTrace([], [0.5] * 101, finite_steps, None, 1.2, limit, mixing)
    return dataclasses.replace(training, trace=trace, limit=limit, mixing=mixing)


def test_the_chain_is_described_by_its_law(baseline: Training) -> None:
    mixing = Mixing(100.0, "exact")

    def text(*limits: Limit, finite_steps: int = 101) -> str:
        trainings = [chain_of(baseline, limit, mixing, finite_steps) for limit in limits]
        return chain_verdict.chain(Entry("A", trainings))

    away = text(Limit(0.67, 0.0, 0.0, "exact", True))
    assert "A: the limit of the chain is 0.67 nats from the prior (stationary law" in away
    assert "stays" not in away
    assert "the limit of the chain is the prior" in text(Limit(1e-6, 0.0, 1.0, "exact", True))
    assert "no limit" in text(Limit(math.inf, 0.0, 0.0, "exact", False))
    far = text(Limit(4.5, 0.1, 1e-9, "simulated", None, 5000, 1000))
    assert "after 1000 steps its states are 4.50 ± 0.10 nats from the prior" in far
    assert "the prior is rejected as its limit (p < 0.001)" in far
    near = text(Limit(-0.1, 0.3, 0.4, "simulated", None, 64, 100))
    assert "0.00 ± 0.30 nats" in near
    assert "the prior is not rejected as its limit (p = 0.4)" in near
    assert "from step 30 on" in text(Limit(1.0, 1.0, 0.5, "simulated", None), finite_steps=30)
    several = text(*(Limit(kl, 0.0, 0.0, "exact", True) for kl in (0.6, 0.8)))
    assert "0.70 nats from the prior" in several
    assert "sd over 2 trainings 0.14" in several


def test_mixing_is_what_was_measured(baseline: Training) -> None:
    limit = Limit(0.67, 0.0, 0.0, "exact", True)

    def text(mixing: Mixing) -> str:
        trace = ChainTrace([], [0.5] * 101, 101, 0.99, None, limit, mixing)
        training = dataclasses.replace(baseline, trace=trace, limit=limit, mixing=mixing)
        return cautions.mixing_caution(Entry("A", [training])) or ""

    assert "37% of the start is left" in text(Mixing(100.0, "exact"))
    assert "mixing time 40 steps, measured" in text(Mixing(40.0, "measured"))
    assert text(Mixing(2.0, "measured")) == ""
    assert "not resolved by 100 steps" in text(Mixing(math.nan, "not resolved"))
    assert "no limit" in text(Mixing(math.inf, "exact"))


# --- log p and cautions -----------------------------------------------------------------------


def test_bounds_gaps_and_checks_are_stated_where_they_exist(deep: Training) -> None:
    assert log_likelihood([entry("A", deep), entry("B", deep)]) == []
    found = {
        "bound/log_p": 290.0,
        "bound/log_p_se": 0.5,
        "bound/method": "optimised proposal",
        "bound/images": 64,
        "bound/ess": 132.0,
        "gap/approximation": 1.87,
        "gap/approximation_se": 0.3,
        "gap/amortisation": 5.35,
        "gap/amortisation_se": 0.49,
        "gap/images": 60,
        "bdmc/gap": 0.36,
        "bdmc/gap_se": 0.24,
        "bdmc/images": 16,
        "ppc/log_p_samples": -68.0,
        "ppc/log_p_samples_se": 20.0,
        "ppc/log_p_test": 202.0,
        "ppc/log_p_test_se": 0.4,
        "ppc/sigma2": 0.0625,
        "ppc/residual_variance_test": 0.0125,
    }
    text = " ".join(
        log_likelihood(
            [evaluated("A", deep, found), evaluated("B", deep, found | {"bound/log_p": 280.0})]
        )
    )
    assert "A at least 290.00 ± 0.50 (optimised proposal, 64 images, effective samples 132)" in text
    assert "the bounds differ by 10.00 ± 0.71" in text
    assert "1.87 ± 0.30 come from q being a diagonal Gaussian" in text
    assert "5.35 ± 0.49 from the encoder" in text
    assert "0.36 ± 0.24 nats apart" in text
    assert "log p(x) at least -68.0 ± 20.0, test images at least 202.0 ± 0.4" in text
    assert "sigma² is 5.0 times the residual variance of test images" in text


def test_bounds_within_their_errors_are_not_told_apart(deep: Training) -> None:
    both = [
        evaluated(name, deep, {"bound/log_p": value, "bound/log_p_se": 0.5})
        for name, value in (("A", 290.0), ("B", 290.4))
    ]
    assert "the difference is within its error" in log_likelihood(both)[0]


def test_what_must_not_be_concluded(entries: list[Entry], baseline: Training) -> None:
    a, b = entries
    assert "rests on 1.5 effective of 1000 samples" in (
        cautions.elbo_gap_caution(
            evaluated("B", b.first, {k: v for k, v in b.first.evaluation.items() if "iwae" in k})
        )
        or ""
    )
    assert "not measured" in (cautions.elbo_gap_caution(a) or "")
    assert cautions.elbo_gap_caution(evaluated("A", baseline, {"exact/gap": 0.2})) is None
    assert "Each setting was trained once" in cautions.single_training_caution(entries)[0]
    twice = Entry("A", [baseline, changed(baseline)])
    assert cautions.single_training_caution([twice]) == []
    assert f"{b.name}: trained once" in cautions.single_training_caution([twice, b])[0]
    assert not any("differs" in line for line in cautions.cautions(entries))
    other = load_run(b.first.run.folder)
    other.model.likelihood = Gaussian(0.5)
    wide = Entry("wide", [dataclasses.replace(b.first, run=other)])
    (line,) = [x for x in cautions.cautions([a, wide]) if x.startswith("sigma differs")]
    assert "366.4 at 0.25, -177.0 at 0.5" in line
