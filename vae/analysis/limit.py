"""Where the chain settles, how far that is from the prior, and how many steps it takes.

A linear encoder and decoder have an exact law (vae/theory/linear.py) as long as their chains stay
finite; any others are judged by simulated chains with the full mean and covariance of their states.
n chains, m latents, nats.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from vae.models.vae import VAE
from vae.theory.linear import (
    AffineWeights,
    affine_weights,
    kl_of_moments,
    kl_to_standard_normal,
    spectral_radius,
    stationary_distribution,
)

FORGOTTEN = 0.01  # share of the start below which a chain counts as having forgotten it
ROUNDING_KL = 1e-4  # nats that float32 weights put between the exact limit and the prior


class KLEstimate(NamedTuple):
    """KL from the law of a sample to a normal law, by mean and covariance, and a test that it is 0.

    The KL of mean and covariance is a lower bound of the whole KL from that law to the normal one,
    and equal to it where that law is normal.
    """

    kl: float  # nats; unbiased, so it scatters around 0 and may be negative where the laws agree
    se: float  # standard error of kl
    p: float  # p-value of the hypothesis that the sample comes from the normal law


def kl_from_sample(z: Tensor, law: MultivariateNormal | None = None) -> KLEstimate:
    """KL(N(mean z, cov z) ‖ law) of states z [n, m] without its bias; without a law it is N(0, I).

    With S = cov z (1/n) the plug-in ½ (Σ|z|²/n − m − log det S) exceeds the KL of the true moments
    by ½ (m log(n/2) − Σ_i ψ((n−i)/2)) on average, since n S is a Wishart matrix with n − 1 degrees
    of freedom (Anderson 2003, section 7.5): exact for a normal sample of any size n > m, and large:
    7.2 nats for m = 32, n = 64. The variance is exact likewise, up to the moments put into it. The
    p-value is that of the likelihood-ratio test: the plug-in has a gamma law with its exact mean
    and variance under the hypothesis, which is Wilks' χ² with m(m+3)/2 degrees of freedom as n
    grows. A law with heavier tails scatters more than a normal one, so the error is the larger of
    that and of the jackknife over the states. For n ≤ m there is no estimate (NaN) and p is that of
    Ledoit & Wolf (2002, section 3).
    """
    n, m = z.shape
    z = z.detach().cpu().double()
    if not torch.isfinite(z).all():
        return KLEstimate(math.inf, 0.0, 0.0)
    if law is not None:
        z = torch.linalg.solve_triangular(law.scale_tril, (z - law.loc).T, upper=False).T
    if n <= m:
        return KLEstimate(math.nan, math.nan, ledoit_wolf_p(z))

    # 1. The plug-in, and its mean and variance were the law N(0, I).
    mean, covariance = z.mean(0), torch.cov(z.T, correction=0).reshape(m, m)
    plug_in = kl_of_moments(mean, covariance)
    half = half_degrees(n, m)
    bias = plug_in_bias(n, m)
    null_variance = 0.25 * (half.polygamma(1).sum().item() - 2 * m / n)

    # 2. What the distance itself adds to the variance: (tr (Σ − I)² + 2 mean'Σ mean) / 2n.
    trace = covariance.trace().item() * n / (n - 1)
    squares = covariance.square().sum().item() * (n / (n - 1)) ** 2
    squares = (squares - trace**2 / (n - 1)) * (n - 1) ** 2 / max(1, (n - 2) * (n + 1))  # tr Σ²
    shift = max(0.0, (mean @ covariance @ mean).item() - squares / n)
    added = (max(0.0, squares - 2 * trace + m) + 2 * shift) / (2 * n)

    # 3. The likelihood-ratio test.
    shape = bias**2 / null_variance
    p = torch.special.gammaincc(
        *(torch.tensor(v, dtype=torch.float64) for v in (shape, max(0.0, plug_in) * shape / bias))
    )
    se = max(math.sqrt(null_variance + added), jackknife_se(z))
    return KLEstimate(plug_in - bias, se, p.item())


def half_degrees(n: int, m: int) -> Tensor:
    """(n − i)/2 for i = 1 … m: half the degrees of freedom of a Wishart matrix's factors."""
    return (n - torch.arange(1, m + 1, dtype=torch.float64)) / 2


def plug_in_bias(n: int, m: int) -> float:
    """What the plug-in of n > m normal states has too much on average."""
    return 0.5 * (m * math.log(n / 2) - half_degrees(n, m).digamma().sum().item())


def jackknife_se(z: Tensor, blocks: int = 64) -> float:
    """Standard error of the KL of mean and covariance of states z [n, m] whatever their law.

    Delete-a-block jackknife over at most `blocks` blocks of states (Efron & Tibshirani 1993,
    chapter 11); 0 where too few are left without a block.
    """
    n, m = z.shape
    parts = z.tensor_split(min(n, blocks))
    if n - len(parts[0]) <= m:
        return 0.0
    total, products = z.sum(0), z.T @ z
    estimates = []
    for part in parts:
        left = n - len(part)
        mean = (total - part.sum(0)) / left
        covariance = (products - part.T @ part) / left - torch.outer(mean, mean)
        estimates.append(kl_of_moments(mean, covariance) - plug_in_bias(left, m))
    spread = torch.tensor(estimates, dtype=torch.float64).std(correction=0).item()
    return math.sqrt(len(parts) - 1) * spread


def ledoit_wolf_p(z: Tensor) -> float:
    """p-value that z [n, m] comes from N(0, I), also for n ≤ m.

    With S = Z'Z/n, n W − m is N(1, 4) for large n and m under the hypothesis (Ledoit & Wolf 2002).
    """
    n, m = z.shape
    gram = z @ z.T / n  # [n, n], same traces as S
    trace, squares = gram.trace().item(), gram.square().sum().item()
    W = (squares - 2 * trace + m) / m - (trace / m) ** 2 * m / n + m / n
    return 0.5 * math.erfc((n * W - m - 1) / 2 / math.sqrt(2))


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
