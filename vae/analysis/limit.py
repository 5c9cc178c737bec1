"""Where the chain settles, how far that is from the prior, and how many steps it takes.

A linear encoder and decoder have an exact law (vae/theory/linear.py) as long as their chains stay
finite; any others are judged by simulated chains with the full mean and covariance of their states.
n chains, m latents, nats.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from vae.analysis.gaussian_kl import kl_from_sample
from vae.models.vae import VAE
from vae.theory.linear import (
    AffineWeights,
    affine_weights,
    kl_to_standard_normal,
    spectral_radius,
    stationary_distribution,
)

FORGOTTEN = 0.01  # share of the start below which a chain counts as having forgotten it
ROUNDING_KL = 1e-4  # nats that float32 weights put between the exact limit and the prior


class Limit(NamedTuple):
    """The limiting distribution of the chain against the prior."""

    kl: float  # nats of mean and covariance; inf where there is no limit, NaN where unknown
    se: float  # standard error of kl, 0 where it is exact
    p: float  # p-value that the prior is the limit; 0 or 1 where the law is known exactly
    method: str  # "exact": the stationary law of the weights; "simulated": the states of chains
    has_limit: bool | None  # False: the chain runs away; None: finite as far as it was simulated
    chains: int = 0  # simulated, 0 where exact
    steps: int = 0  # simulated from the prior, 0 where exact

    @property
    def ran_away(self) -> bool:
        """Whether simulated chains left the finite numbers."""
        return self.has_limit is False and self.method != "exact"


def exact_limit(model: VAE, weights: AffineWeights) -> Limit:
    """The limit of a linear encoder and decoder, from its stationary law."""
    law = stationary_distribution(model, weights)
    if law is None:
        return Limit(math.inf, 0.0, 0.0, "exact", has_limit=False)
    kl = kl_to_standard_normal(law)
    return Limit(kl, 0.0, float(kl < ROUNDING_KL), "exact", has_limit=True)


def simulated_limit(z: Tensor, steps: int) -> Limit:
    """The limit as n independent chains show it that started from the prior, from their states
    [n, m] after so many steps.

    Were the prior the limit, the states would be draws from it after any number of steps, so the
    p-value holds for any. The distance is that of the limit only after several mixing times.
    """
    found = kl_from_sample(z)
    runs_away = not torch.isfinite(z).all()
    return Limit(*found, "simulated", False if runs_away else None, len(z), steps)


def chain_limit(model: VAE, z: Tensor, steps: int) -> Limit:
    """The exact limit where it is known, else that of chains with states z [n, m] after steps.

    Chains that are not finite refute a law: an sd that grows with x can carry a chain away though
    its mean contracts.
    """
    weights = affine_weights(model)
    if weights is None or not torch.isfinite(z).all():
        return simulated_limit(z, steps)
    return exact_limit(model, weights)


class Mixing(NamedTuple):
    """How long the chain remembers its start."""

    steps: float  # 1/(1 − ρ); inf where it never forgets, NaN where not resolved
    method: str  # "exact" | "measured" | "not resolved"

    def memory(self, steps: int) -> float:
        """Share ρ^steps of the start that is left in the slowest direction; NaN if unknown."""
        return (1 - 1 / self.steps) ** steps


def exact_mixing(weights: AffineWeights) -> Mixing:
    """From the spectral radius ρ of the chain of a linear encoder and decoder.

    No integrated autocorrelation time of a linear function of z is above (1+ρ)/(1−ρ).
    """
    radius = spectral_radius(weights)
    return Mixing(1 / (1 - radius) if radius < 1 else math.inf, "exact")


def measured_mixing(states: Tensor) -> Mixing:
    """From the states [T, n, m] of n chains: that of an AR(1) with the longest autocorrelation time
    τ of any latent, (τ + 1)/2.

    Not resolved where T/2 steps are fewer than 5 τ: then T says nothing about τ.
    """
    tau = autocorrelation_time(states).max().item()  # NaN if any is
    if not math.isfinite(tau):
        return Mixing(math.nan, "not resolved")
    return Mixing(max(1.0, (tau + 1) / 2), "measured")


def chain_mixing(model: VAE, states: Tensor) -> Mixing:
    """The exact mixing time where it is known, else measured from states [T, n, m]; not resolved
    where a chain is not finite."""
    weights = affine_weights(model)
    if weights is None or not torch.isfinite(states[-1]).all():
        return measured_mixing(states)
    return exact_mixing(weights)


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
        unresolved = math.nan if not torch.isfinite(tau).all() else math.inf
        times.append(tau[ends[0, 0]].item() if len(ends) else unresolved)
    return torch.tensor(times)
