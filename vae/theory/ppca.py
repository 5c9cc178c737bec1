"""The oracle: with a fixed sigma the best linear model is probabilistic PCA.

Tipping & Bishop 1999; for the VAE Lucas et al. 2019, arXiv:1911.02469. No encoder, however rich,
can lift a linear decoder above it, so a linear model whose ELBO on the training split exceeds it
has a bug.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vae.models.likelihoods import Gaussian, Likelihood


@dataclass(frozen=True)
class Spectrum:
    """Mean and eigendecomposition of the pixels' covariance (1/N), float64, eigenvalues
    descending."""

    mean: Tensor  # [D]
    eigenvalues: Tensor  # [D]
    eigenvectors: Tensor  # [D, D], one a column

    @classmethod
    def from_images(cls, images: Tensor, transform: str = "grey") -> "Spectrum":
        """Of images [N, ...], uint8 in 0…255 or floating point in [0, 1]; memory is bounded.

        `transform` is what the data makes of grey pixels (vae.data): dequantised or binarised with
        fresh noise, their mean and covariance over all noise are known from those of the grey ones.
        """
        total = torch.zeros(images[0].numel(), dtype=torch.float64)
        second = torch.zeros(len(total), len(total), dtype=torch.float64)
        # The sum of 256 products of bytes fits the 24 bits of a float32, so these sums are exact
        # and twice as fast.
        exact = images.dtype == torch.uint8
        rows = (
            (part.flatten(1).cpu().float() for part in images.split(256))
            if exact
            else flat_chunks(images)
        )
        for x in rows:
            total += x.sum(0)
            second += x.T @ x
        if exact:
            total, second = total / 255, second / 255**2
        mean = total / len(images)
        covariance = second / len(images) - torch.outer(mean, mean)
        if transform == "dequantised":  # (255 x + u)/256 with u ~ U[0, 1)
            mean, covariance = (255 * mean + 0.5) / 256, covariance * (255 / 256) ** 2
            covariance.diagonal().add_(1 / (12 * 256**2))
        elif transform == "binarised":  # 1 with probability x
            covariance.diagonal().copy_(mean * (1 - mean))
        eigenvalues, eigenvectors = torch.linalg.eigh(covariance)
        return cls(mean, eigenvalues.flip(0).clamp_min(0), eigenvectors.flip(1))

    @classmethod
    def cached(cls, images: Tensor, transform: str = "grey") -> "Spectrum":
        """`from_images`, computed once for the same images: the jobs of a sweep share it (for MNIST
        a second on one core)."""
        key = hashlib.sha256(images.cpu().numpy().tobytes() + transform.encode()).digest()
        if key not in CACHE:
            CACHE.clear()
            CACHE[key] = cls.from_images(images, transform)
        return CACHE[key]


CACHE: dict[bytes, Spectrum] = {}  # the latest one


def flat_chunks(images: Tensor, chunk: int = 4096) -> "list[Tensor] | map[Tensor]":
    """Images [N, ...] as float64 rows [≤ chunk, D] in [0, 1] on the CPU."""

    def as_rows(part: Tensor) -> Tensor:
        rows = part.flatten(1).cpu().double()
        return rows / 255 if part.dtype == torch.uint8 else rows

    return map(as_rows, images.split(chunk))


@dataclass(frozen=True)
class PPCA:
    """The optimal linear encoder and decoder with `latent_dim` latents and this sigma on the data
    of `spectrum`."""

    spectrum: Spectrum
    latent_dim: int
    sigma: float

    @classmethod
    def with_ml_sigma(cls, spectrum: Spectrum, latent_dim: int) -> "PPCA":
        """With the sigma that is best too: its square is the mean of the discarded eigenvalues (eq.
        8)."""
        return cls(spectrum, latent_dim, spectrum.eigenvalues[latent_dim:].mean().sqrt().item())

    @property
    def rank(self) -> int:
        """r = min(m, #{λ_i > s²}): the latents that the optimum uses."""
        return min(self.latent_dim, int((self.spectrum.eigenvalues > self.sigma**2).sum()))

    @property
    def collapsed(self) -> int:
        return self.latent_dim - self.rank

    @property
    def retained(self) -> Tensor:
        """The eigenvalues that the optimum uses, [r]."""
        return self.spectrum.eigenvalues[: self.rank]

    @property
    def kl(self) -> Tensor:
        """Mean KL_i over the training split, [m], descending: ½ log(λ_i / s²), 0 for the
        collapsed."""
        kl = torch.zeros(self.latent_dim, dtype=torch.float64)
        kl[: self.rank] = 0.5 * (self.retained / self.sigma**2).log()
        return kl

    @property
    def total_kl(self) -> float:
        """Σ_i KL_i, the mean over the training split: the rate of a rate-distortion curve, nats."""
        return self.kl.sum().item()

    @property
    def squared_error(self) -> float:
        """Mean ‖x − f(z)‖² over the training split with z ~ q: the distortion, r s² + Σ_{i>r} λ_i.

        (Alemi et al. 2018, arXiv:1711.00464, for rate and distortion of a VAE; here of the linear
        optimum.)
        """
        discarded = self.spectrum.eigenvalues[self.rank :].sum().item()
        return self.rank * self.sigma**2 + discarded

    @property
    def train_elbo(self) -> float:
        """Mean ELBO over the data of the spectrum, nats per image."""
        discarded = self.spectrum.eigenvalues[self.rank :].sum().item()
        return -0.5 * (self._constant() + self.rank + discarded / self.sigma**2)

    def elbo(self, images: Tensor) -> Tensor:
        """ELBO of each image [N, ...] at the optimum, [N]; there it is the exact log p(x)."""
        parts = []
        for x in flat_chunks(images):
            centred = x - self.spectrum.mean
            t = centred @ self.spectrum.eigenvectors[:, : self.rank]
            residual = centred.square().sum(1) - t.square().sum(1)
            parts.append((t.square() / self.retained).sum(1) + residual / self.sigma**2)
        return -0.5 * (self._constant() + torch.cat(parts))

    def weights(self) -> dict[str, Tensor]:
        """`V` [m, D], `c` [m], `log_sd` [m] of the optimal encoder, `W` [D, m], `b` [D] of the
        decoder."""
        D, m, r, s2 = len(self.spectrum.mean), self.latent_dim, self.rank, self.sigma**2
        U, mean = self.spectrum.eigenvectors[:, :r], self.spectrum.mean
        gain = (self.retained - s2).sqrt()
        V = torch.zeros(m, D, dtype=torch.float64)
        W = torch.zeros(D, m, dtype=torch.float64)
        log_sd = torch.zeros(m, dtype=torch.float64)
        V[:r] = (U * gain / self.retained).T
        W[:, :r] = U * gain
        log_sd[:r] = 0.5 * (s2 / self.retained).log()
        return {"V": V, "c": -V @ mean, "log_sd": log_sd, "W": W, "b": mean}

    def _constant(self) -> float:
        """log det of the model's covariance, with D log 2π."""
        D = len(self.spectrum.mean)
        log_det = self.retained.log().sum().item() + (D - self.rank) * math.log(self.sigma**2)
        return D * math.log(2 * math.pi) + log_det


def best_linear(likelihood: Likelihood, spectrum: Spectrum, latent_dim: int) -> PPCA | None:
    """The optimum of a linear encoder and decoder with this likelihood on the data of `spectrum`.

    With a learned sigma its square is the mean of the discarded eigenvalues (Tipping & Bishop 1999,
    eq. 8). None where no closed form is known.
    """
    if not isinstance(likelihood, Gaussian) or likelihood.sigma is None:
        return None
    if not likelihood.learned:
        return PPCA(spectrum, latent_dim, likelihood.sigma)
    if not has_ml_sigma(spectrum, latent_dim):
        return None
    return PPCA.with_ml_sigma(spectrum, latent_dim)


def has_ml_sigma(spectrum: Spectrum, latent_dim: int) -> bool:
    """Whether there is a best sigma; not where the latents explain the images but for rounding
    errors, and the ELBO has no bound as sigma goes to 0."""
    discarded = spectrum.eigenvalues[latent_dim:]
    return len(discarded) > 0 and bool(discarded.mean() > 1e-12 * spectrum.eigenvalues[0])


def rate_distortion(
    spectrum: Spectrum, latent_dim: int, sigmas: Sequence[float]
) -> list[tuple[float, float, float]]:
    """(sigma, total KL in nats, mean squared error) of the linear optimum at each sigma.

    The curve that a sweep over sigma is drawn against. A KL weight beta at a fixed sigma has the
    optimum of sigma·√beta and weight 1 (divide the objective by beta), so a sweep over beta follows
    the same curve.
    """
    points = [PPCA(spectrum, latent_dim, sigma) for sigma in sigmas]
    return [(one.sigma, one.total_kl, one.squared_error) for one in points]
