"""Walks through latent space: along one latent at a time, and from one image to another.

m latents; every image shown is a mean f(z), [1, 28, 28].
"""

from collections.abc import Sequence

import torch
from matplotlib.figure import Figure
from torch import Tensor

from vae.collapse import Usage, usage
from vae.figures import new_figure, show_grid
from vae.networks import VAE

MOST_ROWS = 10


def traversals(
    model: VAE, start: Tensor, latents: Sequence[int] | None = None, span: float = 3.0, steps: int = 11
) -> Tensor:
    """f(z + d e_i) for d from −span to span, in standard deviations of the prior, [latents, steps, 1, 28, 28].

    `start` is a z [m], such as torch.zeros(m) for the prior's mean, or images [N, 1, 28, 28]: then z is the posterior
    mean of the first, and the latents are by default those that all of them together use, most used first. From a z
    alone the default is every latent.
    """
    z, latents, _ = origin(model, start, latents)
    offsets = torch.linspace(-span, span, steps, dtype=z.dtype, device=z.device)
    directions = torch.eye(model.latent_dim, dtype=z.dtype, device=z.device)[latents]  # [latents, m]
    return decoded(model, z + offsets[:, None] * directions[:, None])


def interpolations(model: VAE, a: Tensor, b: Tensor, steps: int = 11) -> Tensor:
    """f(z) on the straight line from the posterior mean of each image of a to that of b, [pairs, steps, 1, 28, 28].

    Images a and b are [pairs, 1, 28, 28]. Straight, not spherical: posterior means lie on no sphere (a collapsed
    latent's are zero, and norms differ from image to image), and through a linear decoder a straight line is exactly
    the mixture of its two ends.
    """
    with torch.no_grad():
        ends = [model.encode(images.to(model.device)).loc[:, None] for images in (a, b)]  # 2 × [pairs, 1, m]
    share = torch.linspace(0, 1, steps, dtype=ends[0].dtype, device=ends[0].device)[:, None]
    return decoded(model, (1 - share) * ends[0] + share * ends[1])


def traversal_figure(
    model: VAE, start: Tensor, latents: Sequence[int] | None = None, span: float = 3.0, steps: int = 11
) -> Figure:
    """`traversals` as a picture, one latent a row with its mean KL where images tell it; by default the first 10."""
    z, shown, used = origin(model, start, latents)
    shown = shown if latents is not None else shown[:MOST_ROWS]
    if not shown:
        raise ValueError("these images use no latent; name the latents to show")
    names = [f"z{i}" + (f"  {used.kl[i]:.2f} nats" if used else "") for i in shown]
    offsets = [f"{round(d, 6) + 0:+.1f}" for d in torch.linspace(-span, span, steps).tolist()]  # + 0: no "-0.0"
    title = f"{model.name}: {len(shown)} of {model.latent_dim} latents, one moved at a time"
    figure = new_figure(1.3 + 0.62 * steps, 1.1 + 0.62 * len(shown), title)
    below = "added to the latent, in standard deviations of the prior"
    show_grid(figure, traversals(model, z, shown, span, steps), names, offsets, below)
    return figure


def interpolation_figure(model: VAE, a: Tensor, b: Tensor, steps: int = 9) -> Figure:
    """`interpolations` as a picture, one pair a row, between the two images themselves."""
    between = interpolations(model, a, b, steps)
    images = torch.cat([a[:, None].to(between), between, b[:, None].to(between)], dim=1)
    shares = ["image a", *(f"{share:.2f}" for share in torch.linspace(0, 1, steps).tolist()), "image b"]
    title = f"{model.name}: from the posterior mean of a to that of b"
    figure = new_figure(1.3 + 0.62 * len(shares), 1.1 + 0.62 * len(a), title)
    show_grid(figure, images, [f"pair {i + 1}" for i in range(len(a))], shares, "share of b")
    return figure


@torch.no_grad()
def origin(model: VAE, start: Tensor, latents: Sequence[int] | None) -> tuple[Tensor, list[int], Usage | None]:
    """Where a traversal starts, z [m], the latents that it moves, and what images told of them."""
    start = start.to(model.device)
    if start.dim() == 1:
        return start, list(range(model.latent_dim) if latents is None else latents), None
    used = usage(model, [start])
    return model.encode(start[:1]).loc[0], used.in_use if latents is None else list(latents), used


@torch.no_grad()
def decoded(model: VAE, z: Tensor) -> Tensor:
    """f(z) for latents [rows, steps, m], [rows, steps, 1, 28, 28]."""
    return model.mean_image(z.flatten(0, 1)).unflatten(0, z.shape[:2])
