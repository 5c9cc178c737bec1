"""What a page must not claim: of other weights, other ways of judging, chains that left."""

import dataclasses
import json
import math
import shutil
from pathlib import Path

import pytest
from comparison_runs import EVALUATION, entries, entry, evaluated, folders

from vae.analysis.limit import Limit, Mixing
from vae.models.likelihoods import Gaussian
from vae.reports.comparison import chain_verdict, tables, verdict
from vae.reports.comparison.cautions import differing_settings, elbo_gap_caution, mixing_caution
from vae.reports.comparison.entries import Entry
from vae.reports.comparison.limit import best_limit
from vae.reports.comparison.measure import read_evaluation
from vae.reports.comparison.sample_verdict import samples, short
from vae.reports.comparison.statistics import Measured
from vae.reports.comparison.words import with_error

__all__ = ["entries", "folders"]  # fixtures


def test_an_evaluation_of_other_weights_is_left_out_with_a_note(
    folders: list[Path], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(folders[1], run)
    notes: list[str] = []
    assert read_evaluation(run, notes)
    assert notes == []
    evaluation = EVALUATION | {"checkpoint": "0" * 64}
    (run / "evaluation.json").write_text(json.dumps(evaluation))
    assert read_evaluation(run, notes) == {}
    assert notes == ["evaluation.json is of other weights than the checkpoint, and left out"]


@pytest.mark.parametrize("other", [{"samples/n": 100}, {"samples/kind": "noisy"}, {"samples/k": 3}])
def test_samples_judged_in_two_ways_are_not_compared(
    entries: list[Entry], other: dict[str, object]
) -> None:
    way: dict[str, object] = {"samples/n": 3000, "samples/kind": "clipped", "samples/k": 5}
    low, high = ({"samples/fid": value, "samples/fid_se": 0.1} for value in (3.0, 9.0))
    training = entries[0].first
    same = [evaluated("A", training, low | way), evaluated("B", training, high | way)]
    assert samples(same)[0].startswith("A is better by Fréchet distance")
    apart = [evaluated("A", training, low | way), evaluated("B", training, high | way | other)]
    (text,) = samples(apart)
    assert text.startswith("Not judged: the evaluations are of ")


def test_a_chain_that_left_in_the_evaluation_has_no_limit(entries: list[Entry]) -> None:
    training = entries[1].first
    left = {"chain/finite": 0.0, "chain/finite_steps": 120, "chain/chains": 500}
    left["chain/limit_kl"] = None
    limit = best_limit(training.trace, left)
    assert (limit.kl, limit.has_limit) == (math.inf, False)
    slow = dataclasses.replace(training, mixing=Mixing(100.0, "exact"))
    assert "mixing time 100 steps" in (mixing_caution(Entry("A", [slow])) or "")
    gone = Entry("A", [dataclasses.replace(slow, limit=limit)])
    assert mixing_caution(gone) is None
    text = chain_verdict.chain(gone)
    assert "of 500 chains in the evaluation not all are finite from step 120 on" in text
    assert "nats from the prior" not in text
    assert "exact" not in text
    assert tables.limit_cell(gone).text == "no limit"


def test_a_simulated_chain_is_named_by_its_steps_and_not_a_limit(entries: list[Entry]) -> None:
    simulated = Limit(4.1, 0.1, 0.0, "simulated", None, 2000, 1000)
    training = dataclasses.replace(entries[1].first, limit=simulated)
    assert tables.limit_cell(Entry("A", [training])).text == "4.10 ± 0.10 after 1,000 steps"


def test_settings_and_files_are_no_metrics_of_an_evaluation(entries: list[Entry]) -> None:
    found = {"settings.seed": 0, "checkpoint": "0" * 64, "run": "outputs/a", "iwae/K=5": 281.0}
    shown = tables.evaluation_table([evaluated("A", entries[0].first, found)])
    assert [*shown] == ["iwae/K=5"]


def test_equal_metrics_claim_nothing_in_the_whole_verdict(entries: list[Entry]) -> None:
    training = entries[1].first
    evaluation = {"refit/oracle_test_elbo": 409.4, "refit/oracle_sigma": 0.134}
    training = dataclasses.replace(training, evaluation=evaluation)
    text = " ".join(
        s
        for part in verdict.verdict([entry("A", training), entry("B", training)]).values()
        for s in part
    )
    assert "cannot be told apart by test ELBO" in text
    assert "cannot be told apart at either sigma" in text
    for claim in ("has the higher", "is better by", "belongs to its sigma"):
        assert claim not in text


def test_learned_sigmas_are_set_against_the_closed_form(entries: list[Entry]) -> None:
    def learned(name: str, *sigmas: float) -> Entry:
        trainings = []
        for sigma in sigmas:
            training = entry(
                name, entries[0].first, {"model__sigma": sigma, "oracle__sigma": 0.134}
            ).first
            run = dataclasses.replace(training.run, model=with_sigma(training.run.model, sigma))
            trainings.append(dataclasses.replace(training, run=run))
        return Entry(name, trainings)

    both = [learned("A", 0.13, 0.15), learned("B", 0.09, 0.1)]
    text = " ".join(verdict.sigma(both))
    assert "A learned sigma 0.1400 (sd over 2 trainings 0.0141)" in text
    assert "that of the best linear VAE is 0.1340 (closed form, training images)" in text
    assert "B learned sigma 0.0950" in text
    assert verdict.sigma_of(both[0]) == pytest.approx(0.14)
    assert differing_settings(both) == []
    assert not any("p(x|z) is not the same" in s for s in verdict.elbo(both))


def with_sigma(model, sigma: float):
    """A model with the same networks and a sigma that it learned."""
    import copy

    other = copy.copy(model)
    other._modules = dict(model._modules)
    other.likelihood = Gaussian(sigma, learned=True)
    return other


def test_errors_are_shown_where_there_are_some(entries: list[Entry]) -> None:
    """Of the bound that a caution quotes; none of an exact gap; large ones as plain numbers."""
    bound = {"bound/log_p": 1e4, "bound/log_p_subset_se": 0.54, "bound/images": 32}
    text = elbo_gap_caution(evaluated("A", entries[1].first, bound)) or ""
    assert "± 0.54 nats below log p(x) (bound on 32 test images)" in text
    assert with_error(Measured(0.42, 8.8e-17, 0.09, 3)) == "0.42 (sd over 3 trainings 0.09)"
    assert short(Measured(485.0, 6.0, 21.6, 3)) == "485 ± 6 (sd 22)"
