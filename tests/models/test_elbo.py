"""The ELBO against a computation by hand, against torch.distributions and against its own
definition."""

import math

import pytest
import torch
from conftest import build_model
from torch.distributions import Normal

from vae.models.elbo import gaussian_log_likelihood, kl_to_prior, rsample, upper_bound


def test_elbo_by_hand():
    """One image, two latents, every number written out (SCIENCE: section 1)."""
    model = build_model("model.latent_dim=2", "model.sigma=0.5")
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
        model.encoder.layers[0].bias.copy_(
            torch.tensor([1.0, -2.0, math.log(0.5), 0.0])
        )  # means, log sds
        model.decoder.layers[0].bias.fill_(0.25)
        model.decoder.layers[0].weight[:, 0] = 0.1
    x, noise = torch.full((1, 1, 28, 28), 0.75), torch.tensor([[2.0, 0.0]])
    terms, _ = model.elbo_terms(x, noise)
    # z = (1 + 0.5 · 2, −2); f(z) = 0.25 + 0.1 · 2 = 0.45; the error of each of 784 pixels is 0.3
    log_likelihood = -392 * math.log(2 * math.pi * 0.25) - 784 * 0.09 / 0.5
    kl = [0.5 * (1 + 0.25 - 1) - math.log(0.5), 0.5 * (4 + 1 - 1)]
    assert terms.log_likelihood.item() == pytest.approx(log_likelihood, rel=1e-6)
    assert terms.kl[0].tolist() == pytest.approx(kl, rel=1e-6)
    assert terms.elbo.item() == pytest.approx(log_likelihood - sum(kl), rel=1e-6)


def test_log_likelihood_is_that_of_the_distribution():
    x, mean = (
        torch.rand(5, 1, 28, 28, dtype=torch.float64),
        torch.rand(5, 1, 28, 28, dtype=torch.float64),
    )
    expected = Normal(mean, 0.3).log_prob(x).flatten(1).sum(1)
    torch.testing.assert_close(gaussian_log_likelihood(x, mean, 0.3), expected)


def test_kl_is_the_mean_of_the_log_ratio():
    posterior = Normal(torch.tensor([[0.7, -1.2]]).double(), torch.tensor([[0.4, 1.5]]).double())
    z = posterior.loc + posterior.scale * torch.randn(400_000, 2, dtype=torch.float64)
    ratios = posterior.log_prob(z) - Normal(0.0, 1.0).log_prob(z)
    error = ratios.std(0) / math.sqrt(len(z))
    assert ((ratios.mean(0) - kl_to_prior(posterior)[0]).abs() < 4 * error).all()


def test_a_draw_has_the_moments_of_the_posterior_and_carries_gradients():
    mean = torch.tensor([1.0, -2.0], requires_grad=True)
    posterior = Normal(mean.expand(200_000, 2), torch.tensor([0.5, 2.0]).expand(200_000, 2))
    z = rsample(posterior, torch.Generator().manual_seed(0))
    assert z.mean(0).tolist() == pytest.approx([1, -2], abs=0.02)
    assert z.std(0).tolist() == pytest.approx([0.5, 2], rel=0.01)
    z.sum().backward()
    assert mean.grad.tolist() == [200_000, 200_000]


@pytest.mark.parametrize(
    ("sigma", "cap"), [(1.0, -720.5), (0.5, -177.0), (0.25, 366.4), (0.2, 541.4), (0.1, 1084.8)]
)
def test_upper_bound(sigma: float, cap: float):
    assert upper_bound(784, sigma) == pytest.approx(cap, abs=0.06)


def test_pair_and_distributions_agree():
    """decode and encode give the distributions that the ELBO uses."""
    model = build_model("model=deep", "model.latent_dim=3")
    x, noise = torch.rand(4, 1, 28, 28), torch.randn(4, 3)
    terms, posterior = model.elbo_terms(x, noise)
    z = model.encode(x).loc + model.encode(x).scale * noise
    likelihood = model.decode(z)
    assert isinstance(likelihood, Normal)
    assert likelihood.mean.shape == (4, 1, 28, 28)
    assert likelihood.scale.unique().tolist() == [0.25]
    torch.testing.assert_close(
        terms.log_likelihood, likelihood.log_prob(x).sum((1, 2, 3)), rtol=1e-5, atol=1e-2
    )
    torch.testing.assert_close(posterior.loc, model.encode(x).loc)
