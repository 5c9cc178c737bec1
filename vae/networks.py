"""The swappable pair: an encoder, a decoder, and the VAE that they make.

An encoder is any module from images [B, 1, 28, 28] to a pair (mean, log_sd), each [B, m].
A decoder is any module from latents [B, m] to [B, 1, 28, 28]: for a Gaussian likelihood the mean image.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Normal
from torch.nn import functional as F

from vae.elbo import Terms, draw, kl_to_prior
from vae.likelihoods import Bernoulli, Gaussian, Likelihood

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "tanh": nn.Tanh,
}
OUTPUTS: dict[str, type[nn.Module]] = {"linear": nn.Identity, "sigmoid": nn.Sigmoid}
IMAGE = (1, 28, 28)
PIXELS = 784


def fully_connected(widths: Sequence[int], activation: str) -> nn.Sequential:
    """Linear layers of these widths, the activation between them and none after the last."""
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after), ACTIVATIONS[activation]()]
    return nn.Sequential(*layers[:-1])


def softly_bounded(value: Tensor, bounds: tuple[float, float] | None) -> Tensor:
    """The value kept between (low, high): the identity well inside, with a gradient everywhere. None leaves it."""
    if bounds is None:
        return value
    low, high = bounds
    value = high - F.softplus(high - value)
    return low + F.softplus(value - low)


class Encoder(nn.Module):
    """Fully connected encoder; no hidden layer makes it the lab's baseline.

    `log_sd_range` = (low, high) bounds the log standard deviation softly; None leaves it as the last layer gives it.
    """

    def __init__(
        self,
        latent_dim: int,
        hidden: Sequence[int] = (),
        activation: str = "relu",
        log_sd_range: tuple[float, float] | None = None,
    ) -> None:
        super().__init__()
        self.layers = fully_connected([PIXELS, *hidden, 2 * latent_dim], activation)
        self.log_sd_range = log_sd_range

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_sd = self.layers(x.flatten(1)).chunk(2, dim=-1)
        return mean, self.bounded(log_sd)

    def bounded(self, log_sd: Tensor) -> Tensor:
        """log sd within `log_sd_range`, softly."""
        return softly_bounded(log_sd, self.log_sd_range)


class Decoder(nn.Module):
    """Fully connected decoder. A sigmoid output keeps the mean image in [0, 1], a linear one does not."""

    def __init__(
        self,
        latent_dim: int,
        hidden: Sequence[int] = (),
        activation: str = "relu",
        output: str = "linear",
    ) -> None:
        super().__init__()
        self.layers = fully_connected([latent_dim, *hidden, PIXELS], activation)
        self.output = OUTPUTS[output]()

    def forward(self, z: Tensor) -> Tensor:
        return self.output(self.layers(z)).unflatten(1, IMAGE)


class VAE(nn.Module):
    """p(z) = N(0, I), q(z|x) = N(mean(x), diag sd(x)²), p(x|z) = the likelihood at the decoder's output.

    Without a likelihood it is N(f(z), sigma² I) with this fixed sigma, in units of pixel intensity (images are in
    [0, 1]). Raises ValueError for a likelihood that does not go with sigma or with the decoder.
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
            raise ValueError(f"model.sigma={sigma} means nothing to the {type(self.likelihood).__name__} likelihood")
        if isinstance(self.likelihood, Bernoulli) and isinstance([*decoder.modules()][-1], nn.Sigmoid):
            raise ValueError("model.decoder.output=sigmoid: a Bernoulli likelihood takes logits, so it must be linear")

    @property
    def sigma(self) -> float | None:
        """The standard deviation of p(x|z) in pixel intensity; None where it has none of its own."""
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
        return Normal(full_precision(mean), full_precision(log_sd).exp(), validate_args=False)

    def decode(self, z: Tensor) -> Distribution:
        """p(x|z) for latents [B, m]: over [B, 1, 28, 28], a Normal with mean f(z) and scale sigma for a Gaussian."""
        return self.likelihood.distribution(self.output(z))

    def output(self, z: Tensor) -> Tensor:
        """What the decoder gives for latents [B, m], [B, 1, 28, 28]."""
        return full_precision(self.decoder(z))

    def mean_image(self, z: Tensor) -> Tensor:
        """f(z), the mean of p(x|z), [B, 1, 28, 28]."""
        return self.likelihood.mean(self.output(z))

    def log_likelihood(self, x: Tensor, z: Tensor) -> Tensor:
        """log p(x|z) in nats per image, [B]."""
        return self.likelihood.log_prob(x, self.output(z))

    def elbo_terms(self, x: Tensor, noise: Tensor | None = None) -> tuple[Terms, Normal]:
        """The terms of the ELBO with one sample of q(z|x) per image, and q itself.

        `noise` [B, m] are standard normal draws; without it they come from torch's global generator.
        """
        posterior = self.encode(x)
        z = draw(posterior) if noise is None else posterior.loc + posterior.scale * noise
        return Terms(self.log_likelihood(x, z), kl_to_prior(posterior)), posterior

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator | None = None, noisy: bool = False) -> Tensor:
        """Mean images f(z) of n draws from the prior, [n, 1, 28, 28]; `noisy` draws the pixels from p(x|z) too."""
        output = self.output(torch.randn(n, self.latent_dim, generator=generator, device=self.device))
        return self.likelihood.draw(output, generator) if noisy else self.likelihood.mean(output)

    @torch.no_grad()
    def reconstruct(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """f(z) with z drawn from q(z|x), [B, 1, 28, 28]."""
        return self.mean_image(draw(self.encode(x), generator))


def full_precision(value: Tensor) -> Tensor:
    """float32 for what autocast left in half precision: squares, exp and sums come after this.

    In bfloat16 46 % of the KLs of collapsed latents come out negative.
    """
    return value.float() if value.dtype in (torch.bfloat16, torch.float16) else value


class LinearPair(NamedTuple):
    """Weights of a pair without hidden layers: mean(x) = V x + c, log sd(x) = S x + t, f(z) = W z + b."""

    V: Tensor  # [m, D]
    c: Tensor  # [m]
    S: Tensor  # [m, D]
    t: Tensor  # [m]
    W: Tensor  # [D, m]
    b: Tensor  # [D]
    sigma: float


def linear_pair(model: VAE) -> LinearPair | None:
    """The weights of a Gaussian VAE whose encoder mean and decoder are affine, in float64; None for any other pair."""
    encoder, decoder = model.encoder, model.decoder
    if not (isinstance(encoder, Encoder) and isinstance(decoder, Decoder) and isinstance(model.likelihood, Gaussian)):
        return None
    if len(encoder.layers) > 1 or len(decoder.layers) > 1 or not isinstance(decoder.output, nn.Identity):
        return None
    (V, S), (c, t) = (weight.detach().cpu().double().chunk(2) for weight in encoder.layers.parameters())
    W, b = (weight.detach().cpu().double() for weight in decoder.layers.parameters())
    return LinearPair(V, c, S, t, W, b, model.likelihood.sigma)


def count_parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters() if p.requires_grad)
