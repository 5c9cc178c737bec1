"""Posterior collapse: which latents carry nothing, under both usual definitions, over a whole
split.

A latent is collapsed where its mean KL is below a threshold, and inactive where Var_x(E[z_i|x]) is
(Burda et al. 2016, arXiv:1509.00519, section 5.1). N images, m latents, KL in nats.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from vae.models.elbo import kl_to_prior
from vae.models.vae import VAE
from vae.theory.linear import gaussian

COLLAPSE_BATCH = 256  # images over which a picture averages the KL of each latent
COLLAPSE_THRESHOLD = 0.01  # nats of mean KL below which a latent counts as collapsed
INACTIVE_THRESHOLD = 0.01  # Var_x(E[z_i|x]) below which it counts as inactive


class LatentStatistics(NamedTuple):
    """What each latent carries, float64."""

    kl: Tensor  # [m], mean over images of KL(q(z_i|x) ‖ p(z_i))
    variance: Tensor  # [m], Var_x(E[z_i|x])
    # mean and covariance of the aggregated posterior, the mixture of q(z|x) over the images
    aggregated: MultivariateNormal

    @property
    def active(self) -> list[int]:
        """The latents that are not collapsed, most used first."""
        return [
            i for i in self.kl.argsort(descending=True).tolist() if self.kl[i] >= COLLAPSE_THRESHOLD
        ]

    def counts(self, thresholds: Iterable[float]) -> list[tuple[float, int, int]]:
        """(threshold, collapsed, inactive) for each threshold, in nats and in units of prior
        variance."""
        return [(t, int((self.kl < t).sum()), int((self.variance < t).sum())) for t in thresholds]


@torch.no_grad()
def latent_statistics(model: VAE, batches: Iterable[Tensor]) -> LatentStatistics:
    """Over batches [B, C, H, W] of images."""
    posteriors = [model.encode(images) for images in batches]
    kl = torch.cat([kl_to_prior(q) for q in posteriors]).cpu().double()
    mean = torch.cat([q.loc for q in posteriors]).cpu().double()
    noise = torch.cat([q.scale for q in posteriors]).cpu().double().square().mean(0)
    between = torch.cov(mean.T, correction=0).view(len(noise), len(noise))
    return LatentStatistics(
        kl.mean(0), between.diagonal(), gaussian(mean.mean(0), between + torch.diag(noise))
    )


def traversals(
    model: VAE,
    start: Tensor,
    latents: Sequence[int] | None = None,
    span: float = 3.0,
    steps: int = 11,
) -> Tensor:
    """f(z + d e_i) for d from −span to span, in standard deviations of the prior, [latents, steps,
    C, H, W].

    `start` is a z [m], such as torch.zeros(m) for the prior's mean, or images [N, C, H, W]: then
    z is the posterior mean of the first, and the latents are by default those that all of them
    together use, most used first. From a z alone the default is every latent.
    """
    z, latents, _ = origin(model, start, latents)
    offsets = torch.linspace(-span, span, steps, dtype=z.dtype, device=z.device)
    directions = torch.eye(model.latent_dim, dtype=z.dtype, device=z.device)[
        latents
    ]  # [latents, m]
    return decoded(model, z + offsets[:, None] * directions[:, None])


def interpolations(model: VAE, a: Tensor, b: Tensor, steps: int = 11) -> Tensor:
    """f(z) on the straight line from the posterior mean of each image of a to that of b, [pairs,
    steps, C, H, W].

    Images a and b are [pairs, C, H, W]. Straight, not spherical: posterior means lie on no sphere
    (a collapsed latent's are zero, and norms differ from image to image), and through a linear
    decoder a straight line is exactly the mixture of its two ends.
    """
    with torch.no_grad():
        ends = [
            model.encode(images.to(model.device)).loc[:, None] for images in (a, b)
        ]  # 2 × [pairs, 1, m]
    share = torch.linspace(0, 1, steps, dtype=ends[0].dtype, device=ends[0].device)[:, None]
    return decoded(model, (1 - share) * ends[0] + share * ends[1])


@torch.no_grad()
def origin(
    model: VAE, start: Tensor, latents: Sequence[int] | None
) -> tuple[Tensor, list[int], LatentStatistics | None]:
    """Where a traversal starts, z [m], which latents it moves, and their statistics over images."""
    start = start.to(model.device)
    if start.dim() == 1:
        return start, list(range(model.latent_dim) if latents is None else latents), None
    used = latent_statistics(model, [start])
    return model.encode(start[:1]).loc[0], used.active if latents is None else list(latents), used


@torch.no_grad()
def decoded(model: VAE, z: Tensor) -> Tensor:
    """f(z) for latents [rows, steps, m], [rows, steps, C, H, W]."""
    return model.mean_image(z.flatten(0, 1)).unflatten(0, z.shape[:2])
