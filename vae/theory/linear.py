"""A linear encoder and decoder: its weights, its exact log p(x), and the exact law of its chain.

With a linear decoder p(x) is a Gaussian (Tipping & Bishop 1999), and the chain decode → sample →
encode → sample is a first-order autoregressive process. D pixels, m latents, B images, nats.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, Normal

from vae.models.elbo import gaussian_log_likelihood, kl_to_prior
from vae.models.likelihoods import Gaussian
from vae.models.networks import Decoder, Encoder
from vae.models.vae import VAE


class AffineWeights(NamedTuple):
    """A linear VAE: mean(x) = V x + c, log sd(x) = S x + t, f(z) = W z + b."""

    V: Tensor  # [m, D]
    c: Tensor  # [m]
    S: Tensor  # [m, D]
    t: Tensor  # [m]
    W: Tensor  # [D, m]
    b: Tensor  # [D]
    sigma: float


def affine_weights(model: VAE) -> AffineWeights | None:
    """The weights of a Gaussian VAE whose encoder mean and decoder are affine, in float64; None for
    any other model."""
    encoder, decoder = model.encoder, model.decoder
    if not (
        isinstance(encoder, Encoder)
        and isinstance(decoder, Decoder)
        and isinstance(model.likelihood, Gaussian)
    ):
        return None
    if (
        len(encoder.layers) > 1
        or len(decoder.layers) > 1
        or not isinstance(decoder.output, nn.Identity)
    ):
        return None
    (V, S), (c, t) = (
        weight.detach().cpu().double().chunk(2) for weight in encoder.layers.parameters()
    )
    W, b = (weight.detach().cpu().double() for weight in decoder.layers.parameters())
    return AffineWeights(V, c, S, t, W, b, model.likelihood.sigma)


def spectral_radius(weights: AffineWeights) -> float:
    """ρ(V W): the factor by which the slowest direction of the chain shrinks in a step, exact."""
    return torch.linalg.eigvals(weights.V @ weights.W).abs().max().item()


def gaussian(mean: Tensor, covariance: Tensor) -> MultivariateNormal:
    """N(mean [m], covariance [m, m]) in the precision of its arguments."""
    return MultivariateNormal(mean, covariance, validate_args=False)


def kl_to_standard_normal(law: MultivariateNormal) -> float:
    """KL(law ‖ N(0, I)) in nats."""
    return kl_of_moments(law.loc, law.covariance_matrix)


def kl_of_moments(mean: Tensor, covariance: Tensor) -> float:
    """KL(N(mean [m], covariance [m, m]) ‖ N(0, I)) in nats."""
    second = covariance.trace() + mean.square().sum()
    return 0.5 * (second - len(mean) - covariance.logdet()).item()


def sample_gaussian(
    law: MultivariateNormal, n: int, generator: torch.Generator | None = None
) -> Tensor:
    """n draws from `law`, [n, m], from a generator of their own."""
    noise = torch.randn(n, len(law.loc), generator=generator, dtype=law.loc.dtype)
    return law.loc + noise @ law.scale_tril.T


def lyapunov(A: Tensor, Q: Tensor) -> Tensor:
    """The Σ with Σ = A Σ Aᵀ + Q, [m, m], where ρ(A) < 1: the sum of A^k Q (A^k)ᵀ, its terms doubled
    every round."""
    covariance = Q
    while A.norm() > 1e-10:
        covariance = covariance + A @ covariance @ A.T
        A = A @ A
    return covariance


def stationary_distribution(model: VAE, weights: AffineWeights) -> MultivariateNormal | None:
    """Mean and covariance of the limit of a linear VAE's chain; None where there is no limit.

    z_{t+1} = A z_t + a + noise with A = V W, a = V b + c and noise covariance sigma² V Vᵀ + E
    diag(sd(x)²), so the mean is (I − A)⁻¹ a and the covariance solves the discrete Lyapunov
    equation; both need ρ(A) < 1. Where sd depends on x its mean square is that of a Gaussian x of
    the law itself, found by fixed-point iteration; this is exact for a constant sd and close
    otherwise.
    """
    V, c, S, t, W, b, sigma = weights
    s2, A = sigma**2, V @ W
    if not torch.isfinite(A).all() or torch.linalg.eigvals(A).abs().max() >= 1:
        return None
    mean = torch.linalg.solve(torch.eye(len(A), dtype=A.dtype) - A, V @ b + c)
    log_sd = S @ (W @ mean + b) + t  # mean of the unbounded log sd, [m]
    grid = torch.linspace(-8, 8, 321, dtype=A.dtype)[:, None]
    density = (-0.5 * grid.square()).exp()
    density /= density.sum()

    def next_covariance(covariance: Tensor) -> Tensor:
        deviation = (
            ((S @ W) @ covariance * (S @ W)).sum(1) + s2 * S.square().sum(1)
        ).sqrt()  # of log sd, [m]
        bounded = model.encoder.bounded(log_sd + deviation * grid)  # type: ignore[operator]
        return lyapunov(A, s2 * V @ V.T + torch.diag((density * (2 * bounded).exp()).sum(0)))

    covariance = torch.eye(len(A), dtype=A.dtype)
    for _ in range(1000):
        covariance, before = next_covariance(covariance), covariance
        if not torch.isfinite(covariance).all():
            return None
        if (covariance - before).norm() < 1e-9 * covariance.norm():
            return gaussian(mean, covariance)
    return None


def linear_log_likelihood(weights: AffineWeights, images: Tensor) -> Tensor:
    """Exact log N(x; b, W Wᵀ + sigma² I) of each image [B, …], float64 [B] on the CPU.

    Woodbury's identity needs only M = sigma² I + WᵀW, [m, m] (Tipping & Bishop 1999, section 3).
    """
    residual = images.flatten(1).cpu().double() - weights.b  # [B, D]
    (D, m), sigma = weights.W.shape, weights.sigma
    cholesky = torch.linalg.cholesky(
        sigma**2 * torch.eye(m, dtype=torch.float64) + weights.W.T @ weights.W
    )
    explained = (
        torch.linalg.solve_triangular(cholesky, (residual @ weights.W).T, upper=False)
        .square()
        .sum(0)
    )
    log_det = (D - m) * math.log(sigma**2) + 2 * cholesky.diagonal().log().sum()
    return -0.5 * (
        D * math.log(2 * math.pi) + log_det + (residual.square().sum(1) - explained) / sigma**2
    )


@torch.no_grad()
def linear_elbo(model: VAE, weights: AffineWeights, images: Tensor) -> Tensor:
    """ELBO of a linear VAE with the expectation over q(z|x) done exactly, float64 [B] on the CPU.

    E_q‖x − W z − b‖² = ‖x − W mean − b‖² + Σ_i sd_i² ‖w_i‖²; log p(x) less this is KL(q‖posterior)
    ≥ 0.
    """
    q = model.encode(images)
    q = Normal(q.loc.cpu().double(), q.scale.cpu().double())
    x = images.flatten(1).cpu().double()
    at_mean = gaussian_log_likelihood(x, q.loc @ weights.W.T + weights.b, weights.sigma)
    spread = q.variance @ weights.W.square().sum(0)  # E‖W (z − mean)‖²
    return at_mean - spread / (2 * weights.sigma**2) - kl_to_prior(q).sum(1)
