"""Inference gap, refitted sigma and control variate against linear models, known in closed form."""

import math

import pytest
import torch
from conftest import at_optimum
from torch.distributions import MultivariateNormal, kl_divergence

from vae.analysis.ais import bidirectional, draw_images
from vae.analysis.bounds import ControlVariate, Proposal, control_variate, iwae, log_weights
from vae.analysis.inference_gap import (
    best_linear_proposal,
    inference_gap,
    linear_inference_gap,
    optimise_proposal,
    tight_log_p,
)
from vae.analysis.refit import reconstruction_errors, refit_sigma
from vae.models.likelihoods import Bernoulli, Likelihood
from vae.models.networks import Decoder, Encoder
from vae.models.vae import VAE
from vae.theory.linear import affine_weights, linear_elbo, linear_log_likelihood
from vae.theory.ppca import PPCA, Spectrum


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    """Correlated pixels in three channels, [200, 3, 5, 4]."""
    mix = torch.randn(60, 60, generator=seeded(1)) / 60**0.5
    x = 0.5 + 0.3 * torch.randn(200, 60, generator=seeded(2)) @ mix
    return x.view(200, 3, 5, 4)


@pytest.fixture(scope="module")
def trained(images: torch.Tensor) -> VAE:
    """A linear model near its optimum, turned so that the posterior's latents correlate."""
    model = at_optimum(images, m=4, sigma=0.2)
    angle = torch.linalg.qr(torch.randn(4, 4, generator=seeded(3))).Q
    decoder, encoder = model.decoder.layers[0], model.encoder.layers[0]
    decoder.weight.mul_(torch.tensor([2.0, 1.0, 1.0, 0.5]))
    decoder.weight.copy_(decoder.weight @ angle)
    encoder.weight[:4] = angle.T @ encoder.weight[:4]
    encoder.bias[:4] = angle.T @ encoder.bias[:4] + 0.05
    return model


def exact_elbo(model: VAE, images: torch.Tensor, q: Proposal) -> torch.Tensor:
    """log p(x) − KL(q ‖ posterior), each in closed form, [B]."""
    weights = affine_weights(model)
    W, s2 = weights.W, weights.sigma**2
    precision = torch.eye(W.shape[1], dtype=W.dtype) + W.T @ W / s2
    loc = (images.flatten(1).double() - weights.b) @ W @ precision.inverse() / s2
    posterior = MultivariateNormal(loc, precision_matrix=precision)
    factor = torch.diag_embed(q.scale.double())
    if q.factor is not None:
        factor = factor @ q.factor.double()
    own = MultivariateNormal(q.loc.double(), factor @ factor.mT)
    return linear_log_likelihood(weights, images) - kl_divergence(own, posterior)


def test_optimised_gaussian_is_the_best_diagonal_fit(trained, images):
    x = images[:32]
    best, gap = best_linear_proposal(affine_weights(trained), x)
    at_best = exact_elbo(trained, x, best)
    log_p = linear_log_likelihood(affine_weights(trained), x)
    torch.testing.assert_close(log_p - at_best, gap, rtol=0, atol=1e-9)
    assert gap[0] > 0.05  # the case is one where independent latents lose something
    found = optimise_proposal(trained, x, steps=600, samples=16, generator=seeded())
    missing = at_best - exact_elbo(trained, x, found)
    assert missing.min() > -1e-6
    assert missing.mean() < 1e-3


def test_correlated_gaussian_is_the_posterior(trained, images):
    x = images[:32]
    found = optimise_proposal(trained, x, correlated=True, generator=seeded())
    log_p = linear_log_likelihood(affine_weights(trained), x)
    assert (log_p - exact_elbo(trained, x, found)).mean() < 1e-3
    bound = iwae(trained, x, [1, 200], seeded(), proposal=found)[200]
    assert bound.ess.mean() > 199
    torch.testing.assert_close(bound.bound, log_p, rtol=0, atol=0.02)
    assert (bound.bound - log_p).mean().abs() < 1e-3


def test_gaps_sum_to_log_p_less_elbo(trained, images):
    x, weights = images[:64], affine_weights(trained)
    found = inference_gap(trained, x, K=500, generator=seeded())
    exact = linear_inference_gap(trained, weights, x)
    total = linear_log_likelihood(weights, x) - linear_elbo(trained, weights, x)
    torch.testing.assert_close(exact.approximation + exact.amortisation, total)
    assert exact.amortisation.min() > 0
    for part in ("approximation", "amortisation"):
        difference = getattr(found, part) - getattr(exact, part)
        assert difference.mean().abs() < 3 * difference.std() / 8 + 1e-3
    difference = found.approximation + found.amortisation - total
    assert difference.mean().abs() < 3 * difference.std() / 8


def test_weights_of_a_correlated_proposal_are_densities(trained, images):
    x = images[:3]
    q = optimise_proposal(trained, x, steps=3, correlated=True, generator=seeded())
    found = log_weights(trained, x, 5, seeded(1), q)
    z = q.from_noise(q.sample_noise(5, seeded(1)))
    factor = torch.diag_embed(q.scale) @ q.factor
    density = MultivariateNormal(q.loc[:, None], scale_tril=factor[:, None]).log_prob(z)
    prior = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(-1)
    rows = x.repeat_interleave(5, 0)
    likelihood = trained.decode(z.flatten(0, 1)).log_prob(rows).flatten(1).sum(1).view(3, 5)
    torch.testing.assert_close(found, likelihood + prior - density, rtol=0, atol=1e-3)
    torch.testing.assert_close(q.to_noise(z), q.sample_noise(5, seeded(1)), rtol=0, atol=1e-4)


class Laplace(Likelihood):
    """|x − output| / 0.1: a likelihood that knows of no sigma."""

    label = "Laplace"

    def distribution(self, output: torch.Tensor) -> torch.distributions.Laplace:
        return torch.distributions.Laplace(output, 0.1)

    def sample(self, output: torch.Tensor, generator: torch.Generator | None = None):
        uniform = torch.rand(output.shape, generator=generator) - 0.5
        return output - 0.1 * uniform.sign() * torch.log1p(-2 * uniform.abs())


@pytest.mark.parametrize(
    ("m", "likelihood"), [(1, Bernoulli()), (512, Bernoulli()), (1, Laplace()), (3, Laplace())]
)
def test_gap_of_other_likelihoods_and_sizes(m: int, likelihood: Likelihood):
    """log p is at least the best Gaussian's ELBO, and that at least the encoder's."""
    torch.manual_seed(0)
    shape = (1, 4, 3)
    encoder, decoder = (part(m, [16], image_shape=shape) for part in (Encoder, Decoder))
    model = VAE(encoder, decoder, m, likelihood=likelihood, image_shape=shape)
    x = (torch.rand(6, *shape, generator=seeded()) < 0.5).float()
    found = inference_gap(model.requires_grad_(False), x, 200, 60, 8, seeded())
    assert found.log_p.shape == found.ess.shape == (6,)
    assert found.approximation.mean() > -0.02
    assert found.amortisation.mean() > 0.05
    assert likelihood.density or (found.log_p < 0).all()
    assert refit_sigma(model, [x], [x]) is None
    own, _ = draw_images(model, 5, seeded())
    log_p = tight_log_p(model, own, 50, 30, 4, seeded())
    assert log_p.shape == (5,)
    assert log_p.isfinite().all()
    both = bidirectional(model, *draw_images(model, 5, seeded()), 4, 20, generator=seeded())
    assert both.lower.mean() < both.upper.mean() + 1


def test_refitted_sigma_at_the_linear_optimum_is_the_closed_form(images):
    oracle = PPCA(Spectrum.from_images(images), 4, 0.2)
    model = at_optimum(images, 4, 0.2)
    found = refit_sigma(model, [images[:150], images[150:]], [images], samples=400)
    expected = math.sqrt(oracle.squared_error / 60)
    assert found.sigma == pytest.approx(expected, abs=1e-4)
    # The KL stays, and the ELBO at the refitted sigma is the one of the squared error
    elbo = -30 * (math.log(2 * math.pi * expected**2) + 1) - oracle.total_kl
    assert found.val_elbo.mean().item() == pytest.approx(elbo, abs=0.01)
    assert found.val_elbo.mean() > oracle.train_elbo
    assert found.test_elbo.shape == (200,)


def test_no_other_sigma_is_better_than_the_refitted_one(trained, images):
    errors = reconstruction_errors(trained, [images])
    best = errors.elbo(errors.sigma).mean()
    assert best > max(errors.elbo(errors.sigma * f).mean() for f in (0.99, 1.01))
    own = errors.elbo(trained.sigma).mean().item()
    noise = torch.randn(200, 4, generator=seeded())
    assert own == pytest.approx(trained.elbo_terms(images, noise)[0].elbo.mean().item(), abs=1e-3)


def of_all(elbo: torch.Tensor, *levels: tuple[torch.Tensor, torch.Tensor]) -> ControlVariate:
    return control_variate(elbo, torch.arange(len(elbo)), *levels)


def test_control_variate_is_unbiased_and_knows_its_error():
    """Over many data sets: mean and standard error against the estimates' own spread."""
    found, errors, subset = [], [], []
    for seed in range(400):
        elbo = 10 * torch.randn(500, generator=seeded(seed), dtype=torch.float64)
        better = elbo + 2 + torch.randn(500, generator=seeded(seed + 1000)).double() - 0.1 * elbo
        one = of_all(elbo, (elbo[:50], better[:50]))
        found.append(one.mean)
        errors.append(one.se)
        subset.append(one.mean - better.mean().item())
    found = torch.tensor(found)
    assert abs(found.mean() - 2) < 3 * found.std() / 20
    assert sum(errors) / 400 == pytest.approx(found.std().item(), rel=0.1)
    assert one.subset_se == pytest.approx(torch.tensor(subset).std().item(), rel=0.3)
    assert found.std() < 0.6  # the plain mean over 50 images has a standard deviation of 1.3
    few = of_all(elbo, (elbo[:19], better[:19]))  # too few for a slope: it is 1
    assert few.mean == pytest.approx((elbo.mean() + (better - elbo)[:19].mean()).item())
    whole = of_all(elbo, (elbo, better))
    assert whole.mean == pytest.approx(better.mean().item())
    assert whole.se == pytest.approx((better.std() / 500**0.5).item())
    assert whole.subset_se == 0


def test_a_control_variate_is_regressed_on():
    """A gap that shrinks as the ELBO grows, as that of a trained encoder does: with slope 1 the
    error is three times as large."""
    plain, means, errors = [], [], []
    for seed in range(400):
        draw = torch.randn(2, 2000, generator=seeded(seed), dtype=torch.float64)
        elbo = 10 * draw[0]
        log_p = 0.5 * elbo + 3 + draw[1]
        plain.append((elbo.mean() + (log_p - elbo)[:20].mean()).item())
        one = of_all(elbo, (elbo[:20], log_p[:20]))
        means.append(one.mean)
        errors.append(one.se)
    plain, means = torch.tensor(plain), torch.tensor(means)
    assert means.std() < plain.std() / 3
    assert abs(means.mean() - 3) < 3 * means.std() / 20
    assert sum(errors) / 400 == pytest.approx(means.std().item(), rel=0.1)


def test_an_estimate_of_all_images_is_its_own_mean():
    """Whatever the noise in the ELBO of all."""
    elbo = 10 * torch.randn(400, generator=seeded(0), dtype=torch.float64)
    log_p = 0.5 * elbo + torch.randn(400, generator=seeded(1), dtype=torch.float64)
    order = torch.randperm(400, generator=seeded(2))
    noisy = elbo + 5 * torch.randn(400, generator=seeded(3), dtype=torch.float64)
    one = control_variate(noisy, order, (elbo[order], log_p[order]))
    assert one.mean == pytest.approx(log_p.mean().item())
    assert one.se == pytest.approx((log_p.std() / 20).item(), rel=1e-6)
    assert one.subset_se == 0


def test_two_levels_of_control_variates_know_their_error():
    """ELBO of 500 images, a bound 3 higher of 100, a tighter one another 2 higher of 20."""
    means, errors, subset = [], [], []
    for seed in range(400):
        draw = torch.randn(3, 500, generator=seeded(seed), dtype=torch.float64)
        elbo = 10 * draw[0]
        bound = elbo + 3 + 2 * draw[1]
        tight = bound + 2 + draw[2] - 0.3 * draw[1]
        levels = (elbo[:100], bound[:100]), (bound[:20], tight[:20])
        one = of_all(elbo, *levels)
        means.append(one.mean)
        errors.append(one.se)
        subset.append(one.mean - tight.mean().item())
    means, subset = torch.tensor(means), torch.tensor(subset)
    assert abs(means.mean() - 5) < 3 * means.std() / 20
    assert sum(errors) / 400 == pytest.approx(means.std().item(), rel=0.1)
    assert one.subset_se == pytest.approx(subset.std().item(), rel=0.3)
    single = of_all(elbo, (elbo[:20], tight[:20]))
    assert one.subset_se < 0.7 * single.subset_se


def test_images_drawn_from_a_linear_model_have_its_law(trained):
    x, z = draw_images(trained, 4000, seeded())
    assert x.shape == (4000, 3, 5, 4)
    weights = affine_weights(trained)
    noise = x.flatten(1).double() - z.double() @ weights.W.T - weights.b
    assert noise.std().item() == pytest.approx(0.2, rel=0.01)
    log_p = tight_log_p(trained, x)
    expected = -30 * (math.log(2 * math.pi) + 1)  # minus the entropy of the law
    covariance = weights.W @ weights.W.T + 0.04 * torch.eye(60, dtype=torch.float64)
    expected -= 0.5 * torch.linalg.slogdet(covariance).logabsdet.item()
    assert log_p.mean().item() == pytest.approx(expected, abs=4 * log_p.std().item() / 4000**0.5)
