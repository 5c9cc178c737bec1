"""Posterior collapse: which latents carry nothing, under both usual definitions, over a whole split.

A latent is collapsed where its mean KL is below a threshold, and inactive where Var_x(E[z_i|x]) is (Burda et al.
2016, arXiv:1509.00519, section 5.1). N images, m latents, KL in nats.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from vae.chain import Gaussian
from vae.elbo import kl_to_prior
from vae.networks import VAE

COLLAPSED = 0.01  # nats of mean KL below which a latent counts as collapsed


class Usage(NamedTuple):
    """What each latent carries, float64."""

    kl: Tensor  # [m], mean over images of KL(q(z_i|x) ‖ p(z_i))
    variance: Tensor  # [m], Var_x(E[z_i|x])
    aggregated: Gaussian  # mean and covariance of the aggregated posterior, the mixture of q(z|x) over the images

    @property
    def in_use(self) -> list[int]:
        """The latents that are not collapsed, most used first."""
        return [i for i in self.kl.argsort(descending=True).tolist() if self.kl[i] >= COLLAPSED]

    def counts(self, thresholds: Iterable[float]) -> list[tuple[float, int, int]]:
        """(threshold, collapsed, inactive) for each threshold, in nats and in units of prior variance."""
        return [(t, int((self.kl < t).sum()), int((self.variance < t).sum())) for t in thresholds]


@torch.no_grad()
def usage(model: VAE, batches: Iterable[Tensor]) -> Usage:
    """Over batches [B, 1, 28, 28] of images."""
    posteriors = [model.encode(images) for images in batches]
    kl = torch.cat([kl_to_prior(q) for q in posteriors]).cpu().double()
    mean = torch.cat([q.loc for q in posteriors]).cpu().double()
    noise = torch.cat([q.scale for q in posteriors]).cpu().double().square().mean(0)
    between = torch.cov(mean.T, correction=0).view(len(noise), len(noise))
    return Usage(kl.mean(0), between.diagonal(), Gaussian(mean.mean(0), between + torch.diag(noise)))
