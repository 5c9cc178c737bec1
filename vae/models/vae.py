"""The VAE: an encoder, a decoder and a likelihood."""

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Normal

from vae.models.elbo import ELBOTerms, kl_to_prior, rsample
from vae.models.likelihoods import Bernoulli, Gaussian, Likelihood


class VAE(nn.Module):
    """p(z) = N(0, I), q(z|x) = N(mean(x), diag sd(x)²), p(x|z) = the likelihood at the decoder's
    output.

    Without a likelihood it is N(f(z), sigma² I) with this fixed sigma, in units of pixel intensity
    (images are in [0, 1]). Raises ValueError for a likelihood that does not go with sigma or with
    the decoder.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        latent_dim: int,
        sigma: float | None = None,
        name: str = "vae",
        likelihood: Likelihood | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.likelihood = Gaussian(sigma) if likelihood is None else likelihood
        self.latent_dim = latent_dim
        self.name = name
        if sigma is not None and self.sigma is None:
            raise ValueError(
                f"model.sigma={sigma} means nothing to the {type(self.likelihood).__name__} likelihood"
            )
        if isinstance(self.likelihood, Bernoulli) and isinstance(
            [*decoder.modules()][-1], nn.Sigmoid
        ):
            raise ValueError(
                "model.decoder.output=sigmoid: a Bernoulli likelihood takes logits, so it must be linear"
            )

    @property
    def sigma(self) -> float | None:
        """The standard deviation of p(x|z) in pixel intensity; None where it has none of its
        own."""
        return self.likelihood.sigma

    @property
    def title(self) -> str:
        """What the model is, in a line."""
        return f"{self.name} (m = {self.latent_dim}, {self.likelihood.label})"

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def encode(self, x: Tensor) -> Normal:
        """q(z|x) for images [B, 1, 28, 28]: a Normal over [B, m]."""
        mean, log_sd = self.encoder(x)
        return Normal(to_float32(mean), to_float32(log_sd).exp(), validate_args=False)

    def decode(self, z: Tensor) -> Distribution:
        """p(x|z) for latents [B, m]: over [B, 1, 28, 28], a Normal with mean f(z) and scale sigma
        for a Gaussian."""
        return self.likelihood.distribution(self.output(z))

    def output(self, z: Tensor) -> Tensor:
        """What the decoder gives for latents [B, m], [B, 1, 28, 28]."""
        return to_float32(self.decoder(z))

    def mean_image(self, z: Tensor) -> Tensor:
        """f(z), the mean of p(x|z), [B, 1, 28, 28]."""
        return self.likelihood.mean(self.output(z))

    def log_likelihood(self, x: Tensor, z: Tensor) -> Tensor:
        """log p(x|z) in nats per image, [B]."""
        return self.likelihood.log_prob(x, self.output(z))

    def elbo_terms(self, x: Tensor, noise: Tensor | None = None) -> tuple[ELBOTerms, Normal]:
        """The terms of the ELBO with one sample of q(z|x) per image, and q itself.

        `noise` [B, m] are standard normal draws; without it they come from torch's global
        generator.
        """
        posterior = self.encode(x)
        z = rsample(posterior) if noise is None else posterior.loc + posterior.scale * noise
        return ELBOTerms(self.log_likelihood(x, z), kl_to_prior(posterior)), posterior

    @torch.no_grad()
    def sample(
        self, n: int, generator: torch.Generator | None = None, noisy: bool = False
    ) -> Tensor:
        """Mean images f(z) of n draws from the prior, [n, 1, 28, 28]; `noisy` draws the pixels from
        p(x|z) too."""
        output = self.output(
            torch.randn(n, self.latent_dim, generator=generator, device=self.device)
        )
        return self.likelihood.sample(output, generator) if noisy else self.likelihood.mean(output)

    @torch.no_grad()
    def reconstruct(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """f(z) with z drawn from q(z|x), [B, 1, 28, 28]."""
        return self.mean_image(rsample(self.encode(x), generator))


def to_float32(value: Tensor) -> Tensor:
    """float32 for what autocast left in half precision: squares, exp and sums come after this.

    In bfloat16 46 % of the KLs of collapsed latents come out negative.
    """
    return value.float() if value.dtype in (torch.bfloat16, torch.float16) else value


def count_parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters() if p.requires_grad)
