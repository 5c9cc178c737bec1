"""The best sigma of networks as they are, refitted on validation images.

With mu, sd and f fixed the KL does not depend on sigma, and the ELBO of a Gaussian likelihood is
highest where sigma² is the mean squared error per dimension with z ~ q(z|x) (Rybkin et al. 2021,
arXiv:2006.13202, eq. 5). How far two models are apart in nats depends on sigma; this shows both at
their own best one. Nats per image; N images of D dimensions.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Normal

from vae.models.elbo import kl_to_prior, upper_bound
from vae.models.likelihoods import Gaussian
from vae.models.vae import VAE


class ReconstructionErrors(NamedTuple):
    """What the ELBO of a Gaussian likelihood with any sigma needs of each image."""

    squared: Tensor  # [N], ‖x − f(z)‖² with z ~ q(z|x), float64 on the CPU
    kl: Tensor  # [N], KL(q(z|x) ‖ N(0, I))
    dimensions: int  # D: pixels times channels

    @classmethod
    def from_log_likelihood(
        cls, log_likelihood: Tensor, kl: Tensor, dimensions: int, sigma: float
    ) -> "ReconstructionErrors":
        """From log p(x|z) [N] at some sigma, which has the squared error in it, and KL [N]."""
        squared = 2 * sigma**2 * (upper_bound(dimensions, sigma) - log_likelihood).clamp_min(0)
        return cls(squared, kl, dimensions)

    @property
    def sigma(self) -> float:
        """The sigma at which these images have the highest mean ELBO."""
        return math.sqrt(self.squared.mean().item() / self.dimensions)

    def elbo(self, sigma: float) -> Tensor:
        """The ELBO of each image at this sigma, [N]."""
        return upper_bound(self.dimensions, sigma) - self.squared / (2 * sigma**2) - self.kl


class Refit(NamedTuple):
    """A model at the sigma that validation images ask for, its networks unchanged."""

    sigma: float
    val_elbo: Tensor  # [validation images]
    test_elbo: Tensor  # [test images]


@torch.no_grad()
def reconstruction_errors(
    model: VAE, batches: Iterable[Tensor], samples: int = 1, seed: int = 0
) -> ReconstructionErrors:
    """Squared errors and KLs of batches of images [B, C, H, W], `samples` latent samples each."""
    generator = torch.Generator().manual_seed(seed)
    squared, kls, dimensions = [], [], 0
    for x in batches:
        q = model.encode(x)
        total = torch.zeros(len(x), dtype=torch.float64)
        for _ in range(samples):
            noise = torch.randn(q.loc.shape, generator=generator).to(q.loc)
            mean = model.mean_image(q.loc + q.scale * noise)
            total += (x - mean).flatten(1).square().sum(1).cpu().double()
        squared.append(total / samples)
        kls.append(kl_to_prior(Normal(q.loc.cpu().double(), q.scale.cpu().double())).sum(1))
        dimensions = x[0].numel()
    return ReconstructionErrors(torch.cat(squared), torch.cat(kls), dimensions)


def with_sigma(model: VAE, sigma: float) -> VAE:
    """The same networks with the likelihood N(f(z), sigma² I)."""
    return VAE(
        model.encoder,
        model.decoder,
        model.latent_dim,
        name=model.name,
        likelihood=Gaussian(sigma),
        image_shape=model.image_shape,
    ).eval()


def refit_sigma(
    model: VAE,
    val: Iterable[Tensor],
    test: Iterable[Tensor],
    samples: int = 1,
    seed: int = 0,
) -> Refit | None:
    """Refit sigma on batches of validation images and judge it on test images.

    None for a likelihood that has no single sigma to refit, and where every error is 0.
    """
    if not isinstance(model.likelihood, Gaussian):
        return None
    found = reconstruction_errors(model, val, samples, seed)
    sigma = found.sigma
    if not (math.isfinite(sigma) and sigma > 0):
        return None
    return Refit(
        sigma, found.elbo(sigma), reconstruction_errors(model, test, samples, seed).elbo(sigma)
    )
