"""Encoder and decoder: sizes, bounds, precision, sampling."""

import pytest
import torch
from conftest import build_model

from vae.models.networks import Encoder
from vae.models.vae import count_parameters, to_float32
from vae.theory.linear import affine_weights


def test_parameter_counts():
    baseline = build_model("model=baseline")
    assert count_parameters(baseline.encoder) == 785 * 64 == 50_240
    assert count_parameters(baseline.decoder) == 33 * 784 == 25_872
    deep = build_model("model=deep")
    assert count_parameters(deep.encoder) == 785 * 512 + 513 * 256 + 257 * 64
    assert count_parameters(deep.decoder) == 33 * 256 + 257 * 512 + 513 * 784


def test_the_soft_bound_of_log_sd():
    """Within (low, high) whatever the scores, the identity well inside, a gradient everywhere."""
    encoder = Encoder(1, log_sd_range=(-7.0, 2.0))
    with torch.no_grad():
        encoder.layers[0].weight.zero_()
    out = []
    for score in (-12.0, -2.5, 6.0):
        with torch.no_grad():
            encoder.layers[0].bias.copy_(torch.tensor([0.0, score]))
        encoder.zero_grad()
        log_sd = encoder(torch.zeros(1, 1, 28, 28))[1]
        log_sd.backward()
        assert encoder.layers[0].bias.grad[1] > 1e-3
        out.append(log_sd.item())
    assert -7 < out[0] < -6.9
    assert out[1] == pytest.approx(-2.5, abs=0.02)
    assert 1.9 < out[2] < 2.1


def test_half_precision_is_left_before_squares_and_exp():
    """Under autocast the distributions are float32, and the KL of nearly collapsed latents is not
    negative."""
    model = build_model("model=deep")
    with torch.no_grad():  # scores near zero: a collapsed encoder
        for weight in list(model.encoder.layers[-1].parameters()):
            weight.mul_(1e-3)
    with torch.autocast("cpu", torch.bfloat16):
        terms, posterior = model.elbo_terms(torch.rand(64, 1, 28, 28))
    assert (
        posterior.loc.dtype == posterior.scale.dtype == terms.log_likelihood.dtype == torch.float32
    )
    assert terms.kl.min() >= -1e-6
    assert to_float32(torch.ones(1, dtype=torch.float64)).dtype == torch.float64


def test_sample_and_reconstruct():
    model = build_model("model=deep", "model.latent_dim=5")
    draws = [model.sample(6, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert draws[0].shape == (6, 1, 28, 28)
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert 0 <= draws[0].min() <= draws[0].max() <= 1  # sigmoid output
    assert model.reconstruct(torch.rand(3, 1, 28, 28)).shape == (3, 1, 28, 28)


def test_linear_pair_gives_the_maps():
    model = build_model("model.latent_dim=3")
    weights = affine_weights(model)
    x, z = torch.rand(4, 1, 28, 28), torch.randn(4, 3)
    mean, log_sd = model.encoder(x)
    torch.testing.assert_close(
        mean.double(), x.flatten(1).double() @ weights.V.T + weights.c, rtol=0, atol=1e-5
    )
    torch.testing.assert_close(
        log_sd.double(), x.flatten(1).double() @ weights.S.T + weights.t, rtol=0, atol=1e-5
    )
    torch.testing.assert_close(
        model.mean_image(z).flatten(1).double(),
        z.double() @ weights.W.T + weights.b,
        rtol=0,
        atol=1e-5,
    )
    assert affine_weights(build_model("model=deep")) is None
    assert affine_weights(build_model("model.decoder.output=sigmoid")) is None
