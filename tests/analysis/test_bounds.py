"""Every estimator of log p(x) against a linear model, where the answer is known exactly."""

import math

import pytest
import torch
from conftest import at_optimum
from torch import nn

from vae.analysis.ais import ais, bidirectional, draw_images
from vae.analysis.bounds import Estimate, elbo_terms, importance_bounds, iwae, log_weights
from vae.data.datamodule import ImageDataModule
from vae.models.networks import Decoder, Encoder
from vae.models.vae import VAE
from vae.theory.linear import affine_weights, linear_elbo, linear_log_likelihood
from vae.theory.ppca import PPCA, Spectrum


@pytest.fixture(scope="module")
def digits(digits: ImageDataModule) -> torch.Tensor:
    """300 real digits, [300, 1, 28, 28] in [0, 1]."""
    return digits.images("test")


@pytest.fixture(scope="module")
def optimum(digits: torch.Tensor) -> VAE:
    return at_optimum(digits, m=16, sigma=0.25)


@pytest.fixture(scope="module")
def trained(digits: torch.Tensor) -> VAE:
    """A linear model after some steps of Adam from the optimum disturbed: its encoder not exact."""
    model = at_optimum(digits, m=4, sigma=0.5).requires_grad_(True)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data += 0.03 * torch.randn(parameter.shape, generator=generator)
    optimizer = torch.optim.Adam(model.parameters(), 0.002)
    for _ in range(40):
        noise = torch.randn(len(digits), 4, generator=generator)
        (-model.elbo_terms(digits, noise)[0].elbo.mean()).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.requires_grad_(False).eval()


def test_exact_log_likelihood_is_that_of_the_full_covariance(trained, digits):
    weights = affine_weights(trained)
    covariance = weights.W @ weights.W.T + trained.sigma**2 * torch.eye(784, dtype=torch.float64)
    law = torch.distributions.MultivariateNormal(weights.b, covariance)
    expected = law.log_prob(digits[:50].flatten(1).double())
    assert linear_log_likelihood(weights, digits[:50]).sub(expected).abs().max() < 1e-6


def test_exact_log_likelihood_at_the_optimum_is_the_closed_form(optimum, digits):
    oracle = PPCA(Spectrum.from_images(digits), 16, 0.25)
    exact = linear_log_likelihood(affine_weights(optimum), digits)
    assert (exact - oracle.elbo(digits)).abs().max() < 1e-2  # float32 weights
    assert exact.mean().item() == pytest.approx(oracle.train_elbo, abs=1e-3)


def test_linear_elbo_is_the_mean_of_many_sampled_ones(trained, digits):
    x = digits[:20]
    noise = torch.randn(4000, 20, 4, generator=torch.Generator().manual_seed(0))
    sampled = torch.stack([elbo_terms(trained, x, one[None]).elbo for one in noise]).double()
    error = sampled.std(0) / math.sqrt(len(noise))
    z = (sampled.mean(0) - linear_elbo(trained, affine_weights(trained), x)) / error
    assert z.abs().max() < 4.5


def test_gap_is_the_divergence_of_the_encoder_from_the_posterior(trained, digits):
    """log p − ELBO against the KL between q and the Gaussian posterior, each in closed form."""
    weights, x = affine_weights(trained), digits[:30]
    precision = torch.eye(4, dtype=torch.float64) + weights.W.T @ weights.W / trained.sigma**2
    mean = torch.linalg.solve(
        precision, weights.W.T @ (x.flatten(1).double() - weights.b).T / trained.sigma**2
    ).T
    posterior = torch.distributions.MultivariateNormal(mean, precision_matrix=precision)
    q = trained.encode(x)
    q = torch.distributions.MultivariateNormal(
        q.loc.double(), torch.diag_embed(q.scale.double() ** 2)
    )
    divergence = torch.distributions.kl_divergence(q, posterior)
    gap = linear_log_likelihood(weights, x) - linear_elbo(trained, weights, x)
    assert gap.min() > 0.001
    assert (gap - divergence).abs().max() < 1e-3


def test_every_bound_equals_the_elbo_at_the_optimum(optimum, digits):
    exact = linear_log_likelihood(affine_weights(optimum), digits)
    bounds = iwae(optimum, digits, [1, 10, 100, 1000], torch.Generator().manual_seed(0))
    for K, found in bounds.items():
        assert found.bound.mean().item() == pytest.approx(exact.mean().item(), abs=1e-3)
        assert found.bound.sub(exact).abs().max() < 0.02  # image by image, in float32
        assert found.ess.min() > 0.999 * K


def test_bounds_rise_to_the_exact_answer_and_not_past_it(trained, digits):
    exact = linear_log_likelihood(affine_weights(trained), digits)
    bounds = iwae(trained, digits, [1, 10, 100, 1000], torch.Generator().manual_seed(0))
    means = [found.bound.mean().item() for found in bounds.values()]
    assert means == sorted(means)
    elbo = linear_elbo(trained, affine_weights(trained), digits).mean().item()
    assert elbo < exact.mean().item() - 0.02
    assert means[0] == pytest.approx(elbo, abs=0.01)
    assert means[-1] == pytest.approx(exact.mean().item(), abs=0.005)


def test_log_weights_are_the_sampled_densities(trained, digits):
    """log p(x|z) + log p(z) − log q(z|x), with the densities of torch.distributions."""
    x = digits[:3]
    found = log_weights(trained, x, 2, torch.Generator().manual_seed(5))
    q = trained.encode(x)
    u = torch.randn(6, 4, generator=torch.Generator().manual_seed(5)).view(3, 2, 4)
    z = q.loc[:, None] + q.scale[:, None] * u
    wide = torch.distributions.Normal(q.loc[:, None], q.scale[:, None])
    prior = torch.distributions.Normal(0.0, 1.0)
    likelihood = (
        trained.decode(z.flatten(0, 1))
        .log_prob(x.repeat_interleave(2, 0))
        .flatten(1)
        .sum(1)
        .view(3, 2)
    )
    expected = likelihood + prior.log_prob(z).sum(-1) - wide.log_prob(z).sum(-1)
    assert found.sub(expected).abs().max() < 2e-3


def test_importance_bounds_on_weights_known_by_hand():
    weights = torch.tensor([[1.0, 3.0, 1.0, 1.0]])
    found = importance_bounds(weights.log(), [1, 2, 4])
    assert found[1].bound.item() == pytest.approx(math.log(3) / 4)
    assert found[2].bound.item() == pytest.approx((math.log(2) + math.log(1)) / 2)
    assert found[4].bound.item() == pytest.approx(math.log(6 / 4))
    assert found[4].ess.item() == pytest.approx(36 / 12)
    far = importance_bounds(weights.log() - 5000, [4])[4]  # exp would underflow
    assert far.bound.item() == pytest.approx(math.log(6 / 4) - 5000, abs=1e-3)


def test_chunks_do_not_change_what_a_bound_means(trained, digits):
    x = digits[:40]
    whole = iwae(trained, x, [500], torch.Generator().manual_seed(0), rows=10**6)[500]
    chunked = iwae(trained, x, [500], torch.Generator().manual_seed(1), rows=130)[500]
    assert chunked.bound.shape == chunked.ess.shape == (40,)
    assert (whole.bound - chunked.bound).abs().max() < 0.25
    assert abs((whole.bound - chunked.bound).mean()) < 0.03


@pytest.mark.parametrize("start", ["prior", "posterior"])
def test_ais_agrees_with_the_exact_answer(trained, digits, start):
    x = digits[:40]
    exact = linear_log_likelihood(affine_weights(trained), x)
    found = ais(
        trained,
        x,
        chains=16,
        distributions=60,
        start=start,
        generator=torch.Generator().manual_seed(0),
    )
    error = found.se.square().sum().sqrt().item() / len(x)
    assert 0.0005 < error < 0.1
    bias = -found.se.square().mean().item() / 2  # of the logarithm of a mean
    assert abs((found.log_p - exact).mean().item() - bias) < 3 * error
    assert found.acceptance == pytest.approx(0.65, abs=0.08)


def test_ais_tells_where_its_path_is_too_short(trained, digits):
    x = digits[:40]
    found = ais(
        trained,
        x,
        chains=16,
        distributions=3,
        start="prior",
        generator=torch.Generator().manual_seed(0),
    )
    exact = linear_log_likelihood(affine_weights(trained), x)
    assert found.log_p.mean() < exact.mean()  # from below
    assert found.ess.mean() < 8


def test_ais_of_a_non_linear_model_agrees_with_quadrature():
    """One latent, so that p(x) is an integral over a grid."""
    torch.manual_seed(0)
    model = VAE(Encoder(1, [8]), Decoder(1, [8], "tanh", "sigmoid"), 1, 0.5).requires_grad_(False)
    for parameter in model.decoder.parameters():
        parameter.mul_(2)
    x = model.sample(12, torch.Generator().manual_seed(3))
    x = (x + 0.5 * torch.randn(x.shape, generator=torch.Generator().manual_seed(4))).detach()
    grid = torch.linspace(-8, 8, 4001)[:, None]
    image, log_prior = (
        model.mean_image(grid).flatten(1).double(),
        -0.5 * grid[:, 0].double().square(),
    )
    squares = torch.cdist(x.flatten(1).double(), image).square()
    log_joint = (
        -squares / (2 * 0.25)
        - 392 * math.log(2 * math.pi * 0.25)
        + log_prior
        - 0.5 * math.log(2 * math.pi)
    )
    exact = log_joint.logsumexp(1) + math.log(16 / 4000)
    found = ais(model, x, chains=200, distributions=25, generator=torch.Generator().manual_seed(0))
    error = found.se.square().sum().sqrt().item() / len(x)
    assert error < 0.05
    assert abs((found.log_p - exact).mean().item()) < 3 * error


@pytest.mark.parametrize("start", ["prior", pytest.param("posterior", marks=pytest.mark.slow)])
def test_both_sides_enclose_the_exact_answer(trained, start):
    """Bidirectional Monte Carlo on images of the linear model; a short path leaves a wide gap."""
    x, z = draw_images(trained, 40, torch.Generator().manual_seed(2))
    exact = linear_log_likelihood(affine_weights(trained), x)
    gaps = []
    for distributions in (5, 100):
        found = bidirectional(
            trained, x, z, 8, distributions, start=start, generator=torch.Generator().manual_seed(0)
        )
        below, above = exact - found.lower, found.upper - exact
        for side in (below, above):  # bounds in expectation
            assert side.mean() > -3 * side.std() / 40**0.5
        gaps.append((found.upper - found.lower).mean().item())
    assert gaps[1] < 0.4
    assert gaps[0] > 8 * gaps[1]


def test_elbo_terms_average_over_samples(trained, digits):
    noise = torch.randn(3, 10, 4, generator=torch.Generator().manual_seed(0))
    many = elbo_terms(trained, digits[:10], noise)
    each = torch.stack([trained.elbo_terms(digits[:10], one)[0].elbo for one in noise])
    assert torch.allclose(many.elbo, each.mean(0), atol=1e-3)


def test_estimate_has_the_standard_error_of_a_mean():
    found = Estimate.from_values(torch.tensor([1.0, 2.0, 3.0, 6.0]))
    assert found.mean == 3.0
    assert found.se == pytest.approx(math.sqrt(14 / 3 / 4))


def test_parameters_get_no_gradients_from_ais(trained, digits):
    model = VAE(Encoder(4), nn.Sequential(nn.Linear(4, 784), nn.Unflatten(1, (1, 28, 28))), 4, 0.5)
    ais(model, digits[:2], chains=2, distributions=3)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_one_chain_of_ais_says_nothing_about_its_error(trained, digits):
    assert ais(trained, digits[:2], chains=1, distributions=3).se.isnan().all()
    assert ais(trained, digits[:2], chains=2, distributions=3).se.isfinite().all()
