"""What the decoder's output says about the pixels: p(x|z), one class each.

A likelihood is a Likelihood with two methods, `distribution(output)` and `sample(output,
generator)`, where `output` is what the decoder gives, [B, C, H, W]. The rest follows from the
distribution, and is written out again only where that is faster.
"""

import math
from typing import Annotated

import torch
from annotated_types import Gt, Lt
from torch import Tensor, distributions, nn
from torch.nn import functional as F

from vae.models.elbo import gaussian_log_likelihood

Sigma = Annotated[float, Gt(1e-4), Lt(1e4)]


class Likelihood(nn.Module):
    """p(x|z) for one kind of pixels."""

    label = ""  # for titles
    sigma: float | None = None  # its standard deviation, where it is one number for all pixels
    density = True  # nats of a density; of a probability otherwise, and the two do not compare
    binary = False  # made for pixels that are 0 or 1 alone

    def distribution(self, output: Tensor) -> distributions.Distribution:
        """p(x|z), pixel by pixel, over [B, C, H, W]."""
        raise NotImplementedError

    def sample(self, output: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Images drawn from p(x|z), [B, C, H, W]."""
        raise NotImplementedError

    def mean(self, output: Tensor) -> Tensor:
        """The mean image, [B, C, H, W]."""
        return self.distribution(output).mean

    def log_prob(self, x: Tensor, output: Tensor) -> Tensor:
        """log p(x|z) in nats per image, [B]."""
        return self.distribution(output).log_prob(x).flatten(1).sum(1)


class Gaussian(Likelihood):
    """N(output, sigma² I), sigma in units of pixel intensity.

    With `learned` it starts at sigma and is trained with the networks (Rybkin et al. 2021,
    arXiv:2006.13202); the best linear VAE then has sigma² = the mean of the discarded eigenvalues
    (Tipping & Bishop 1999, eq. 8). Raises ValueError unless sigma > 0.
    """

    def __init__(self, sigma: Sigma | None, learned: bool = False) -> None:
        super().__init__()
        if sigma is None or not sigma > 0:
            raise ValueError(f"model.sigma is {sigma}, and must be greater than 0")
        self.learned = learned
        self._sigma = sigma
        if learned:
            self.log_sigma = nn.Parameter(torch.tensor(math.log(sigma)))

    @property
    def sigma(self) -> float:  # type: ignore[override]
        return self.log_sigma.exp().item() if self.learned else self._sigma

    @property
    def label(self) -> str:  # type: ignore[override]
        return f"σ = {self.sigma:.4f}, learned" if self.learned else f"σ = {self.sigma:g}"

    def distribution(self, output: Tensor) -> distributions.Normal:
        scale = self.log_sigma.exp() if self.learned else output.new_tensor(self._sigma)
        return distributions.Normal(output, scale.to(output).expand_as(output), validate_args=False)

    def sample(self, output: Tensor, generator: torch.Generator | None = None) -> Tensor:
        noise = torch.randn(
            output.shape, generator=generator, dtype=output.dtype, device=output.device
        )
        return output + self.sigma * noise

    def mean(self, output: Tensor) -> Tensor:
        return output

    def log_prob(self, x: Tensor, output: Tensor) -> Tensor:
        return gaussian_log_likelihood(
            x, output, self.log_sigma.exp() if self.learned else self._sigma
        )


class Bernoulli(Likelihood):
    """Each pixel is 1 with probability sigmoid(output), else 0.

    On grey pixels this is no likelihood, as it does not sum to one over them; `grey` asks for it
    all the same.
    """

    label = "Bernoulli"
    density = False

    def __init__(self, grey: bool = False) -> None:
        super().__init__()
        self.binary = not grey

    def distribution(self, output: Tensor) -> distributions.Bernoulli:
        return distributions.Bernoulli(logits=output, validate_args=False)

    def sample(self, output: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return torch.bernoulli(output.sigmoid(), generator=generator)

    def log_prob(self, x: Tensor, output: Tensor) -> Tensor:
        return -F.binary_cross_entropy_with_logits(output, x, reduction="none").flatten(1).sum(1)
