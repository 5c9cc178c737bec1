"""How likely are the images? The exact log p(x) of a linear pair, and two lower bounds for any
pair.

Everything in nats per image. For a linear decoder p(x) is a Gaussian (Tipping & Bishop 1999). For
any other there are the importance-weighted bound (Burda et al. 2016, arXiv:1509.00519) and annealed
importance sampling (Neal 2001; for decoders Wu et al. 2017, arXiv:1611.04273). Both are bounds in
expectation, ELBO ≤ L_K ≤ log p(x), and both equal log p(x) where q is the exact posterior. D
pixels, m latents, B images, K samples, C chains.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vae.models.elbo import ELBOTerms, log_prior_ratio
from vae.models.vae import VAE


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
def elbo_terms(model: VAE, images: Tensor, noise: Tensor) -> ELBOTerms:
    """The ELBO's terms of images [B, 1, 28, 28], averaged over the latent samples that `noise` [S,
    B, m] makes."""
    draws = [model.elbo_terms(images, one)[0] for one in noise]
    return ELBOTerms(torch.stack([terms.log_likelihood for terms in draws]).mean(0), draws[0].kl)


def log_ratio(
    model: VAE, x: Tensor, u: Tensor, loc: Tensor | float, scale: Tensor | float
) -> Tensor:
    """log p(x, z) − log N(z; loc, scale²) at z = loc + scale u, for rows x [n, 1, 28, 28] and u [n,
    m]; [n]."""
    z = loc + scale * u
    log_scale = scale.log().sum(-1) if isinstance(scale, Tensor) else u.shape[-1] * math.log(scale)
    return model.log_likelihood(x, z) + log_prior_ratio(z, u, log_scale)


@torch.no_grad()
def log_weights(
    model: VAE, images: Tensor, K: int, generator: torch.Generator | None = None
) -> Tensor:
    """log p(x, z_j)/q(z_j|x), z_j ~ q(z|x), for images [B, 1, 28, 28]; [B, K]. Decodes B·K rows at
    once."""
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

    A smaller K takes as many groups of K weights as there are and averages over them, which makes
    L_K rise with K in the sample too wherever one K divides the next.
    """
    bounds = {}
    for K in Ks:
        groups = (
            log_w[:, : log_w.shape[1] // K * K].double().unflatten(1, (-1, K))
        )  # [B, groups, K]
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
    """L_K of images [B, 1, 28, 28] for every K, decoding at most `rows` latents at once (Burda et
    al., eq. 8)."""
    most = max(Ks)
    at_once = min(most, rows)
    parts = []
    for x in progress(images.split(max(1, rows // at_once))):
        drawn = [
            log_weights(model, x, min(at_once, most - done), generator)
            for done in range(0, most, at_once)
        ]
        parts.append(importance_bounds(torch.cat(drawn, dim=1).cpu(), Ks))
    return {
        K: Bound(*(torch.cat(part) for part in zip(*(p[K] for p in parts), strict=True)))
        for K in Ks
    }
