"""What training minimises, image by image; what is reported as the ELBO stays the ELBO.

An objective is called with the model, images x [B, C, H, W], standard normal noise [samples, B,
m] and the number of optimiser steps done, and returns what to minimise, [B], with the terms of the
ELBO, which are logged. `samples` says how many latents it wants for each image. B images, m
latents, everything in nats.
"""

import math
from typing import Annotated

import torch
from annotated_types import Ge, Le
from torch import Tensor, distributed

from vae.models.elbo import ELBOTerms, kl_to_prior, log_prior_ratio
from vae.models.vae import VAE

Weight = Annotated[float, Ge(0), Le(10**6)]
Steps = Annotated[int, Ge(0), Le(10**9)]
Samples = Annotated[int, Ge(1), Le(10_000)]


class ELBO:
    """−ELBO(x), with one latent sample."""

    samples = 1

    def __call__(self, model: VAE, x: Tensor, noise: Tensor, step: int) -> tuple[Tensor, ELBOTerms]:
        terms, _posterior = model.elbo_terms(x, noise[0])
        return self.loss(terms, step), terms

    def loss(self, terms: ELBOTerms, step: int) -> Tensor:
        """What is minimised for each image, [B] in nats; `step` is the number of optimiser steps
        done, a 0-dimensional tensor where a CUDA graph replays the step."""
        return terms.kl.sum(-1) - terms.log_likelihood


class BetaELBO(ELBO):
    """beta KL − log p(x|z) (Higgins et al. 2017); over the first `warmup_steps` beta rises from 0
    (Sønderby et al. 2016, arXiv:1602.02282)."""

    def __init__(self, beta: Weight = 1.0, warmup_steps: Steps = 0) -> None:
        self.beta, self.warmup_steps = beta, warmup_steps

    def weight(self, step: int | Tensor) -> float | Tensor:
        """The KL's weight after `step` optimiser steps."""
        if not self.warmup_steps:
            return self.beta
        share = step / self.warmup_steps
        return self.beta * (share.clamp(max=1) if isinstance(share, Tensor) else min(1.0, share))

    def loss(self, terms: ELBOTerms, step: int) -> Tensor:
        return self.weight(step) * terms.kl.sum(-1) - terms.log_likelihood


class PathELBO(BetaELBO):
    """The ELBO with the KL estimated at z, and without the gradient of log q(z|x) by q's own
    parameters, whose mean is zero (Roeder et al. 2017, arXiv:1703.09194, "sticking the landing"):
    where q is the posterior, the gradient has no noise."""

    def __call__(self, model: VAE, x: Tensor, noise: Tensor, step: int) -> tuple[Tensor, ELBOTerms]:
        q = model.encode(x)
        z = q.loc + q.scale * noise[0]  # [B, m]
        log_likelihood = model.log_likelihood(x, z)
        scale = q.scale.detach()
        log_ratio = log_prior_ratio(z, (z - q.loc.detach()) / scale, scale.log().sum(-1))
        return -log_likelihood - self.weight(step) * log_ratio, ELBOTerms(
            log_likelihood, kl_to_prior(q)
        )


class FreeBits(ELBO):
    """Σ_i max(nats, mean over the batch of KL_i) − log p(x|z): no gain in pushing a latent below
    `nats`.

    Kingma et al. 2016, arXiv:1606.04934, eq. 15, with a group for each latent. The batch is that of
    all ranks.
    """

    def __init__(self, nats: Weight) -> None:
        self.nats = nats

    def loss(self, terms: ELBOTerms, step: int) -> Tensor:
        sums = torch.cat([terms.kl.detach().sum(0), terms.kl.new_full((1,), len(terms.kl))])
        if distributed.is_initialized():
            distributed.all_reduce(sums)
        above_threshold = sums[:-1] > self.nats * sums[-1]  # [m], where the maximum is the KL
        return torch.where(above_threshold, terms.kl, self.nats).sum(-1) - terms.log_likelihood


class IWAE:
    """−log (1/K) Σ_k p(x, z_k)/q(z_k|x), the importance-weighted bound (Burda et al. 2016,
    arXiv:1509.00519, eq. 8)."""

    def __init__(self, samples: Samples) -> None:
        self.samples = samples

    def __call__(self, model: VAE, x: Tensor, noise: Tensor, step: int) -> tuple[Tensor, ELBOTerms]:
        q = model.encode(x)
        z = q.loc + q.scale * noise  # [K, B, m]
        rows = x.expand(self.samples, *x.shape).flatten(0, 1)  # [K B, C, H, W]
        log_likelihood = model.log_likelihood(rows, z.flatten(0, 1)).view(self.samples, -1)
        log_weight = log_likelihood + log_prior_ratio(z, noise, q.scale.log().sum(-1))  # [K, B]
        objective = math.log(self.samples) - log_weight.logsumexp(0)
        return objective, ELBOTerms(log_likelihood.mean(0), kl_to_prior(q))
