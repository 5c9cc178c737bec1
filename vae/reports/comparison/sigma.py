"""The ELBO at the sigma that fits the networks best: how large a gap is depends on sigma."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor


class Refit(NamedTuple):
    """sigma refitted on validation images, and the ELBO with it, networks unchanged."""

    sigma: float
    elbo: dict[str, Tensor]  # by split (val, test): float64 [N], nats


def refit(sigma: float, image_shape: Sequence[int], per_image: dict[str, Tensor]) -> Refit:
    """From log p(x|z) and KL of each image ("<split>/log_likelihood", "<split>/kl") at `sigma`.

    log p(x|z) = −(D/2) log(2π sigma²) − ‖x − f(z)‖² / (2 sigma²) gives the squared error of every
    image. The best sigma² is its mean over validation images and pixels; the KL does not change.
    """
    D = math.prod(image_shape)
    constant = -0.5 * D * math.log(2 * math.pi * sigma**2)
    squared_error = {
        split: 2 * sigma**2 * (constant - per_image[f"{split}/log_likelihood"]).clamp_min(0)
        for split in ("val", "test")
    }
    variance = max(squared_error["val"].mean().item() / D, 1e-12)
    best_constant = -0.5 * D * math.log(2 * math.pi * variance)
    return Refit(
        math.sqrt(variance),
        {
            split: best_constant - error / (2 * variance) - per_image[f"{split}/kl"]
            for split, error in squared_error.items()
        },
    )
