"""How good are the samples? Two sets of features compared, [N, d] each, real ones first.

Features come from a classifier (vae/analysis/classifier.py), never from pixels: there a Gaussian's
noise of full covariance scores like real images. Every metric depends on N, so it means something
only next to the same metric of two real sets of the same size.
"""

import math
import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance


class ReadyFeatures(nn.Identity):
    """A feature network for torchmetrics whose input are the features already."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features


def frechet_distance(real: Tensor, fake: Tensor) -> float:
    """‖mean − mean‖² + tr(C + C' − 2 (C C')^½) of the features' moments (Heusel et al. 2017, eq.
    6)."""
    metric = FrechetInceptionDistance(feature=ReadyFeatures(real.shape[1]))
    metric.update(real.cpu().double(), real=True)
    metric.update(fake.cpu().double(), real=False)
    return metric.compute().item()


def block_errors(
    real: Tensor,
    fake: Tensor,
    measure: Callable[[Tensor, Tensor], dict[str, float]],
    generator: torch.Generator,
    blocks: int = 8,
    repeats: int = 4,
) -> dict[str, float]:
    """Standard errors of measures of two sets, over fresh samples of both.

    Both sets are cut at random into disjoint blocks; the spread of a measure over pairs of blocks,
    divided by √blocks, is that of whole sets, as these variances fall as 1/N (subsampling without
    replacement, Politis, Romano and Wolf 1999). It counts both sets and that one image's neighbours
    are another's, which the spread over indicators does not. Where two laws agree, the variance
    falls faster, and the error is too large.
    """
    variances: list[dict[str, float]] = []
    for _ in range(repeats):
        parts = [
            part[torch.randperm(len(part), generator=generator)].chunk(blocks)
            for part in (real.cpu(), fake.cpu())
        ]
        found = [measure(a, b) for a, b in zip(*parts, strict=True)]
        variances.append(
            {key: torch.tensor([each[key] for each in found]).var().item() for key in found[0]}
        )
    return {
        key: math.sqrt(sum(each[key] for each in variances) / repeats / blocks)
        for key in variances[0]
    }


def squared_mmd(real: Tensor, fake: Tensor) -> float:
    """Squared MMD with the cubic kernel (x·y/d + 1)³, without bias, of all pairs."""
    a, b = real.double(), fake.double()

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.T / x.shape[1] + 1) ** 3

    within = [
        (k.sum() - k.diagonal().sum()) / (len(k) * (len(k) - 1))
        for k in (kernel(a, a), kernel(b, b))
    ]
    return (within[0] + within[1] - 2 * kernel(a, b).mean()).item()


def kernel_distance(
    real: Tensor, fake: Tensor, subsets: int = 50, size: int = 1000, seed: int = 0
) -> float:
    """KID: squared MMD with the cubic kernel, without bias (Bińkowski et al. 2018).

    The mean over random subsets of `size` (half the samples at most).
    """
    size = min(size, len(real) // 2, len(fake) // 2)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*will save all extracted features.*")
        metric = KernelInceptionDistance(
            feature=ReadyFeatures(real.shape[1]), subsets=subsets, subset_size=size
        )
    metric.update(real.cpu().double(), real=True)
    metric.update(fake.cpu().double(), real=False)
    with torch.random.fork_rng(
        devices=[]
    ):  # torchmetrics draws its subsets from the global generator
        torch.manual_seed(seed)
        mean, _ = metric.compute()
    return mean.item()


class Neighbours(NamedTuple):
    """What nearest neighbours say, each value one per sample; their means are the metrics.

    The values depend on each other through both sets: their spread gives no error of the mean.
    """

    # [M] fake: 1 if inside the k-th-neighbour ball of any real (Kynkäänniemi et al. 2019)
    precision: Tensor
    recall: Tensor  # [N] real: 1 if inside the ball of any fake
    # [M] fake: in how many of the real balls, over k (Naeem et al. 2020); 1 for identical laws
    density: Tensor
    # [N] real: 1 if its ball holds a fake; expected 1 − Π (N−i)/(N+M−i) for identical laws
    coverage: Tensor
    # [N] real: 1 if its nearest neighbour of both sets is real (Lopez-Paz & Oquab 2017)
    nn_real: Tensor
    nn_fake: Tensor  # [M] fake: 1 if its nearest neighbour is fake; both ½ for identical laws


def neighbours(real: Tensor, fake: Tensor, k: int = 5, rows: int = 1000) -> Neighbours:
    """Compare features real [N, d] and fake [M, d] by k nearest neighbours; memory bounded by
    `rows` × max(N, M). Raises ValueError unless both have more than k images."""
    if min(len(real), len(fake)) <= k:
        raise ValueError(f"{k} nearest neighbours need more than {k} images of both kinds")
    real, fake = real.cpu().double(), fake.cpu().double()

    # 1. Distances within each set.

    def within(points: Tensor) -> tuple[Tensor, Tensor]:
        """Distance of each point to its nearest and its k-th nearest other point."""
        nearest = []
        for first in range(0, len(points), rows):
            distance = torch.cdist(points[first : first + rows], points)
            distance[torch.arange(len(distance)), first + torch.arange(len(distance))] = (
                math.inf
            )  # itself
            nearest.append(distance.topk(k, largest=False).values)
        found = torch.cat(nearest)
        return found[:, 0], found[:, -1]

    real_first, real_radius = within(real)
    fake_first, fake_radius = within(fake)

    # 2. Distances from one to the other.
    balls = torch.zeros(len(fake), dtype=torch.float64)  # real balls that hold each fake
    to_real = torch.full((len(fake),), math.inf, dtype=torch.float64)
    recall, coverage, to_fake = [], [], []
    for part, radius in zip(real.split(rows), real_radius.split(rows), strict=True):
        distance = torch.cdist(part, fake)  # [rows, M]
        balls += (distance <= radius[:, None]).sum(0)
        recall.append((distance <= fake_radius).any(1))
        nearest = distance.min(1).values
        coverage.append(nearest <= radius)
        to_fake.append(nearest)
        to_real = torch.minimum(to_real, distance.min(0).values)

    # 3. The measures.
    return Neighbours(
        precision=(balls > 0).double(),
        recall=torch.cat(recall).double(),
        density=balls / k,
        coverage=torch.cat(coverage).double(),
        nn_real=(real_first < torch.cat(to_fake)).double(),
        nn_fake=(fake_first < to_real).double(),
    )


def expected_coverage(real: int, fake: int, k: int = 5) -> float:
    """Coverage of two samples of one law, whatever it is: 1 − Π_{i=1…k} (N−i)/(N+M−i), 0.969 for N
    = M, k = 5."""
    return 1 - math.prod((real - i) / (real + fake - i) for i in range(1, k + 1))
