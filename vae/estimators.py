"""How likely are the images? The exact log p(x) of a linear pair, and two lower bounds for any pair.

Everything in nats per image. For a linear decoder p(x) is a Gaussian (Tipping & Bishop 1999). For any other
there are the importance-weighted bound (Burda et al. 2016, arXiv:1509.00519) and annealed importance sampling
(Neal 2001; for decoders Wu et al. 2017, arXiv:1611.04273). Both are bounds in expectation, ELBO ≤ L_K ≤ log p(x),
and both equal log p(x) where q is the exact posterior. D pixels, m latents, B images, K samples, C chains.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vae.elbo import Terms, gaussian_log_likelihood, log_prior_ratio
from vae.networks import VAE, LinearPair


class Estimate(NamedTuple):
    """A mean over images and its standard error."""

    mean: float
    se: float

    @classmethod
    def of(cls, values: Tensor) -> "Estimate":
        """Of one value an image, [N]; the error is NaN for a single image."""
        values = values.cpu().double()
        return cls(values.mean().item(), (values.std() / math.sqrt(len(values))).item())


@torch.no_grad()
def elbo_terms(model: VAE, images: Tensor, noise: Tensor) -> Terms:
    """The ELBO's terms of images [B, 1, 28, 28], averaged over the latent samples that `noise` [S, B, m] makes."""
    draws = [model.elbo_terms(images, one)[0] for one in noise]
    return Terms(torch.stack([terms.log_likelihood for terms in draws]).mean(0), draws[0].kl)


def linear_log_likelihood(pair: LinearPair, images: Tensor) -> Tensor:
    """Exact log N(x; b, W Wᵀ + sigma² I) of each image [B, …], float64 [B] on the CPU.

    Woodbury's identity needs only M = sigma² I + WᵀW, [m, m] (Tipping & Bishop 1999, section 3).
    """
    residual = images.flatten(1).cpu().double() - pair.b  # [B, D]
    (D, m), sigma = pair.W.shape, pair.sigma
    cholesky = torch.linalg.cholesky(sigma**2 * torch.eye(m, dtype=torch.float64) + pair.W.T @ pair.W)
    explained = torch.linalg.solve_triangular(cholesky, (residual @ pair.W).T, upper=False).square().sum(0)
    log_det = (D - m) * math.log(sigma**2) + 2 * cholesky.diagonal().log().sum()
    return -0.5 * (D * math.log(2 * math.pi) + log_det + (residual.square().sum(1) - explained) / sigma**2)


@torch.no_grad()
def linear_elbo(model: VAE, pair: LinearPair, images: Tensor) -> Tensor:
    """The ELBO of a linear pair with the expectation over q(z|x) done exactly, float64 [B] on the CPU.

    E_q‖x − W z − b‖² = ‖x − W mean − b‖² + Σ_i sd_i² ‖w_i‖²; log p(x) less this is KL(q‖posterior) ≥ 0.
    """
    q = model.encode(images)
    mean, variance = q.loc.cpu().double(), q.scale.cpu().double().square()
    x = images.flatten(1).cpu().double()
    at_mean = gaussian_log_likelihood(x, mean @ pair.W.T + pair.b, pair.sigma)
    kl = 0.5 * (mean.square() + variance - 1 - variance.log()).sum(1)
    return at_mean - (variance @ pair.W.square().sum(0)) / (2 * pair.sigma**2) - kl


def log_ratio(model: VAE, x: Tensor, u: Tensor, loc: Tensor | float, scale: Tensor | float) -> Tensor:
    """log p(x, z) − log N(z; loc, scale²) at z = loc + scale u, for rows x [n, 1, 28, 28] and u [n, m]; [n]."""
    z = loc + scale * u
    log_scale = scale.log().sum(-1) if isinstance(scale, Tensor) else u.shape[-1] * math.log(scale)
    return model.log_likelihood(x, z) + log_prior_ratio(z, u, log_scale)


@torch.no_grad()
def log_weights(model: VAE, images: Tensor, K: int, generator: torch.Generator | None = None) -> Tensor:
    """log p(x, z_j)/q(z_j|x), z_j ~ q(z|x), for images [B, 1, 28, 28]; [B, K]. Decodes B·K rows at once."""
    q = model.encode(images)
    loc, scale, x = (part.repeat_interleave(K, dim=0) for part in (q.loc, q.scale, images))
    u = torch.randn(loc.shape, generator=generator, dtype=loc.dtype, device=loc.device)
    return log_ratio(model, x, u, loc, scale).view(-1, K)


class Bound(NamedTuple):
    """The importance-weighted bound of each image."""

    bound: Tensor  # [B], nats
    ess: Tensor  # [B], effective sample size (Σw)²/Σw², from 1 to K


def importance_bounds(log_w: Tensor, Ks: Iterable[int]) -> dict[int, Bound]:
    """L_K = E log (1/K) Σ_j w_j for each K from the same log weights [B, at least max K].

    A smaller K takes as many groups of K weights as there are and averages over them, which makes L_K rise with K
    in the sample too wherever one K divides the next.
    """
    bounds = {}
    for K in Ks:
        groups = log_w[:, : log_w.shape[1] // K * K].double().unflatten(1, (-1, K))  # [B, groups, K]
        total = groups.logsumexp(-1)
        ess = (2 * total - (2 * groups).logsumexp(-1)).exp()
        bounds[K] = Bound((total - math.log(K)).mean(1), ess.mean(1))
    return bounds


def iwae(
    model: VAE,
    images: Tensor,
    Ks: list[int],
    generator: torch.Generator | None = None,
    rows: int = 4096,
    progress: Callable[[Any], Any] = iter,
) -> dict[int, Bound]:
    """L_K of images [B, 1, 28, 28] for every K, decoding at most `rows` latents at once (Burda et al., eq. 8)."""
    most = max(Ks)
    at_once = min(most, rows)
    parts = []
    for x in progress(images.split(max(1, rows // at_once))):
        drawn = [log_weights(model, x, min(at_once, most - done), generator) for done in range(0, most, at_once)]
        parts.append(importance_bounds(torch.cat(drawn, dim=1).cpu(), Ks))
    return {K: Bound(*(torch.cat(part) for part in zip(*(p[K] for p in parts), strict=True))) for K in Ks}


class Annealed(NamedTuple):
    """What annealed importance sampling found, image by image."""

    log_p: Tensor  # [B], log of the mean weight of the chains: log p(x) from below in expectation
    se: Tensor  # [B], its Monte Carlo standard error over the chains (delta method)
    ess: Tensor  # [B], effective number of the C chains
    acceptance: float  # mean over images, chains and steps


def ais(
    model: VAE,
    images: Tensor,
    chains: int = 16,
    distributions: int = 500,
    leapfrog: int = 10,
    start: str = "posterior",
    generator: torch.Generator | None = None,
    pilot_chains: int = 2,
    progress: Callable[[Any], Any] = iter,
) -> Annealed:
    """Annealed importance sampling of log p(x) for images [B, 1, 28, 28]; B·C latents move at once.

    From a Gaussian N(loc, scale²) (q(z|x), or the prior with start="prior") over `distributions` geometric steps to
    p(x, z), each followed by one Hamiltonian transition of `leapfrog` steps. With z = loc + scale u the
    path is log N(u; 0, I) + beta · log_ratio(u), and the log weight Σ (beta_t − beta_{t−1}) log_ratio(u_{t−1}).
    A pilot run of a few chains adapts the step size of each image to an acceptance of 0.65; the run that counts
    keeps those steps fixed, as a step that depends on the chain's own past would bias the weights.
    """
    q = None
    if start == "posterior":
        with torch.no_grad():
            q = model.encode(images)
    # Each distribution as much narrower than the one before, from where the prior still rules.
    rise = 5 * torch.linspace(0, 1, distributions + 1, dtype=torch.float64)
    betas = (rise.expm1() / rise[-1].expm1()).tolist()

    def anneal(C: int, steps: Tensor | None, moves: Any) -> tuple[Tensor, Tensor, float]:
        """Log weights [B, C], step sizes [distributions, B] and mean acceptance; adapts where no steps are given."""
        x = images.repeat_interleave(C, dim=0)  # [B·C, 1, 28, 28]
        loc: Tensor | float = 0.0 if q is None else q.loc.repeat_interleave(C, dim=0)
        scale: Tensor | float = 1.0 if q is None else q.scale.repeat_interleave(C, dim=0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, device=images.device)

        def ratio_and_gradient(u: Tensor) -> tuple[Tensor, Tensor]:
            with torch.enable_grad():
                u = u.detach().requires_grad_()
                ratio = log_ratio(model, x, u, loc, scale)
                (gradient,) = torch.autograd.grad(ratio.sum(), u)
            return ratio.detach(), gradient

        u = normal(len(x), model.latent_dim)
        ratio, gradient = ratio_and_gradient(u)
        log_weight = torch.zeros(len(x), dtype=torch.float64)
        step = torch.full((len(images),), 1 / model.latent_dim**0.25, device=images.device)
        used, accepted = [], 0.0
        for t in moves:
            log_weight += (betas[t] - betas[t - 1]) * ratio.cpu().double()
            beta = betas[t]
            if steps is not None:
                step = steps[t - 1]
            used.append(step)
            jitter = 0.7 + 0.6 * torch.rand(len(x), generator=generator, device=images.device)
            h = (step.repeat_interleave(C) * jitter)[:, None]  # [B·C, 1]; else a latent may swing back to its start
            momentum = normal(*u.shape)
            energy = 0.5 * (u.square() + momentum.square()).sum(1) - beta * ratio
            new_u, new_ratio, new_gradient, p = u, ratio, gradient, momentum
            for _ in range(leapfrog):
                p = p + 0.5 * h * (beta * new_gradient - new_u)
                new_u = new_u + h * p
                new_ratio, new_gradient = ratio_and_gradient(new_u)
                p = p + 0.5 * h * (beta * new_gradient - new_u)
            new_energy = 0.5 * (new_u.square() + p.square()).sum(1) - beta * new_ratio
            probability = (energy - new_energy).clamp(max=0).exp().nan_to_num(0.0)
            accept = torch.rand(len(x), generator=generator, device=images.device) < probability
            u = torch.where(accept[:, None], new_u, u)
            ratio = torch.where(accept, new_ratio, ratio)
            gradient = torch.where(accept[:, None], new_gradient, gradient)
            rate = probability.view(-1, C).mean(1)
            step = step * (0.2 * (rate - 0.65)).exp()
            accepted += rate.mean().item()
        return log_weight.view(-1, C), torch.stack(used), accepted / distributions

    moves = range(1, distributions + 1)
    _, steps, _ = anneal(pilot_chains, None, moves)
    log_w, _, acceptance = anneal(chains, steps, progress(moves))
    bound = importance_bounds(log_w, [chains])[chains]
    weights = log_w.softmax(1)
    se = (weights - 1 / chains).square().sum(1).mul(chains / max(chains - 1, 1)).sqrt()
    return Annealed(bound.bound, se, bound.ess, acceptance)
