"""Means over the images of a split, exact whatever the batches were."""

from collections.abc import Callable

import torch
from torch import Tensor

from vae.analysis.latents import COLLAPSE_THRESHOLD, INACTIVE_THRESHOLD
from vae.models.elbo import ELBOTerms


class SplitSums:
    """Sums over the images of a split, from which its means follow exactly whatever the batches
    were."""

    def __init__(self, latent_dim: int, device: torch.device) -> None:
        self.sums = torch.zeros(2 + 3 * latent_dim, dtype=sum_dtype(device), device=device)

    def add(self, terms: ELBOTerms, mean: Tensor) -> None:
        """Add a batch: its ELBO terms and the posterior means [B, m]."""
        count = terms.log_likelihood.new_full(
            (1,), len(mean)
        )  # 0 where a rank's last batch is empty
        per_latent = [terms.kl.sum(0), mean.sum(0), mean.square().sum(0)]
        self.sums += torch.cat([count, terms.log_likelihood.sum(0, keepdim=True), *per_latent])

    def figures(self, reduce: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Means over the images of all ranks; `reduce` adds up a tensor over the ranks."""
        sums = reduce(self.sums).cpu().double()
        count, log_likelihood = sums[:2].tolist()
        kl, mean, square = sums[2:].view(3, -1) / count
        return {
            "elbo": log_likelihood / count - kl.sum().item(),
            "log_likelihood": log_likelihood / count,
            "kl": kl.sum().item(),
            "collapsed": float((kl < COLLAPSE_THRESHOLD).sum()),
            "inactive": float((square - mean.square() < INACTIVE_THRESHOLD).sum()),
        }


def sum_dtype(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64
