"""The swappable pair: an encoder, a decoder, and the VAE that they make.

An encoder is any module from images [B, 1, 28, 28] to a pair (mean, log_sd), each [B, m].
A decoder is any module from latents [B, m] to the mean image [B, 1, 28, 28].
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Normal
from torch.nn import functional as F

from vae.elbo import Terms, draw, gaussian_log_likelihood, kl_to_prior

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
    """p(z) = N(0, I), p(x|z) = N(f(z), sigma² I) with f the decoder, q(z|x) = N(mean(x), diag sd(x)²).

    sigma is fixed, in units of pixel intensity (images are in [0, 1]).
    """

    def __init__(
        self, encoder: nn.Module, decoder: nn.Module, latent_dim: int, sigma: float, name: str = "vae"
    ) -> None:
        super().__init__()
        if not sigma > 0:
            raise ValueError(f"model.sigma is {sigma}, and must be greater than 0")
        self.encoder = encoder
        self.decoder = decoder
        self.latent_dim = latent_dim
        self.sigma = sigma
        self.name = name

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def encode(self, x: Tensor) -> Normal:
        """q(z|x) for images [B, 1, 28, 28]: a Normal over [B, m]."""
        mean, log_sd = self.encoder(x)
        return Normal(full_precision(mean), full_precision(log_sd).exp(), validate_args=False)

    def decode(self, z: Tensor) -> Normal:
        """p(x|z) for latents [B, m]: a Normal over [B, 1, 28, 28], its mean f(z), its scale sigma."""
        mean = self.mean_image(z)
        return Normal(mean, torch.full_like(mean, self.sigma), validate_args=False)

    def mean_image(self, z: Tensor) -> Tensor:
        """f(z), the mean of p(x|z), [B, 1, 28, 28]."""
        return full_precision(self.decoder(z))

    def log_likelihood(self, x: Tensor, z: Tensor) -> Tensor:
        """log p(x|z) in nats per image, [B]."""
        return gaussian_log_likelihood(x, self.mean_image(z), self.sigma)

    def elbo_terms(self, x: Tensor, noise: Tensor | None = None) -> tuple[Terms, Normal]:
        """The terms of the ELBO with one sample of q(z|x) per image, and q itself.

        `noise` [B, m] are standard normal draws; without it they come from torch's global generator.
        """
        posterior = self.encode(x)
        z = draw(posterior) if noise is None else posterior.loc + posterior.scale * noise
        return Terms(self.log_likelihood(x, z), kl_to_prior(posterior)), posterior

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Mean images f(z) of n draws from the prior, [n, 1, 28, 28] (no pixel noise is added)."""
        return self.mean_image(torch.randn(n, self.latent_dim, generator=generator, device=self.device))

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


def linear_pair(model: VAE) -> LinearPair | None:
    """The weights where encoder mean and decoder are affine maps, in float64; None for any other pair."""
    encoder, decoder = model.encoder, model.decoder
    if not (isinstance(encoder, Encoder) and isinstance(decoder, Decoder)):
        return None
    if len(encoder.layers) > 1 or len(decoder.layers) > 1 or not isinstance(decoder.output, nn.Identity):
        return None
    (V, S), (c, t) = (weight.detach().cpu().double().chunk(2) for weight in encoder.layers.parameters())
    W, b = (weight.detach().cpu().double() for weight in decoder.layers.parameters())
    return LinearPair(V, c, S, t, W, b)


def count_parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters() if p.requires_grad)
