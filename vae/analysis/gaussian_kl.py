"""How far the distribution of a sample is from a normal one, by its mean and covariance.

n states of m dimensions, nats.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from vae.theory.linear import kl_of_moments


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
