"""The evidence lower bound of a Gaussian VAE, in one place.

Everything is in nats per image, summed over pixels and latents (Kingma & Welling 2014, eq. 3 and
appendix B):

    ELBO(x) = log p(x|z) − Σ_i KL_i,   z ~ q(z|x)

D is the number of pixels, m of latents, B of images in a batch.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Normal


class ELBOTerms(NamedTuple):
    """The two terms of the ELBO, image by image."""

    log_likelihood: Tensor  # [B], one-sample estimate of E_q log p(x|z)
    kl: Tensor  # [B, m], KL(q(z_i|x) ‖ p(z_i)), analytic

    @property
    def elbo(self) -> Tensor:  # [B]
        return self.log_likelihood - self.kl.sum(-1)


def gaussian_log_likelihood(x: Tensor, mean: Tensor, sigma: float | Tensor) -> Tensor:
    """log N(x; mean, sigma² I) per image, [B], constant included.

    Equal to `Normal(mean, sigma).log_prob(x)` summed over pixels. One scalar sigma lets the squares
    be summed first, which makes a training step of a linear VAE 1.4 to 1.5 times as fast. Raises
    ValueError where images and means have different shapes, which would broadcast.
    """
    if x.shape[1:] != mean.shape[1:]:
        raise ValueError(f"the decoder's images are {list(mean.shape)}, the data's {list(x.shape)}")
    pixels = x.shape[1:].numel()  # also of an empty batch
    squared_error = (x - mean).square().flatten(1).sum(1)
    scale = 2 * math.pi * sigma**2
    constant = -0.5 * pixels * (scale.log() if isinstance(scale, Tensor) else math.log(scale))
    return constant - squared_error / (2 * sigma**2)


def kl_to_prior(posterior: Normal) -> Tensor:
    """KL(q(z_i|x) ‖ N(0, 1)) = ½ (mean_i² + sd_i² − 1) − log sd_i, [B, m].

    To the last bit that of torch.distributions.kl_divergence, whose search for the formula would
    break a compiled step into pieces and take a twentieth of a linear model's.
    """
    variance = posterior.scale.square()
    return 0.5 * (variance + posterior.loc.square() - 1 - variance.log())


def log_prior_ratio(z: Tensor, u: Tensor, log_scale: Tensor | float) -> Tensor:
    """log N(z; 0, I) − log N(z; loc, scale²) at z = loc + scale u [..., m]; `log_scale` is Σ_i log
    scale_i.

    The two log 2π cancel.
    """
    return 0.5 * (u.square() - z.square()).sum(-1) + log_scale


def rsample(posterior: Normal, generator: torch.Generator | None = None) -> Tensor:
    """A reparametrised sample of q(z|x), [B, m], from `generator` or from torch's global one."""
    noise = torch.randn(
        posterior.loc.shape,
        generator=generator,
        dtype=posterior.loc.dtype,
        device=posterior.loc.device,
    )
    return posterior.loc + posterior.scale * noise


def noise_per_image(images: int, latent_dim: int, seed: int = 0) -> Tensor:
    """Standard normal draws that belong to an image's place in its file, [images, latent_dim], on
    the CPU.

    With them an ELBO depends on the weights alone, neither on batches nor ranks, and two models are
    judged on the same draws.
    """
    return torch.randn(images, latent_dim, generator=torch.Generator().manual_seed(seed))


def upper_bound(pixels: int, sigma: float) -> float:
    """No VAE with this sigma can have a higher ELBO: log p(x|z) where the decoder hits every pixel
    exactly."""
    return -0.5 * pixels * math.log(2 * math.pi * sigma**2)
