"""The inference gap: what an encoder loses, and what no Gaussian could give (Cremer et al. 2018).

    log p(x) − ELBO(x) = [log p(x) − ELBO(q*)] + [ELBO(q*) − ELBO(q)]
                       =   approximation gap    +   amortisation gap

where q(z|x) is the encoder's and q*(z) the best diagonal Gaussian for this one image (Cremer et al.
2018, arXiv:1801.03558, eq. 4). q* is found by optimisation, and in closed form for a linear
decoder. Nats per image; m latents, B images.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vae.analysis.bounds import Proposal, iwae
from vae.models.elbo import log_prior_ratio
from vae.models.vae import VAE
from vae.theory.linear import AffineWeights, affine_weights, linear_elbo, linear_log_likelihood


class InferenceGap(NamedTuple):
    """The parts of log p(x) − ELBO(x), image by image."""

    log_p: Tensor  # [B], exact, or the tightest lower bound
    # [B], of the best diagonal Gaussian; of the best one found, where log_p is a bound: then the
    # amortisation gap is at least what is measured, and the approximation gap is not bounded
    best_elbo: Tensor
    elbo: Tensor  # [B], of the encoder's
    ess: Tensor | None  # [B], effective number of the samples behind log_p; None where it is exact

    @property
    def approximation(self) -> Tensor:  # [B]
        return self.log_p - self.best_elbo

    @property
    def amortisation(self) -> Tensor:  # [B]
        return self.best_elbo - self.elbo


def inference_gap(
    model: VAE,
    images: Tensor,
    K: int = 1000,
    steps: int = 300,
    samples: int = 8,
    generator: torch.Generator | None = None,
    rows: int = 4096,
    progress: Callable[[Any], Any] = iter,
) -> InferenceGap:
    """The inference gap of images [B, C, H, W], by optimising Gaussians for each of them.

    Both ELBOs are means of K samples that no optimisation has seen. log p is L_K with a Gaussian
    of full covariance as its proposal: close to the posterior, where the encoder's q needs many
    times the samples. Should it be the looser one (of hundreds of latents too many correlations are
    to be found), log p is the L_K with independent latents.
    """
    bounds = [iwae(model, images, [1, K], generator, rows, progress)]
    for rate, correlated in ((0.05, False), (0.1, True)):
        q = optimise_proposal(
            model, images, steps, samples, rate, correlated, generator, rows, progress
        )
        bounds.append(iwae(model, images, [1, K], generator, rows, progress, q))
    encoder, diagonal, full = bounds
    tightest = max((diagonal[K], full[K]), key=lambda one: one.bound.mean().item())
    return InferenceGap(tightest.bound, diagonal[1].bound, encoder[1].bound, tightest.ess)


def linear_inference_gap(model: VAE, weights: AffineWeights, images: Tensor) -> InferenceGap:
    """The inference gap of a linear encoder and decoder for images [B, C, H, W], exact, float64."""
    log_p = linear_log_likelihood(weights, images)
    _, approximation = best_linear_proposal(weights, images[:1])
    return InferenceGap(log_p, log_p - approximation, linear_elbo(model, weights, images), None)


def tight_log_p(
    model: VAE,
    images: Tensor,
    K: int = 1000,
    steps: int = 300,
    samples: int = 8,
    generator: torch.Generator | None = None,
    rows: int = 4096,
    progress: Callable[[Any], Any] = iter,
) -> Tensor:
    """log p(x) of images [N, C, H, W]: exact for a linear model, else L_K from below, [N].

    The proposals of L_K are optimised for each image, so that it does not matter how well the
    encoder does on images unlike those it was trained on.
    """
    weights = affine_weights(model)
    if weights is not None:
        return linear_log_likelihood(weights, images)
    return inference_gap(model, images, K, steps, samples, generator, rows, progress).log_p


def optimise_proposal(
    model: VAE,
    images: Tensor,
    steps: int = 300,
    samples: int = 8,
    rate: float = 0.05,
    correlated: bool = False,
    generator: torch.Generator | None = None,
    rows: int = 4096,
    progress: Callable[[Any], Any] = iter,
) -> Proposal:
    """The Gaussian with the highest ELBO for each of the images [B, C, H, W], by Adam.

    It starts from the encoder's q(z|x), its rate falling from `rate` to 0 along a cosine, with
    `samples` samples of each image a step in antithetic pairs, at most `rows` at once. Latents are
    independent, as in q, unless `correlated`.
    """
    pairs, m = max(1, samples // 2), model.latent_dim
    at_once = max(1, min(rows // (2 * pairs), 2**24 // m**2 if correlated else rows))
    found = [
        optimise_chunk(model, x, steps, pairs, rate, correlated, generator, progress)
        for x in images.split(at_once)
    ]
    locs, scales, factors = zip(*found, strict=True)
    return Proposal(torch.cat(locs), torch.cat(scales), torch.cat(factors) if correlated else None)


def optimise_chunk(
    model: VAE,
    images: Tensor,
    steps: int,
    pairs: int,
    rate: float,
    correlated: bool,
    generator: torch.Generator | None,
    progress: Callable[[Any], Any],
) -> Proposal:
    """`optimise_proposal` of images that fit into memory together."""
    # 1. Parameters, in units of the encoder's standard deviations
    with torch.no_grad():
        start = Proposal.from_normal(model.encode(images))
    B, m = start.loc.shape
    image = torch.arange(B, device=images.device)
    shift, log_scale = torch.zeros_like(start.loc), torch.zeros_like(start.loc)
    below = torch.tril_indices(m, m, -1, device=images.device) if correlated else None
    entries = start.loc.new_zeros(B, 0 if below is None else below.shape[1])
    parameters = [shift, log_scale, *([entries] if correlated else [])]
    moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in parameters]

    def proposal() -> Proposal:
        loc, scale = start.loc + start.scale * shift, start.scale * log_scale.exp()
        if below is None:
            return Proposal(loc, scale)
        factor = torch.eye(m, device=loc.device, dtype=loc.dtype).repeat(B, 1, 1)
        factor = factor.index_put((image[:, None], below[0], below[1]), entries)
        return Proposal(loc, scale, factor)

    # 2. Ascent of the ELBO, image by image: no image's steps depend on another's
    for t in progress(range(steps)):
        for p in parameters:
            p.requires_grad_()
        q = proposal()
        u = q.sample_noise(pairs, generator)
        gradients = path_gradients(model, images, torch.cat([u, -u], dim=1), q, parameters)
        decayed = rate * 0.5 * (1 + math.cos(math.pi * t / steps))
        for p, gradient, (first, second) in zip(parameters, gradients, moments, strict=True):
            p.requires_grad_(False)
            pace = decayed / m**0.5 if p is entries else decayed  # m of them move one latent
            adam_step(p, gradient.nan_to_num(0, 0, 0), first, second, pace, t)
    with torch.no_grad():
        return proposal()


def path_gradients(
    model: VAE, images: Tensor, u: Tensor, q: Proposal, parameters: list[Tensor]
) -> tuple[Tensor, ...]:
    """Gradients of the ELBO at z = q.from_noise(u), through z alone (Roeder et al. 2017,
    arXiv:1703.09194).

    q's own density takes its parameters as constants: what that leaves out has mean zero, and the
    noise vanishes as q becomes the posterior.
    """
    z = q.from_noise(u)  # [B, K, m]
    fixed = Proposal(*(None if part is None else part.detach() for part in q))  # type: ignore
    rows = images.repeat_interleave(u.shape[1], dim=0)
    likelihood = model.log_likelihood(rows, z.flatten(0, 1)).view(u.shape[:2])
    elbo = likelihood + log_prior_ratio(z, fixed.to_noise(z), 0.0)
    return torch.autograd.grad(elbo.mean(1).sum(), parameters)


def adam_step(
    parameter: Tensor, gradient: Tensor, first: Tensor, second: Tensor, rate: float, t: int
) -> None:
    """One step uphill in place, with Adam's decays 0.9 and 0.99 (Kingma & Ba 2015, algorithm 1)."""
    first.lerp_(gradient, 0.1)
    second.lerp_(gradient.square(), 0.01)
    first_hat, second_hat = first / (1 - 0.9 ** (t + 1)), second / (1 - 0.99 ** (t + 1))
    parameter.add_(rate * first_hat / (second_hat.sqrt() + 1e-8))


def best_linear_proposal(weights: AffineWeights, images: Tensor) -> tuple[Proposal, Tensor]:
    """The best diagonal Gaussian of a linear decoder for images [B, …], and its approximation gap.

    The posterior is N(μ, P⁻¹) with P = I + WᵀW/σ² and μ = P⁻¹ Wᵀ(x − b)/σ². Of all diagonal
    Gaussians N(μ, diag 1/P_ii) has the smallest KL to it, ½ (Σ_i log P_ii − log det P), [B], the
    same for every image (Bishop 2006, section 10.1.2). float64 on the CPU.
    """
    W, s2 = weights.W, weights.sigma**2
    precision = torch.eye(W.shape[1], dtype=W.dtype) + W.T @ W / s2
    residual = images.flatten(1).cpu().double() - weights.b
    loc = torch.linalg.solve(precision, W.T @ residual.T / s2).T
    diagonal = precision.diagonal()
    gap = 0.5 * (diagonal.log().sum() - torch.linalg.slogdet(precision).logabsdet)
    return Proposal(loc, diagonal.rsqrt().expand_as(loc)), gap.expand(len(loc))
