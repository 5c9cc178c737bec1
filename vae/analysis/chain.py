"""The limiting distribution: the chain decode → sample → encode → sample.

x_t ~ p(x|z_t), z_{t+1} ~ q(z|x_t). The frames are the decoder's means f(z_t). For a linear pair
this is an AR(1) process with the matrix V W; at the pPCA optimum its limit is the prior, reached
after about λ_1/sigma² steps (82 on MNIST at sigma 0.25), so 100 steps are not the limit where sigma
is small.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from vae.models.elbo import rsample
from vae.models.vae import VAE
from vae.theory.linear import (
    affine_weights,
    kl_to_standard_normal,
    normal_law,
    spectral_radius,
)


@torch.no_grad()
def run_chain(
    model: VAE, z: Tensor, steps: int, generator: torch.Generator | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (z_t [n, m], f(z_t) [n, 1, 28, 28]) for t = 0 … steps, from the latents z.

    A chain that has left the finite numbers is NaN from there on, whatever its likelihood makes of
    such numbers.
    """
    for t in range(steps + 1):
        output = model.output(z)
        diverged = ~output.isfinite().flatten(1).all(1)  # [n]
        output[diverged] = 0
        frame = model.likelihood.mean(output).clone()
        frame[diverged] = math.nan
        yield z, frame
        if t < steps:
            z = rsample(model.encode(model.likelihood.sample(output, generator)), generator)
            z[diverged] = math.nan


def drift(z: Tensor) -> float:
    """KL(N(mean, diag variance of z) ‖ N(0, I)) in nats, for latents [n, m]; inf where z is not
    finite.

    Draws from the prior itself score about m/n, the floor of what n chains can show.
    """
    z = z.double() if z.device.type != "mps" else z.cpu().double()
    if not torch.isfinite(z).all():
        return float("inf")
    mean, variance = z.mean(0), z.var(0)
    return (0.5 * (mean.square() + variance - 1 - variance.log())).sum().item()


def local_gain(model: VAE, z: Tensor) -> Tensor:
    """Spectral radius of the Jacobian of the mean map z → mean(f(z)) at each state of z [n, m],
    shape [n].

    Below 1 the mean map pulls together around that state, above 1 it drives apart. NaN at states
    that are not finite.
    """

    def mean_map(state: Tensor) -> Tensor:
        return model.encode(model.mean_image(state[None])).loc[0]

    finite_state = z.isfinite().all(1)
    jacobian = torch.func.vmap(torch.func.jacrev(mean_map))(
        z.where(finite_state[:, None], 0)
    )  # [n, m, m]
    jacobian = jacobian.detach().cpu()
    finite = finite_state.cpu() & jacobian.isfinite().flatten(1).all(1)
    gain = torch.full((len(z),), float("nan"))
    if finite.any():
        gain[finite] = torch.linalg.eigvals(jacobian[finite].double()).abs().amax(1).float()
    return gain


class ChainTrace(NamedTuple):
    """What n chains showed over the steps t = 0 … T."""

    frames: list[Tensor]  # T + 1 times f(z_t), [n, 1, 28, 28] on the CPU
    drifts: list[float]  # T + 1, nats; inf where a latent is not finite
    # steps from the start at which every latent was finite, T + 1 where none ever diverged
    finite_steps: int
    spectral_radius: float | None  # exact, of a linear encoder and decoder
    local_gain: float | None  # median over visited states, of any others

    @property
    def metrics(self) -> dict[str, float]:
        """`chain/…` as in metrics.json."""
        found = {
            "chain/finite": float(self.finite_steps == len(self.drifts)),
            "chain/drift": self.drifts[-1],
        }
        if self.spectral_radius is not None:
            return found | {"chain/spectral_radius": self.spectral_radius}
        assert self.local_gain is not None
        return found | {"chain/local_gain": self.local_gain}


def simulate(
    model: VAE, start: Tensor, steps: int, generator: torch.Generator | None = None
) -> ChainTrace:
    """Run the chain from the latents `start` [n, m]; gains are taken at 16 states of the last
    finite step."""
    frames, drifts, last, finite_steps = [], [], start, 0
    for t, (z, frame) in enumerate(run_chain(model, start, steps, generator)):
        frames.append(frame.cpu())
        drifts.append(drift(z))
        if finite_steps == t and torch.isfinite(z).all():
            last, finite_steps = z, t + 1
    weights = affine_weights(model)
    radius = spectral_radius(weights) if weights is not None else None
    gain = local_gain(model, last[:16]).nanmedian().item() if weights is None else None
    return ChainTrace(frames, drifts, finite_steps, radius, gain)


def gaussian_test(z: Tensor, law: MultivariateNormal | None = None) -> tuple[float, float]:
    """Do the latents z [n, m] have this mean and covariance (without a law: 0 and I)? (KL in nats,
    p-value).

    KL(N(mean z, cov z) ‖ law), and the likelihood-ratio test of it: 2 n KL is χ² with m(m+3)/2
    degrees of freedom, after Bartlett's correction (Anderson 2003, section 10.9). Sees the first
    two moments only. NaN p for n ≤ m.
    """
    n, m = z.shape
    z = z.detach().cpu().double()
    if not torch.isfinite(z).all():
        return math.inf, 0.0
    if n <= m + 1:
        return math.nan, math.nan
    if law is not None:
        z = torch.linalg.solve_triangular(law.scale_tril, (z - law.loc).T, upper=False).T
    kl = kl_to_standard_normal(normal_law(z.mean(0), torch.cov(z.T, correction=0).view(m, m)))
    correction = 1 - (2 * m**2 + 9 * m + 11) / (6 * n * (m + 3))
    half_dof, half_statistic = m * (m + 3) / 4, max(0.0, n * kl * correction)
    p = torch.special.gammaincc(
        *(torch.tensor(v, dtype=torch.float64) for v in (half_dof, half_statistic))
    )
    return kl, p.item()


def one_step_test(
    model: VAE, n: int, generator: torch.Generator | None = None
) -> tuple[float, float]:
    """Is the prior stationary? (KL in nats, p-value) of z_1 against N(0, I), after one cycle of n
    chains from it."""
    z = torch.randn(n, model.latent_dim, generator=generator, device=model.device)
    parts = [list(run_chain(model, part, 1, generator))[1][0] for part in z.split(1000)]
    return gaussian_test(torch.cat(parts))


def autocorrelation_time(z: Tensor) -> Tensor:
    """Integrated autocorrelation time of each latent in steps, [m], from states z [T, n, m] of n
    chains.

    τ = 1 + 2 Σ_k ρ_k, cut off at the first lag ≥ 5 τ (Sokal 1997); (1+ρ)/(1−ρ) for an AR(1) with
    coefficient ρ, 1 for independent states. inf where T/2 steps are too few to see the end of it,
    NaN where z is not finite.
    """
    T = len(z)
    lag = torch.arange(T // 2)
    times = []
    for latent in z.unbind(2):  # one at a time: bounded memory
        centred = latent.cpu().double()
        centred = centred - centred.mean()
        power = torch.fft.rfft(centred, n=2 * T, dim=0).abs().square()
        covariance = torch.fft.irfft(power, n=2 * T, dim=0)[: T // 2].mean(1) / (T - lag)
        tau = 2 * (covariance / covariance[0]).cumsum(0) - 1
        ends = (lag >= 5 * tau).nonzero()
        unseen = math.nan if not torch.isfinite(tau).all() else math.inf
        times.append(tau[ends[0, 0]].item() if len(ends) else unseen)
    return torch.tensor(times)


CHAINS = 64


def prior_latents(n: int, latent_dim: int) -> torch.Tensor:
    """The same n draws of N(0, I) for every run and device, [n, latent_dim]."""
    return torch.randn(n, latent_dim, generator=torch.Generator().manual_seed(0))
