"""Posterior predictive check: do images drawn from the model look to the model as test images do?

Gelman, Meng & Stern 1996, with log p(x) and the residual variance as discrepancies. A sigma above
the size of the real residuals shows here: the model's own images are then noisier than any digit.
Nats per image; N images.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vae.analysis.inference_gap import inference_gap
from vae.models.vae import VAE
from vae.theory.linear import affine_weights, linear_log_likelihood


@torch.no_grad()
def draw_images(model: VAE, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Images [n, C, H, W] from the model itself, x ~ p(x|z), and their latents z ~ N(0, I), [n,
    m]."""
    z = torch.randn(n, model.latent_dim, generator=generator, device=model.device)
    parts = [model.likelihood.sample(model.output(part), generator) for part in z.split(1000)]
    return torch.cat(parts), z


def tight_log_p(
    model: VAE,
    images: Tensor,
    K: int = 1000,
    steps: int = 300,
    samples: int = 8,
    generator: torch.Generator | None = None,
    rows: int = 4096,
    progress: Callable[[Any], Any] = iter,
) -> Tensor:
    """log p(x) of images [N, C, H, W]: exact for a linear model, else L_K from below, [N].

    The proposals of L_K are optimised for each image, so that it does not matter how well the
    encoder does on images unlike those it was trained on.
    """
    weights = affine_weights(model)
    if weights is not None:
        return linear_log_likelihood(weights, images)
    return inference_gap(model, images, K, steps, samples, generator, rows, progress).log_p
