"""Sample metrics and the classifier against closed forms and known expectations."""

import math
import os

import pytest
import torch
from conftest import ROOT

from vae.analysis.classifier import (
    Classifier,
    accuracy,
    cached_classifier,
    in_batches,
    train_classifier,
)
from vae.analysis.sample_quality import (
    block_errors,
    expected_coverage,
    frechet_distance,
    kernel_distance,
    neighbours,
    squared_mmd,
)
from vae.data.datamodule import ImageDataModule


def normal(n: int, d: int, seed: int) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def test_two_halves_of_one_sample_have_density_one_and_the_expected_coverage():
    sample = normal(6000, 8, seed=0)
    found = neighbours(sample[:3000], sample[3000:], k=5, rows=700)
    means = {key: value.mean().item() for key, value in found._asdict().items()}
    assert means["density"] == pytest.approx(1, abs=0.04)
    assert means["coverage"] == pytest.approx(0.969, abs=0.01)
    assert means["nn_real"] == pytest.approx(0.5, abs=0.04)
    assert means["nn_fake"] == pytest.approx(0.5, abs=0.04)
    assert means["precision"] == pytest.approx(
        means["recall"], abs=0.02
    )  # the two are each other's mirror


def test_expected_coverage():
    assert expected_coverage(10_000, 10_000, 5) == pytest.approx(1 - 1 / 32, abs=1e-3)
    assert expected_coverage(10, 1, 1) == pytest.approx(
        1 - 9 / 10
    )  # one fake is the nearest of ten others by luck


def test_neighbours_of_points_on_a_line_by_hand():
    real = torch.tensor([[0.0], [1.0], [2.0], [10.0]])  # radii at k = 1: 1, 1, 1, 8
    fake = torch.tensor([[0.5], [3.5], [30.0], [31.0]])  # radii: 3, 3, 1, 1
    found = neighbours(real, fake, k=1, rows=3)
    assert found.precision.tolist() == [1, 1, 0, 0]
    assert found.density.tolist() == [2, 1, 0, 0]
    assert found.recall.tolist() == [1, 1, 1, 0]
    assert found.coverage.tolist() == [1, 1, 0, 1]
    assert found.nn_real.tolist() == [0, 0, 1, 0]
    assert found.nn_fake.tolist() == [0, 0, 1, 1]
    with pytest.raises(ValueError, match="need more than 4 images of both kinds"):
        neighbours(real, fake, k=4)


def test_a_sample_of_one_mode_is_precise_but_covers_half():
    real = torch.cat([normal(500, 4, seed=0), normal(500, 4, seed=1) + 20])
    found = neighbours(real, normal(1000, 4, seed=2))
    assert found.precision.mean() > 0.9
    assert found.recall[500:].sum() == 0
    assert found.coverage[500:].sum() == 0
    assert found.coverage[:500].mean() > 0.95


def test_frechet_distance_is_the_closed_form_of_the_moments():
    """For commuting covariances ‖Δmean‖² + Σ (√a_i − √b_i)²."""
    real, fake = (whiten(normal(2000, 3, seed)) for seed in (0, 1))
    scale, shift = (
        torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64),
        torch.tensor([1.0, 0, -2], dtype=torch.float64),
    )
    assert frechet_distance(real, fake * scale + shift) == pytest.approx(5 + 0 + 1 + 4, rel=1e-6)
    assert frechet_distance(real, fake) == pytest.approx(0, abs=1e-6)


def whiten(x: torch.Tensor) -> torch.Tensor:
    """The sample with mean 0 and covariance I exactly."""
    x = x.double() - x.double().mean(0)
    return torch.linalg.solve_triangular(torch.linalg.cholesky(torch.cov(x.T)), x.T, upper=False).T


def every_measure(real: torch.Tensor, fake: torch.Tensor) -> dict[str, float]:
    shares = {key: v.mean().item() for key, v in neighbours(real, fake)._asdict().items()}
    return {"fid": frechet_distance(real, fake), "kid": squared_mmd(real, fake), **shares}


@pytest.mark.parametrize(("shift", "scale"), [(0.7, 1.0), (0.3, 0.7)])
def test_errors_are_the_spread_over_fresh_sets(shift: float, scale: float):
    """All eight measures; the spread over indicators alone would be half of precision's."""
    n, d = 800, 6
    sets = [(normal(n, d, seed), normal(n, d, 1000 + seed) * scale + shift) for seed in range(40)]
    found = [every_measure(real, fake) for real, fake in sets]
    errors = [
        block_errors(real, fake, every_measure, torch.Generator().manual_seed(i))
        for i, (real, fake) in enumerate(sets[:6])
    ]
    for key in found[0]:
        spread = torch.tensor([each[key] for each in found]).std().item()
        claimed = sum(each[key] for each in errors) / len(errors)
        assert 0.6 < claimed / spread < 1.7, (key, claimed, spread)


def test_kernel_distance_is_unbiased_and_repeats():
    same = torch.tensor(
        [kernel_distance(normal(1000, 4, seed), normal(1000, 4, 50 + seed)) for seed in range(12)]
    )
    assert abs(same.mean()) < 3 * same.std() / math.sqrt(12)
    state = torch.get_rng_state()
    once, again = (kernel_distance(normal(1000, 4, 0), normal(1000, 4, 1) + 1) for _ in range(2))
    assert once == again > 10 * same.std()
    assert torch.equal(torch.get_rng_state(), state)


def test_kernel_distance_is_the_cubic_polynomial_mmd():
    """Against the double sum, written out; one subset of everything would be it, halves average to
    it."""
    real, fake = normal(600, 2, 0).double(), normal(600, 2, 1).double() * 1.3

    def kernel(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a @ b.T / 2 + 1) ** 3

    def off_diagonal(k: torch.Tensor) -> torch.Tensor:
        return (k.sum() - k.trace()) / (600 * 599)

    exact = (
        off_diagonal(kernel(real, real))
        + off_diagonal(kernel(fake, fake))
        - 2 * kernel(real, fake).mean()
    )
    assert squared_mmd(real, fake) == pytest.approx(exact.item(), rel=1e-9)
    error = block_errors(
        real, fake, lambda a, b: {"kid": squared_mmd(a, b)}, torch.Generator().manual_seed(0)
    )
    assert kernel_distance(real, fake, subsets=200) == pytest.approx(exact.item(), abs=error["kid"])


@pytest.fixture(scope="module")
def digits() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    data = ImageDataModule("digits", str(ROOT / "data"), val_size=100)
    data.prepare_data()
    data.setup("test")
    train = data.index["train"]
    return (
        data.split_pixels("train"),
        data.labels["train"][train],
        data.split_pixels("test"),
        data.labels["test"],
    )


def test_classifier_learns_a_few_hundred_digits(digits):
    train, train_labels, test, test_labels = digits
    classifier = train_classifier(train, train_labels, epochs=25)
    assert accuracy(classifier, test, test_labels) > 0.85
    assert in_batches(classifier.features, test, rows=70).shape == (300, Classifier.num_features)


def test_classifier_repeats_and_is_kept(digits, tmp_path):
    train, labels, _, _ = digits
    torch.manual_seed(1)
    first = cached_classifier(tmp_path, train, labels, epochs=2)
    (kept,) = tmp_path.iterdir()
    written = kept.stat().st_mtime_ns
    torch.manual_seed(2)
    again, fresh = (
        cached_classifier(tmp_path, train, labels, epochs=2),
        train_classifier(train, labels, epochs=2),
    )
    assert kept.stat().st_mtime_ns == written
    for key, value in first.state_dict().items():
        assert torch.equal(again.state_dict()[key], value)
        assert torch.equal(fresh.state_dict()[key], value)
    kept.write_bytes(kept.read_bytes()[:1000])  # half-written
    healed = cached_classifier(tmp_path, train, labels, epochs=2)
    assert torch.equal(healed.head.weight, first.head.weight)
    cached_classifier(tmp_path, train[:200], labels[:200], epochs=1)  # other images: another file
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.slow
@pytest.mark.mnist
def test_classifier_reaches_99_percent_of_mnist():
    data = ImageDataModule("mnist", os.environ.get("VAE_DATA", "data"))
    data.prepare_data()
    data.setup("test")
    train = data.index["train"]
    classifier = train_classifier(data.split_pixels("train"), data.labels["train"][train], epochs=5)
    assert accuracy(classifier, data.split_pixels("test"), data.labels["test"]) >= 0.99
