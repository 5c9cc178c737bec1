"""The VAE: an encoder, a decoder and a likelihood.

B images [C, H, W], m latents; everything in nats per image.
"""

from typing import Annotated

import torch
from annotated_types import MinLen, doc
from torch import Tensor, nn
from torch.distributions import Distribution, Normal

from vae.models.elbo import ELBOTerms, kl_to_prior, rsample
from vae.models.likelihoods import Bernoulli, Gaussian, Likelihood, Sigma
from vae.models.networks import MNIST_SHAPE, ImageShape, LatentDim

Name = Annotated[str, MinLen(1), doc("text")]


class VAE(nn.Module):
    """p(z) = N(0, I), q(z|x) = N(mean(x), diag sd(x)²), p(x|z) = the likelihood, given the
    decoder's output at z. f(z) is the mean image of p(x|z).

    Without a likelihood it is N(f(z), sigma² I) with this fixed sigma, in units of pixel intensity
    (images are in [0, 1]). Raises ValueError for a likelihood that does not go with sigma or with
    the decoder, and for an encoder or decoder of another `latent_dim`, where it has one.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        latent_dim: LatentDim,
        sigma: Sigma | None = None,
        name: Name = "vae",
        likelihood: Likelihood | None = None,
        image_shape: ImageShape = MNIST_SHAPE,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.likelihood = Gaussian(sigma) if likelihood is None else likelihood
        self.latent_dim = latent_dim
        self.name = name
        self.image_shape = tuple(image_shape)
        for part, network in (("encoder", encoder), ("decoder", decoder)):
            latents = getattr(network, "latent_dim", latent_dim)
            if isinstance(latents, int) and latents != latent_dim:
                raise ValueError(f"{part}.latent_dim is {latents}, the model's {latent_dim}")
        kind = type(self.likelihood).__name__
        if sigma is not None and getattr(type(self.likelihood), "sigma", None) is None:
            raise ValueError(f"model.sigma={sigma} means nothing to the {kind} likelihood")
        last_layer = [*decoder.modules()][-1]
        if isinstance(self.likelihood, Bernoulli) and isinstance(last_layer, nn.Sigmoid):
            raise ValueError(
                "model.decoder.output=sigmoid: the Bernoulli likelihood takes logits, "
                "so it must be linear"
            )

    @property
    def sigma(self) -> float | None:
        """The standard deviation of p(x|z) in pixel intensity; None where there is none."""
        return self.likelihood.sigma

    @property
    def title(self) -> str:
        """The model's name, latent dimension and likelihood, for headings."""
        return f"{self.name} (m = {self.latent_dim}, {self.likelihood.label})"

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def encode(self, x: Tensor) -> Normal:
        """q(z|x) for images [B, C, H, W]: a Normal over [B, m].

        Raises ValueError for images of another shape, which would broadcast to wrong terms.
        """
        if x.shape[1:] != self.image_shape:
            raise ValueError(
                f"images [B, C, H, W] must be [B, {', '.join(map(str, self.image_shape))}], "
                f"not {list(x.shape)}"
            )
        mean, log_sd = self.encoder(x)
        if mean.shape[1:] != (self.latent_dim,):
            raise ValueError(
                f"the encoder's means [B, m] must be [B, {self.latent_dim}], not {list(mean.shape)}"
            )
        return Normal(to_float32(mean), to_float32(log_sd).exp(), validate_args=False)

    def decode(self, z: Tensor) -> Distribution:
        """p(x|z) for latents [B, m], over [B, C, H, W]: a Normal(f(z), sigma) for a Gaussian."""
        return self.likelihood.distribution(self.output(z))

    def output(self, z: Tensor) -> Tensor:
        """The decoder's output for latents [B, m], in float32: [B, C, H, W]."""
        return to_float32(self.decoder(z))

    def mean_image(self, z: Tensor) -> Tensor:
        """f(z), the mean of p(x|z), [B, C, H, W]."""
        return self.likelihood.mean(self.output(z))

    def log_likelihood(self, x: Tensor, z: Tensor) -> Tensor:
        """log p(x|z) in nats per image, [B]."""
        return self.likelihood.log_prob(x, self.output(z))

    def elbo_terms(self, x: Tensor, eps: Tensor | None = None) -> tuple[ELBOTerms, Normal]:
        """The terms of the ELBO with one sample of q(z|x) for each image, and q itself.

        `eps` [B, m] are standard normal draws; without it torch's global generator makes them.
        """
        q = self.encode(x)
        z = rsample(q) if eps is None else q.loc + q.scale * eps
        return ELBOTerms(self.log_likelihood(x, z), kl_to_prior(q)), q

    @torch.no_grad()
    def sample(
        self, n: int, generator: torch.Generator | None = None, noisy: bool = False
    ) -> Tensor:
        """Mean images f(z) of n draws from the prior, [n, C, H, W]; draws of p(x|z) if `noisy`."""
        weight = next(self.parameters())
        z = torch.randn(
            n, self.latent_dim, generator=generator, dtype=weight.dtype, device=weight.device
        )
        output = self.output(z)
        return self.likelihood.sample(output, generator) if noisy else self.likelihood.mean(output)

    @torch.no_grad()
    def reconstruct(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """f(z) with z drawn from q(z|x), [B, C, H, W]."""
        return self.mean_image(rsample(self.encode(x), generator))


def to_float32(value: Tensor) -> Tensor:
    """float32 for what autocast left in half precision: squares, exp and sums come after this.

    In bfloat16 46 % of the KLs of collapsed latents come out negative.
    """
    return value.float() if value.dtype in (torch.bfloat16, torch.float16) else value


def count_parameters(network: nn.Module) -> int:
    """The number of trainable weights."""
    return sum(p.numel() for p in network.parameters() if p.requires_grad)
