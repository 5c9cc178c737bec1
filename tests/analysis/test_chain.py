"""The chain against the AR(1) process that it is for a linear encoder and decoder."""

import math

import pytest
import torch
from conftest import build_model, set_linear

from vae.analysis.chain import drift, local_gain, run_chain, simulate
from vae.data.datamodule import ImageDataModule
from vae.theory.linear import affine_weights, spectral_radius
from vae.theory.ppca import PPCA, Spectrum


@pytest.fixture(scope="module")
def oracle(digits: ImageDataModule) -> PPCA:
    return PPCA(Spectrum.from_images(digits.split_pixels("train")), 6, 0.5)


def test_gain_at_the_optimum(oracle: PPCA):
    """A = V W = diag(1 − s²/λ_i), so the spectral radius is 1 − s²/λ_1, at every state."""
    model = set_linear(build_model("model.latent_dim=6", "model.sigma=0.5"), oracle.weights())
    gains = 1 - 0.25 / oracle.retained
    weights = affine_weights(model)
    torch.testing.assert_close(weights.V @ weights.W, gains.diag(), rtol=0, atol=1e-10)
    assert spectral_radius(weights) == pytest.approx(gains[0].item())
    states = torch.randn(5, 6, dtype=torch.float64)
    assert local_gain(model, states).tolist() == pytest.approx([gains[0].item()] * 5)


def test_no_limit_where_an_sd_that_grows_carries_the_chain_away(oracle: PPCA):
    """Though its mean contracts, and a Gaussian of the right mean square would stay."""
    model = set_linear(build_model("model.latent_dim=6", "model.sigma=0.5"), oracle.weights())
    head = model.encoder.layers[0]
    with torch.no_grad():
        head.weight[6:] = 2 * head.weight[:6]  # log sd rises with the mean
        head.bias[6:] = 2 * head.bias[:6] - 1
    assert spectral_radius(affine_weights(model)) < 1
    trace = simulate(model, torch.randn(64, 6, dtype=torch.float64), 100)
    assert (trace.limit.has_limit, trace.limit.kl) == (False, math.inf)
    assert trace.mixing.method == "not resolved"
    assert {*trace.metrics} == {"chain/finite", "chain/drift", "chain/spectral_radius"}


def test_the_prior_is_stationary_at_the_optimum(oracle: PPCA):
    model = set_linear(build_model("model.latent_dim=6", "model.sigma=0.5"), oracle.weights())
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(4000, 6, generator=generator, dtype=torch.float64)
    drifts = [drift(z) for z, _ in run_chain(model, start, 20, generator)]
    assert len(drifts) == 21
    assert max(drifts) < 5 * 6 / 4000  # the floor of 4 000 chains is m/n


def test_a_model_drifts_as_its_recursion_says(oracle: PPCA):
    """One step from a point: mean V (W z + b) + c, covariance s² V Vᵀ + diag sd²."""
    model = set_linear(build_model("model.latent_dim=6", "model.sigma=0.5"), oracle.weights())
    z0 = torch.tensor([2.0, -1, 0.5, 0, 1, -2], dtype=torch.float64).expand(20_000, 6)
    (_, frame), (z1, _) = list(run_chain(model, z0, 1, torch.Generator().manual_seed(0)))
    weights = affine_weights(model)
    torch.testing.assert_close(
        z1.mean(0), weights.V @ frame[0].flatten() + weights.c, rtol=0, atol=0.03
    )
    expected = 0.25 * weights.V @ weights.V.T + (0.25 / oracle.retained).diag()
    torch.testing.assert_close(torch.cov(z1.T), expected, rtol=0, atol=0.03)


def test_local_gain_of_a_deep_model_is_the_slope_of_its_mean_map():
    model = build_model("model=deep", "model.latent_dim=1").double()
    z, h = torch.tensor([[0.3]], dtype=torch.float64), 1e-6
    up, down = (model.encode(model.mean_image(z + step)).loc.item() for step in (h, -h))
    assert local_gain(model, z).item() == pytest.approx(abs(up - down) / (2 * h), rel=1e-4)


def test_a_diverged_chain_is_reported():
    model = build_model("model=deep", "model.latent_dim=2")
    z = torch.tensor([[0.0, 0.0], [float("nan"), 1.0]])
    assert drift(z) == float("inf")
    gains = local_gain(model, z)
    assert gains[0].isfinite()
    assert gains[1].isnan()


def test_drift_by_hand():
    z = torch.tensor([[1.0], [3.0]])  # mean 2, variance 2
    assert drift(z) == pytest.approx(0.5 * (4 + 2 - 1 - torch.tensor(2.0).log().item()))
