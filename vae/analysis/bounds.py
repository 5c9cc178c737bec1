"""Lower bounds on log p(x) by importance sampling, for any model, in nats per image.

The importance-weighted bound (Burda et al. 2016, arXiv:1509.00519) is one in expectation: ELBO =
L_1 ≤ L_K ≤ log p(x), with equality where the proposal is the exact posterior. D dimensions of an
image, m latents, B images, K samples.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Normal

from vae.models.elbo import ELBOTerms, log_prior_ratio
from vae.models.vae import VAE


class Estimate(NamedTuple):
    """A mean over images and its standard error."""

    mean: float
    se: float

    @classmethod
    def from_values(cls, values: Tensor) -> "Estimate":
        """Mean and standard error of values [N], one per image; NaN for a single one."""
        values = values.cpu().double()
        se = values.std() / math.sqrt(len(values)) if len(values) > 1 else torch.tensor(math.nan)
        return cls(values.mean().item(), se.item())


class ControlVariate(NamedTuple):
    """A mean over all images from an estimate on some of them."""

    mean: float
    se: float  # over images, as if all N had been drawn afresh
    subset_se: float  # the part of it that comes from estimating on n of the N images alone
    slope: float  # of the mean on that of the ELBO of all N images, the product over the levels


def control_variate(elbo: Tensor, chosen: Tensor, *levels: tuple[Tensor, Tensor]) -> ControlVariate:
    """Mean over N images of an estimate known for some, with cheaper estimates as control variates.

    `elbo` [N] is of all images, each level two tensors (coarse [n_l], fine [n_l]) of the first n_l
    of the `chosen` [≥ n_1], a random order of places in `elbo`, N ≥ n_1 ≥ n_2 …, where `coarse`
    estimates what the level before does: the ELBO at first, maybe with less noise than `elbo`.
    Level by level the mean is regressed on the one before:

        M_0 = mean(elbo),    M_l = mean(fine_l) + slope_l · (M_(l−1) − mean(coarse_l))

    (regression under two-phase sampling: Cochran 1977, Sampling techniques, section 12.6; control
    variates: Owen 2013, Monte Carlo theory, methods and examples, section 8.9). A fitted slope
    brings a bias of order 1/n_l, well below the error; with n_l = N the mean is that of `fine`. Two
    means over nested subsets have the covariance of one image's values over the larger one's size.
    """
    pairs = [(coarse.cpu().double(), fine.cpu().double()) for coarse, fine in levels]
    some = pairs[0][0]  # ELBO in the order of the subsets
    whole = elbo.cpu().double().index_copy(0, chosen[: len(some)].cpu(), some)
    slopes = [regression_slope(coarse, fine) for coarse, fine in pairs]
    mean = whole.mean()
    for slope, (coarse, fine) in zip(slopes, pairs, strict=True):
        mean = fine.mean() + slope * (mean - coarse.mean())
    if min(len(fine) for _, fine in pairs) < 2:
        return ControlVariate(mean.item(), math.nan, math.nan, math.prod(slopes))
    residuals = [  # in the last level's units
        math.prod(slopes[i + 1 :]) * (fine - slopes[i] * coarse)
        for i, (coarse, fine) in enumerate(pairs)
    ]
    N, weight = len(whole), math.prod(slopes)
    total, subset = weight**2 * whole.var() / N, whole.new_zeros(())
    for i, (r, slope) in enumerate(zip(residuals, slopes, strict=True)):
        n = len(r)
        own = r.var() * ((n - 1) / (n - 2) * (1 + 1 / (n - 3)) if slope != 1 else 1)  # fitted
        total += r.var() / N + own * (1 / n - 1 / N) + 2 * weight * covariance(some, r) / N
        subset += own * (1 / n - 1 / N)
        for larger in residuals[:i]:
            total += 2 * covariance(larger, r) / len(larger)
            subset += 2 * covariance(larger, r) * (1 / len(larger) - 1 / N)
    se, subset_se = (v.clamp_min(0).sqrt().item() for v in (total, subset))
    return ControlVariate(mean.item(), se, subset_se, weight)


def regression_slope(coarse: Tensor, fine: Tensor, fewest: int = 20) -> float:
    """Least-squares slope of `fine` on `coarse` over the images [n] that have both; 1 for fewer
    than `fewest` images, and where it would be no finite number."""
    slope = covariance(coarse, fine) / coarse.var() if len(fine) >= fewest else torch.ones(())
    return slope.item() if slope.isfinite() else 1.0


def covariance(a: Tensor, b: Tensor) -> Tensor:
    """Covariance over the images that a [n] and b [k] share: the first min(n, k)."""
    n = min(len(a), len(b))
    return torch.cov(torch.stack([a[:n], b[:n]]))[0, 1]


class Proposal(NamedTuple):
    """A Gaussian for each image, z = loc + scale ∘ (factor u) with u ~ N(0, I).

    `factor` is lower triangular with ones on its diagonal; None is the identity: independent
    latents.
    """

    loc: Tensor  # [B, m]
    scale: Tensor  # [B, m]
    factor: Tensor | None = None  # [B, m, m]

    @classmethod
    def from_normal(cls, q: Normal) -> "Proposal":
        """q(z|x) of an encoder."""
        return cls(q.loc, q.scale)

    def select(self, start: int, stop: int) -> "Proposal":
        """The proposals of the images from `start` to `stop`."""
        factor = None if self.factor is None else self.factor[start:stop]
        return Proposal(self.loc[start:stop], self.scale[start:stop], factor)

    def from_noise(self, u: Tensor) -> Tensor:
        """z at u, both [B, K, m]."""
        if self.factor is not None:
            u = torch.einsum("bij,bkj->bki", self.factor, u)
        return self.loc[:, None] + self.scale[:, None] * u

    def to_noise(self, z: Tensor) -> Tensor:
        """The u that gives z, both [B, K, m]."""
        u = (z - self.loc[:, None]) / self.scale[:, None]
        if self.factor is None:
            return u
        return torch.linalg.solve_triangular(self.factor, u.mT, upper=False, unitriangular=True).mT

    def sample_noise(self, K: int, generator: torch.Generator | None = None) -> Tensor:
        """K standard normal draws for each image, [B, K, m]."""
        B, m = self.loc.shape
        loc = self.loc
        return torch.randn(B, K, m, generator=generator, dtype=loc.dtype, device=loc.device)


@torch.no_grad()
def elbo_terms(model: VAE, images: Tensor, noise: Tensor) -> ELBOTerms:
    """The ELBO's terms of images [B, C, H, W], averaged over the latent samples that `noise` [S, B,
    m] makes."""
    terms = [model.elbo_terms(images, one)[0] for one in noise]
    return ELBOTerms(torch.stack([t.log_likelihood for t in terms]).mean(0), terms[0].kl)


def log_ratio(model: VAE, images: Tensor, u: Tensor, proposal: Proposal) -> Tensor:
    """log p(x, z) − log q(z) at z = proposal.from_noise(u), [B, K].

    For images [B, C, H, W] and u [B, K, m]. Decodes B·K latents at once.
    """
    z = proposal.from_noise(u)
    rows = images.repeat_interleave(u.shape[1], dim=0)  # [B·K, C, H, W]
    likelihood = model.log_likelihood(rows, z.flatten(0, 1)).view(u.shape[:2])
    return likelihood + log_prior_ratio(z, u, proposal.scale.log().sum(-1)[:, None])


@torch.no_grad()
def log_weights(
    model: VAE,
    images: Tensor,
    K: int,
    generator: torch.Generator | None = None,
    proposal: Proposal | None = None,
) -> Tensor:
    """log p(x, z_j)/q(z_j), z_j ~ q, for images [B, C, H, W]; [B, K]. q is the encoder's without a
    `proposal`."""
    proposal = Proposal.from_normal(model.encode(images)) if proposal is None else proposal
    return log_ratio(model, images, proposal.sample_noise(K, generator), proposal)


class Bound(NamedTuple):
    """The importance-weighted bound of each image."""

    bound: Tensor  # [B], nats
    ess: Tensor  # [B], effective sample size (Σw)²/Σw², from 1 to K


def importance_bounds(log_w: Tensor, Ks: Iterable[int]) -> dict[int, Bound]:
    """L_K = E log (1/K) Σ_j w_j for each K from the same log weights [B, at least max K].

    A smaller K takes as many groups of K weights as there are and averages over them, which makes
    L_K rise with K in the sample too wherever one K divides the next.
    """
    bounds = {}
    for K in Ks:
        whole = log_w.shape[1] // K * K
        groups = log_w[:, :whole].double().unflatten(1, (-1, K))  # [B, groups, K]
        total = groups.logsumexp(-1)
        ess = (2 * total - (2 * groups).logsumexp(-1)).exp()
        bounds[K] = Bound((total - math.log(K)).mean(1), ess.mean(1))
    return bounds


def iwae(
    model: VAE,
    images: Tensor,
    Ks: Sequence[int],
    generator: torch.Generator | None = None,
    rows: int = 4096,
    progress: Callable[[Any], Any] = iter,
    proposal: Proposal | None = None,
) -> dict[int, Bound]:
    """L_K of images [B, C, H, W] for every K, decoding at most `rows` latents at once (Burda et
    al., eq. 8).

    Samples come from the encoder's q(z|x), or from a `proposal` for these images.
    """
    most = max(Ks)
    at_once = min(most, rows)
    size = max(1, rows // at_once)  # images at once
    parts = []
    for start in progress(range(0, len(images), size)):
        x = images[start : start + size]
        q = None if proposal is None else proposal.select(start, start + size)
        drawn = [
            log_weights(model, x, min(at_once, most - done), generator, q)
            for done in range(0, most, at_once)
        ]
        parts.append(importance_bounds(torch.cat(drawn, dim=1).cpu(), Ks))
    return {
        K: Bound(*(torch.cat(part) for part in zip(*(p[K] for p in parts), strict=True)))
        for K in Ks
    }
