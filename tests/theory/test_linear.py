"""The exact law of the chain of a linear encoder and decoder."""

import math

import pytest
import torch
from conftest import ROOT, at_optimum, build_model

from vae.analysis.chain import local_gain, one_step_test, run_chain
from vae.analysis.gaussian_kl import kl_from_sample
from vae.analysis.latents import latent_statistics
from vae.analysis.limit import autocorrelation_time
from vae.data.batches import as_images
from vae.data.datamodule import ImageDataModule
from vae.theory.linear import (
    affine_weights,
    gaussian,
    kl_to_standard_normal,
    lyapunov,
    sample_gaussian,
    stationary_distribution,
)
from vae.theory.ppca import PPCA, Spectrum


@pytest.fixture(scope="module")
def digits() -> torch.Tensor:
    data = ImageDataModule("digits", str(ROOT / "data"), val_size=100)
    data.prepare_data()
    data.setup("test")
    return as_images(data.split_pixels("train"))


def disturbed(
    digits: torch.Tensor, log_sd_range: tuple[float, float] | None = None
) -> torch.nn.Module:
    """A linear encoder and decoder off its optimum, its sd depending on the image."""
    model = at_optimum(digits, m=3, sigma=0.5)
    generator = torch.Generator().manual_seed(0)
    encoder, decoder = model.encoder.layers[0], model.decoder.layers[0]
    encoder.weight += 0.01 * torch.randn(encoder.weight.shape, generator=generator)
    encoder.bias += 0.2 * torch.randn(encoder.bias.shape, generator=generator)
    decoder.weight += 0.01 * torch.randn(decoder.weight.shape, generator=generator)
    encoder.weight[:3] *= 0.9  # forgets its start sooner
    model.encoder.log_sd_range = log_sd_range
    return model


def test_lyapunov_solves_its_equation():
    generator = torch.Generator().manual_seed(0)
    A = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    A *= 0.99 / torch.linalg.eigvals(A).abs().max()
    Q = A @ A.T + torch.eye(6, dtype=torch.float64)
    found = lyapunov(A, Q)
    assert (found - A @ found @ A.T - Q).norm() < 1e-9 * found.norm()


def test_the_limit_at_the_optimum_is_the_prior(digits):
    model = at_optimum(digits, m=8, sigma=0.25).double()
    law = stationary_distribution(model, affine_weights(model))
    assert law.loc.abs().max() < 1e-3
    assert (law.covariance_matrix - torch.eye(8)).abs().max() < 1e-3  # weights rounded to float32


@pytest.mark.parametrize("log_sd_range", [None, (-2.0, 0.5)])
def test_the_limit_is_that_of_200_000_simulated_chains(digits, log_sd_range):
    model = disturbed(digits, log_sd_range)
    weights = affine_weights(model)
    law = stationary_distribution(model, weights)
    assert (law.covariance_matrix - torch.eye(3)).abs().max() > 0.1  # far from the optimum's
    # Five times as long as they take to forget their start.
    steps = math.ceil(5 / (1 - torch.linalg.eigvals(weights.V @ weights.W).abs().max().item()))
    assert steps < 120
    generator = torch.Generator().manual_seed(1)
    z = end_of(model, torch.randn(200_000, 3, generator=generator), steps, generator).double()
    assert (torch.cov(z.T) - law.covariance_matrix).norm() < 0.02 * law.covariance_matrix.norm()
    assert (z.mean(0) - law.loc).norm() < 0.02


def end_of(model, z, steps, generator):
    """The chain's last state. The encoder sees an image through V and S alone, which spares all 784
    pixels."""
    weights = affine_weights(model)
    seen = torch.cat([weights.V, weights.S])  # [2m, D]
    gain, offset = (
        (seen @ weights.W).float(),
        (seen @ weights.b + torch.cat([weights.c, weights.t])).float(),
    )
    root = (
        model.sigma * torch.linalg.cholesky(seen @ seen.T).float()
    )  # of the pixel noise, as it is seen
    for _ in range(steps):
        noise = torch.randn(len(z), len(seen), generator=generator)
        mean, log_sd = (z @ gain.T + offset + noise @ root.T).chunk(2, 1)
        z = mean + model.encoder.bounded(log_sd).exp() * torch.randn(z.shape, generator=generator)
    return z


def test_projected_simulation_is_the_chain(digits):
    """The shortcut of `end_of` has the law of run_chain after two steps."""
    model = disturbed(digits)
    start = torch.zeros(20_000, 3)
    short = end_of(model, start, 2, torch.Generator().manual_seed(0))
    parts = [
        list(run_chain(model, part, 2, torch.Generator().manual_seed(i)))[-1][0]
        for i, part in enumerate(start.split(5000))
    ]
    full = torch.cat(parts)
    assert (short.mean(0) - full.mean(0)).abs().max() < 0.03
    assert (torch.cov(short.T) - torch.cov(full.T)).norm() < 0.04 * torch.cov(full.T).norm()


def test_no_limit_where_the_chain_runs_away(digits):
    model = at_optimum(digits, m=3, sigma=0.5)
    model.decoder.layers[0].weight *= 1.2
    assert stationary_distribution(model, affine_weights(model)) is None


@pytest.mark.slow
def test_p_values_are_uniform_where_the_law_is_right():
    """Also with few draws a latent, thanks to Bartlett's correction; and near 0 where the law is
    wrong."""
    generator = torch.Generator().manual_seed(0)
    covariance = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
    law = gaussian(torch.tensor([1.0, -1.0], dtype=torch.float64), covariance)
    p = torch.tensor(
        [kl_from_sample(sample_gaussian(law, 200, generator), law).p for _ in range(300)]
    )
    assert p.mean().item() == pytest.approx(0.5, abs=0.06)
    assert (p < 0.1).double().mean().item() == pytest.approx(0.1, abs=0.06)
    many = torch.tensor(
        [kl_from_sample(torch.randn(400, 20, generator=generator)).p for _ in range(200)]
    )
    assert many.mean().item() == pytest.approx(0.5, abs=0.08)
    kl, _, wrong = kl_from_sample(torch.randn(2000, 2, generator=generator) * 1.2)
    assert kl == pytest.approx(2 * 0.5 * (1.44 - 1 - math.log(1.44)), rel=0.3)
    assert wrong < 1e-6


def test_the_error_of_a_distance_is_its_scatter():
    """For a law with heavy tails too, and not above twice that for a normal one."""
    generator = torch.Generator().manual_seed(0)
    for degrees, most in ((8, 1.4), (1e9, 2.0)):
        halves = torch.full((64, 1), degrees / 2, dtype=torch.float64)
        found = []
        for _ in range(100):
            scale = torch._standard_gamma(halves, generator=generator) / halves  # χ²/degrees
            z = torch.randn(64, 32, generator=generator, dtype=torch.float64) / scale.sqrt()
            found.append(kl_from_sample(z))
        scatter = torch.tensor([each.kl for each in found]).std().item()
        stated = sum(each.se for each in found) / len(found)
        assert 0.85 * scatter < stated < most * scatter


def test_one_step_leaves_the_prior_at_the_optimum_and_moves_it_elsewhere(digits):
    right, wrong = at_optimum(digits, m=3, sigma=0.5), disturbed(digits)
    assert one_step_test(right, 3000).p > 0.01
    kl, _, p = one_step_test(wrong, 3000)
    assert kl > 0.01
    assert p < 1e-4


def test_autocorrelation_time_of_an_ar1_process():
    generator = torch.Generator().manual_seed(0)
    rho = torch.tensor([0.0, 0.5, 0.9])
    z = torch.randn(200, 3, generator=generator)
    path = []
    for _ in range(600):
        z = rho * z + (1 - rho**2).sqrt() * torch.randn(200, 3, generator=generator)
        path.append(z)
    found = autocorrelation_time(torch.stack(path))
    expected = (1 + rho) / (1 - rho)
    assert (found / expected - 1).abs().max() < 0.06
    assert autocorrelation_time(torch.stack(path[:60]))[2] == math.inf  # too few steps to know


def test_local_gain_of_a_linear_weights_is_its_spectral_radius(digits):
    model = disturbed(digits)
    weights = affine_weights(model)
    radius = torch.linalg.eigvals(weights.V @ weights.W).abs().max().item()
    assert local_gain(model, torch.randn(5, 3)).sub(radius).abs().max() < 1e-5


def test_kl_spectrum_at_the_optimum_is_half_the_log_of_the_eigenvalues(digits):
    oracle = PPCA(Spectrum.from_images(digits), 24, 1.0)
    assert 0 < oracle.collapsed < 24
    found = latent_statistics(at_optimum(digits, 24, 1.0), digits.split(130))
    assert (found.kl - oracle.kl).abs().max() < 1e-4
    expected = (1 - 1 / oracle.retained).tolist() + [0] * oracle.collapsed
    assert found.variance.tolist() == pytest.approx(expected, abs=1e-4)
    assert found.counts([0.01])[0] == (0.01, oracle.collapsed, oracle.collapsed)
    assert (found.aggregated.covariance_matrix - torch.eye(24)).abs().max() < 1e-4
    assert kl_to_standard_normal(found.aggregated) < 1e-4


def test_collapse_counts_differ_between_the_definitions():
    """sd far from 1 with a constant mean: informative by KL, inactive by Burda's definition."""
    model = build_model("model.latent_dim=2", "model.sigma=1").requires_grad_(False)
    layer = model.encoder.layers[0]
    layer.weight.zero_()
    layer.bias.copy_(torch.tensor([0.5, 0.0, -1.0, 0.0]))  # means 0.5 and 0, log sd −1 and 0
    found = latent_statistics(model, [torch.rand(10, 1, 28, 28)])
    assert found.kl.tolist() == pytest.approx([0.5 * (0.25 + math.exp(-2) - 1) + 1, 0])
    assert found.counts([0.01, 2]) == [(0.01, 1, 2), (2, 2, 2)]
    assert found.aggregated.covariance_matrix.diagonal().tolist() == pytest.approx(
        [math.exp(-2), 1]
    )
