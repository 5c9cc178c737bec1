"""How good are the samples? Two sets of features compared, [N, d] each, real ones first.

Features come from a classifier (vae/classifier.py), never from pixels: there a full-covariance
Gaussian's noise scores like real images. Every figure depends on N, so it means something only
beside the same figure of two real sets of the same size.
"""

import math
import warnings
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


def frechet_error(real: Tensor, fake: Tensor, generator: torch.Generator, draws: int = 20) -> float:
    """Standard error of `frechet_distance`: its spread over bootstrap samples of both sets."""
    values = []
    for _ in range(draws):
        chosen = [
            torch.randint(len(part), (len(part),), generator=generator) for part in (real, fake)
        ]
        values.append(frechet_distance(real.cpu()[chosen[0]], fake.cpu()[chosen[1]]))
    return torch.tensor(values).std().item()


def kernel_distance(
    real: Tensor, fake: Tensor, subsets: int = 50, size: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """KID: squared MMD with the cubic kernel, without bias (Bińkowski et al. 2018), and its
    standard error.

    The mean over random subsets of `size` (half the samples at most); they overlap, so the error is
    their spread scaled to N samples, which is too large where the two laws agree.
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
        mean, spread = metric.compute()
    return mean.item(), spread.item() * math.sqrt(size / min(len(real), len(fake)))


class Neighbours(NamedTuple):
    """What nearest neighbours say, each value one per sample; their means are the metrics."""

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
    `rows` × max(N, M)."""
    real, fake = real.cpu().double(), fake.cpu().double()

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
