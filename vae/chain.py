"""The limiting distribution: the chain decode → sample → encode → sample.

x_t ~ p(x|z_t), z_{t+1} ~ q(z|x_t). The frames are the decoder's means f(z_t). For a linear pair this is an
AR(1) process with the matrix V W; at the pPCA optimum its limit is the prior, reached after about λ_1/sigma²
steps (82 on MNIST at sigma 0.25), so 100 steps are not the limit where sigma is small.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from vae.elbo import draw
from vae.networks import VAE, linear_pair


@torch.no_grad()
def run_chain(
    model: VAE, z: Tensor, steps: int, generator: torch.Generator | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (z_t [n, m], f(z_t) [n, 1, 28, 28]) for t = 0 … steps, from the latents z."""
    for t in range(steps + 1):
        frame = model.mean_image(z)
        yield z, frame
        if t < steps:
            noise = torch.randn(frame.shape, generator=generator, dtype=frame.dtype, device=frame.device)
            z = draw(model.encode(frame + model.sigma * noise), generator)


def drift(z: Tensor) -> float:
    """KL(N(mean, diag variance of z) ‖ N(0, I)) in nats, for latents [n, m]; inf where z is not finite.

    Draws from the prior itself score about m/n, the floor of what n chains can show.
    """
    z = z.double() if z.device.type != "mps" else z.cpu().double()
    if not torch.isfinite(z).all():
        return float("inf")
    mean, variance = z.mean(0), z.var(0)
    return (0.5 * (mean.square() + variance - 1 - variance.log())).sum().item()


def local_gain(model: VAE, z: Tensor) -> Tensor:
    """Spectral radius of the Jacobian of the mean map z → mean(f(z)) at each state of z [n, m], shape [n].

    Below 1 the mean map pulls together around that state, above 1 it drives apart. NaN at states that are not
    finite.
    """

    def mean_map(state: Tensor) -> Tensor:
        return model.encode(model.mean_image(state[None])).loc[0]

    jacobian = torch.func.vmap(torch.func.jacrev(mean_map))(z)  # [n, m, m]
    jacobian = jacobian.detach().cpu()
    finite = torch.isfinite(jacobian).flatten(1).all(1)
    gain = torch.full((len(z),), float("nan"))
    if finite.any():
        gain[finite] = torch.linalg.eigvals(jacobian[finite].double()).abs().amax(1).float()
    return gain


def spectral_radius(model: VAE, z: Tensor) -> float:
    """ρ(V W) of a linear pair, exact; for any other pair the median local gain over the states z [n, m]."""
    pair = linear_pair(model)
    if pair is not None:
        return torch.linalg.eigvals(pair.V @ pair.W).abs().max().item()
    return local_gain(model, z).nanmedian().item()


class Course(NamedTuple):
    """What n chains showed over the steps t = 0 … T."""

    frames: list[Tensor]  # T + 1 times f(z_t), [n, 1, 28, 28] on the CPU
    drifts: list[float]  # T + 1, nats; inf where a latent is not finite
    finite_steps: int  # steps from the start at which every latent was finite, T + 1 where none ever left
    spectral_radius: float

    @property
    def figures(self) -> dict[str, float]:
        return {
            "chain/finite": float(self.finite_steps == len(self.drifts)),
            "chain/drift": self.drifts[-1],
            "chain/spectral_radius": self.spectral_radius,
        }


def follow(model: VAE, start: Tensor, steps: int, generator: torch.Generator | None = None) -> Course:
    """Run the chain from the latents `start` [n, m]; gains are taken at 16 states of the last finite step."""
    frames, drifts, last, finite_steps = [], [], start, 0
    for t, (z, frame) in enumerate(run_chain(model, start, steps, generator)):
        frames.append(frame.cpu())
        drifts.append(drift(z))
        if finite_steps == t and torch.isfinite(z).all():
            last, finite_steps = z, t + 1
    return Course(frames, drifts, finite_steps, spectral_radius(model, last[:16]))
