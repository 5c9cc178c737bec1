"""Annealed importance sampling of log p(x) (Neal 2001; for decoders Wu et al. 2017,
arXiv:1611.04273).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vae.analysis.bounds import importance_bounds, log_ratio
from vae.models.vae import VAE


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

    From a Gaussian N(loc, scale²) (q(z|x), or the prior with start="prior") over `distributions`
    geometric steps to p(x, z), each followed by one Hamiltonian transition of `leapfrog` steps.
    With z = loc + scale u the path is log N(u; 0, I) + beta · log_ratio(u), and the log weight Σ
    (beta_t − beta_{t−1}) log_ratio(u_{t−1}). A pilot run of a few chains adapts the step size of
    each image to an acceptance of 0.65; the run that counts keeps those steps fixed, as a step that
    depends on the chain's own past would bias the weights.
    """
    q = None
    if start == "posterior":
        with torch.no_grad():
            q = model.encode(images)
    # Each distribution as much narrower than the one before, from where the prior still rules.
    rise = 5 * torch.linspace(0, 1, distributions + 1, dtype=torch.float64)
    betas = (rise.expm1() / rise[-1].expm1()).tolist()

    def anneal(C: int, steps: Tensor | None, moves: Any) -> tuple[Tensor, Tensor, float]:
        """Log weights [B, C], step sizes [distributions, B] and mean acceptance; adapts where no
        steps are given."""
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
            h = (step.repeat_interleave(C) * jitter)[
                :, None
            ]  # [B·C, 1]; else a latent may swing back to its start
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
