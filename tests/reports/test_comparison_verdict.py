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
from vae.reports.comparison import cautions, chain_verdict, tables, verdict
from vae.reports.comparison.entries import Entry
from vae.reports.comparison.likelihood_verdict import log_likelihood
from vae.reports.comparison.measure import Training
from vae.reports.comparison.sample_verdict import MEASURES, Judgement, judge, samples
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
    above = entry("B", deep, {"test__over_linear": 70.0, "train__over_linear": 73.0})
    assert verdict.against_linear(above).endswith("on test images: a gain of the networks.")
    closer = entry("B", deep, {"test__over_linear": 70.0, "train__over_linear": -3.0})
    assert "but not on the training images" in verdict.against_linear(closer)
    assert "which is no gain of the networks" in verdict.against_linear(closer)
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
    assert gap.endswith("a gap belongs to its sigma.")
    assert f"{entries[0].mean('refit/oracle_test_elbo'):.1f} on test images" in optimum[0]


def test_a_gap_that_vanishes_or_turns_round_is_stated(baseline: Training) -> None:
    def text(**of_b: float) -> str:
        a = entry("A", baseline, {"test__elbo": 0.0, "test__refit_elbo": 0.0})
        return verdict.sigma([a, entry("B", baseline, of_b)])[1]

    equal = text(test__elbo=9.0, test__refit_elbo=0.0)
    assert "cannot be told from zero at the refitted ones" in equal
    turned = text(test__elbo=9.0, test__refit_elbo=-5.0)
    assert "is 9.00 ± 0.00 nats in favour of B at sigma 0.25 and 5.00" in turned
    assert "in favour of A at the refitted ones" in turned


def test_a_gap_at_the_refitted_sigmas_alone_says_who_leads(baseline: Training) -> None:
    """The one with the higher ELBO at the fixed sigma, by less than its error, may be behind."""
    noise = torch.linspace(-20, 20, len(baseline.per_image["test/elbo"]), dtype=torch.float64)
    ahead = changed(baseline, test__elbo=0.02, test__refit_elbo=-5.0)
    ahead.per_image["test/elbo"] += noise
    a = entry("A", baseline, {"test__elbo": 0.0, "test__refit_elbo": 0.0})
    text = verdict.sigma([a, Entry("B", [ahead])])[1]
    assert "The gap between B and A cannot be told from zero (0.02 ±" in text
    assert "5.00 ± 0.00 in favour of A at the refitted ones" in text


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


def test_the_error_of_what_training_images_score_counts(baseline: Training) -> None:
    """Twice for two entries on either side of it, and not at all for two on one side."""

    def judged(a: float, b: float, floor_se: float) -> Judgement:
        floor = {"samples/density_floor": 0.7, "samples/density_floor_se": floor_se}
        return judge(
            next(each for each in MEASURES if each.key == "samples/density"),
            [
                evaluated(
                    name, baseline, floor | {"samples/density": v, "samples/density_se": 0.01}
                )
                for name, v in (("A", a), ("B", b))
            ],
        )

    assert judged(0.65, 0.85, 0.0).winner is not None
    assert judged(0.65, 0.85, 0.05).winner is None
    assert judged(0.65, 0.85, 0.05).found.se == pytest.approx(math.hypot(0.01, 0.01, 0.1))
    assert judged(0.65, 0.55, 0.05).winner is not None


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
    assert (
        f"A: the limit of the chain is {kl:.2f} nats from the prior (mean and covariance of its"
        in text
    )
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
    assert (
        "A: the limit of the chain is 0.67 nats from the prior (mean and covariance of its" in away
    )
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


def test_each_training_of_an_entry_has_its_own_outcome(baseline: Training) -> None:
    """One without a limit, and one evaluated with more chains, are not stated of the others."""
    mixing = Mixing(100.0, "exact")
    known = [Limit(kl, 0.0, 0.0, "exact", True) for kl in (0.6, 0.8)]
    three = [*known, Limit(math.inf, 0.0, 0.0, "exact", False)]
    entry_of_three = Entry("A", [chain_of(baseline, limit, mixing) for limit in three])
    text = chain_verdict.chain(entry_of_three)
    assert "in 2 of 3 trainings the limit of the chain is 0.70 nats from the prior" in text
    assert "in 1 of 3 trainings the chain has no limit: its spectral radius is at least 1" in text
    assert tables.limit_cell(entry_of_three)[::2] == ("no limit", "in 1 of 3 trainings")

    evaluated_once = [
        Limit(4.0, 0.1, 0.0, "simulated", None, 500, 1000),
        Limit(4.5, 0.9, 0.0, "simulated", None, 64, 100),
    ]
    text = chain_verdict.chain(
        Entry("B", [chain_of(baseline, limit, mixing) for limit in evaluated_once])
    )
    assert "in 1 of 2 trainings after 1000 steps its states are 4.00 ± 0.10" in text
    assert "in 1 of 2 trainings after 100 steps its states are 4.50 ± 0.90" in text


def test_a_chain_without_a_finite_covariance_is_not_said_to_have_a_radius_of_one(
    baseline: Training,
) -> None:
    """The sd of q grows with x: no covariance is found though the mean contracts by 0.98 a step."""
    model = copy.deepcopy(baseline.run.model)
    m, pixels = model.latent_dim, math.prod(model.image_shape)
    axes = torch.zeros(m, pixels)
    axes[0, 0] = 1
    layer = model.encoder.layers[0]
    with torch.no_grad():
        layer.weight.copy_(torch.cat([0.98 * axes, 0.087 * axes]))
        layer.bias.zero_()
        model.decoder.layers[0].weight.copy_(axes.T)
        model.decoder.layers[0].bias.zero_()
    trace = simulate(model, prior_latents(64, m), 100)
    assert not trace.diverged
    assert trace.spectral_radius == pytest.approx(0.98)
    assert trace.limit.has_limit is False
    alone = dataclasses.replace(baseline, trace=trace, limit=trace.limit, mixing=trace.mixing)
    text = chain_verdict.chain(Entry("A", [alone]))
    assert "no limit of the chain with a finite covariance was found" in text
    assert "(0.980) is below 1, but the sd of q grows with x" in text
    assert "at least 1" not in text


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


def test_the_slowest_of_several_trainings_is_cautioned(baseline: Training) -> None:
    limit = Limit(0.67, 0.0, 0.0, "exact", True)

    def text(*steps: float) -> str:
        trainings = []
        for each in steps:
            mixing = Mixing(each, "exact")
            trace = ChainTrace([], [0.5] * 101, 101, 1 - 1 / each, None, limit, mixing)
            trainings.append(dataclasses.replace(baseline, trace=trace, limit=limit, mixing=mixing))
        return cautions.mixing_caution(Entry("A", trainings)) or ""

    assert text(2.0, 3.0) == ""
    assert "not the limit of the chain in 1 of 2 trainings: " in text(20.0, 75.0)
    assert "26% of the start is left after them (spectral radius 0.987, mixing" in text(20.0, 75.0)
    assert ": in its slowest direction 19% to 26% of the start is left" in text(60.0, 75.0)
    assert "radius 0.987 at most, mixing time 75 steps at most, exact" in text(60.0, 75.0)


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
    assert "they cannot be told apart by the difference, 0.40 ± 0.71" in log_likelihood(both)[0]


def test_two_exact_log_likelihoods_are_paired_over_the_images(baseline: Training) -> None:
    higher = entry("B", baseline, {"exact__log_p": baseline.metrics["exact/log_p"] + 0.3})
    text = log_likelihood([entry("A", baseline), higher])[0]
    assert "B is higher by 0.30 ± 0.00 (standard error over the test images" in text


def test_what_must_not_be_concluded(entries: list[Entry], baseline: Training) -> None:
    a, b = entries
    elbo = b.mean("test/elbo")
    bound = {"bound/method": "L_1000, optimised q", "bound/ess": 1.5, "bound/images": 32}
    for gap in (0.9, 9.0):
        found = bound | {"bound/log_p": elbo + gap}
        loose = cautions.elbo_gap_caution(evaluated("B", b.first, found)) or ""
        assert "rests on 1.5 effective of 1000 samples" in loose
        assert ("the ELBO is at least 9.00 nats below log p(x)" in loose) == (gap > 1)
    tight = bound | {"bound/ess": 500.0, "bound/log_p": elbo + 0.9}
    assert cautions.elbo_gap_caution(evaluated("B", b.first, tight)) is None
    unmeasured = {"bound/method": "ELBO", "bound/ess": None, "bound/log_p": elbo}
    assert "not measured" in (cautions.elbo_gap_caution(evaluated("B", b.first, unmeasured)) or "")
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
