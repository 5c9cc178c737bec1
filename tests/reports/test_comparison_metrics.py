"""The metrics of a comparison: recomputed, refitted, grouped, and as JSON."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from comparison_runs import EVALUATION, changed, entries, folders, with_config

from vae.analysis.refit import ReconstructionErrors
from vae.data.datamodule import ImageDataModule
from vae.models.elbo import noise_per_image
from vae.reports.comparison.as_json import as_json
from vae.reports.comparison.entries import Entry, compare, measure_entries
from vae.reports.comparison.measure import TERMS, elbo_terms
from vae.reports.comparison.selection import common_data
from vae.runs.folder import Run, load_run
from vae.theory.ppca import PPCA


def test_metrics_of_the_best_checkpoint_equal_metrics_json(
    folders: list[Path], digits: ImageDataModule
) -> None:
    run = load_run(folders[1])
    for split, count in (("train", 400), ("val", 100), ("test", 300)):
        noise = noise_per_image(len(digits.pixels[split]), 8)[digits.index[split]]
        recomputed, per_image = elbo_terms(run, digits.images(split), noise)
        for term in TERMS:
            expected = run.metrics[f"{split}/{term}"]
            assert recomputed[term] == pytest.approx(expected, abs=1e-3)
            assert len(per_image[term]) == count
            assert per_image[term].mean().item() == pytest.approx(expected, abs=1e-3)


def test_the_refitted_sigma_is_the_best_of_all(entries: list[Entry]) -> None:
    """No other sigma has a higher ELBO on the validation images, by its definition."""
    training = entries[1].first

    def elbo(sigma: float) -> float:
        D, fixed = 784, 0.25
        constant = -0.5 * D * math.log(2 * math.pi * fixed**2)
        error = 2 * fixed**2 * (constant - training.per_image["val/log_likelihood"])
        terms = -0.5 * D * math.log(2 * math.pi * sigma**2) - error / (2 * sigma**2)
        return (terms - training.per_image["val/kl"]).mean().item()

    sigma = training.metrics["refit/sigma"]
    assert training.metrics["val/refit_elbo"] == pytest.approx(elbo(sigma), abs=1e-3)
    assert elbo(sigma) > elbo(sigma * 1.01)
    assert elbo(sigma) > elbo(sigma * 0.99)
    assert elbo(0.25) == pytest.approx(training.metrics["val/elbo"], abs=1e-3)


def test_the_refitted_sigma_of_the_linear_optimum_is_the_closed_form(
    digits: ImageDataModule,
) -> None:
    """At the optimum with a free sigma, E‖x − f(z)‖² = r s² + Σ_{i>r} λ_i = D s² on train."""
    m = 4
    oracle = PPCA.with_ml_sigma(digits.spectrum(), m)
    discarded = digits.spectrum().eigenvalues[m:].sum().item()
    error = m * oracle.sigma**2 + discarded
    log_likelihood = -392 * math.log(2 * math.pi * oracle.sigma**2) - error / (2 * oracle.sigma**2)
    values = (torch.full((3,), value, dtype=torch.float64) for value in (log_likelihood, 5.0))
    refitted = ReconstructionErrors.from_log_likelihood(*values, 784, oracle.sigma)
    assert refitted.sigma == pytest.approx(oracle.sigma, abs=1e-6)


def test_runs_start_their_chain_and_their_samples_from_the_same_latents(
    entries: list[Entry],
) -> None:
    for entry in entries:
        torch.testing.assert_close(entry.first.samples, entry.first.trace.frames[0])
    assert entries[0].first.trace.drifts[0] == entries[1].first.trace.drifts[0]


def test_missing_curves_and_a_metrics_json_of_another_checkpoint_are_noted(
    folders: list[Path], tmp_path: Path
) -> None:
    copy = with_config(tmp_path / "copy", folders[0])
    (copy / "history.csv").unlink()
    metrics = json.loads((copy / "metrics.json").read_text())
    (copy / "metrics.json").write_text(json.dumps(metrics | {"val/elbo": metrics["val/elbo"] + 1}))
    (copy / "evaluation.json").write_text('{"samples/fid": 1')
    run = load_run(copy)
    (entry,) = measure_entries([run], common_data([run]))
    assert entry.first.history == []
    assert [note.split(":")[0].split(" has ")[0] for note in entry.first.notes] == [
        "metrics.json",
        "no curves",
        "evaluation.json cannot be read (Expecting ',' delimiter",
    ]


@pytest.mark.parametrize(
    ("damage", "note"),
    [
        (lambda text: text[:-5], "no numbers in a metrics.json: computed here"),
        (lambda text: text.replace("val/kl", "kl"), "no val/kl in a metrics.json: computed here"),
    ],
)
def test_what_metrics_json_does_not_say_is_noted(
    folders: list[Path], tmp_path: Path, damage: Callable[[str], str], note: str
) -> None:
    copy = with_config(tmp_path / "copy", folders[0])
    (copy / "metrics.json").write_text(damage((copy / "metrics.json").read_text()))
    run = load_run(copy)
    (entry,) = measure_entries([run], common_data([run]))
    assert note in entry.first.notes


def test_both_errors_are_told_apart(entries: list[Entry]) -> None:
    """`se` is over images of the mean over trainings, `sd` over trainings."""
    training = entries[0].first
    grouped = Entry("A", [changed(training, test__elbo=v) for v in (1.0, 2.0, 6.0)])
    metric = grouped.metric("test/elbo")
    values = training.per_image["test/elbo"]
    assert metric.mean == pytest.approx(3.0)
    assert metric.sd == pytest.approx(math.sqrt(7.0))
    assert metric.se == pytest.approx(values.std().item() / math.sqrt(300))
    found = compare(entries[1], grouped, "test/elbo")
    assert not found.of_trainings  # the other has one training
    assert found.se == pytest.approx(
        (values - entries[1].first.per_image["test/elbo"]).std().item() / math.sqrt(300)
    )


def test_as_json_holds_means_errors_differences_and_trainings(entries: list[Entry]) -> None:
    content = json.loads(json.dumps(as_json(entries, {"ELBO": ["…"]}, [])))
    a, b = entries
    found = content["entries"][1]
    run: Run = b.first.run
    assert found["metrics"]["test/elbo"]["mean"] == run.metrics["test/elbo"]
    difference = b.first.per_image["test/elbo"] - a.first.per_image["test/elbo"]
    shown = found["difference_to_reference"]["test/elbo"]
    assert shown["se"] == pytest.approx(difference.std().item() / 300**0.5)
    separate = [e.metric("test/elbo").se or 0.0 for e in entries]
    assert shown["se"] < math.hypot(*separate)  # pairing pays
    assert found["trainings"][0]["evaluation"] == EVALUATION
    assert len(found["trainings"][0]["chain_drift"]) == 101
    assert [row["epoch"] for row in found["trainings"][0]["curves"]] == list(range(1, 11))
