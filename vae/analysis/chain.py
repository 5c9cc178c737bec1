"""The limiting distribution: the chain decode → sample → encode → sample.

x_t ~ p(x|z_t), z_{t+1} ~ q(z|x_t). The frames are the decoder's means f(z_t). For a linear encoder
and decoder this is an AR(1) process with the matrix V W; at the pPCA optimum its limit is the
prior, reached after about λ_1/sigma² steps (82 on MNIST at sigma 0.25), so 100 steps are not the
limit where sigma is small. n chains, m latents, images [C, H, W], nats.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Normal

from vae.analysis.gaussian_kl import KLEstimate, kl_from_sample
from vae.analysis.limit import Limit, Mixing, chain_limit, chain_mixing
from vae.models.elbo import kl_to_prior, rsample
from vae.models.vae import VAE
from vae.theory.linear import affine_weights, spectral_radius

CHAINS = 64
STREAMS = ("start", "pixels", "encoder")  # what is random in a chain


def prior_latents(n: int, latent_dim: int) -> Tensor:
    """The same n draws of N(0, I) for every run and device, [n, latent_dim]."""
    return torch.randn(n, latent_dim, generator=torch.Generator().manual_seed(0))


def chain_generator(
    stream: str, seed: int = 0, device: torch.device | str = "cpu"
) -> torch.Generator:
    """A generator of its own for each of `STREAMS`, so that none repeats the numbers of another."""
    return torch.Generator(device).manual_seed(len(STREAMS) * seed + STREAMS.index(stream))


@torch.no_grad()
def run_chain(
    model: VAE,
    z: Tensor,
    steps: int,
    pixels: torch.Generator | None = None,
    encoder: torch.Generator | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (z_t [n, m], f(z_t) [n, C, H, W]) for t = 0 … steps, from the latents z [n, m].

    `pixels` draws x_t from p(x|z_t) and `encoder` z_{t+1} from q(z|x_t), or one generator both in
    turn. A chain that has left the finite numbers is NaN from there on, whatever its likelihood
    makes of such numbers.
    """
    encoder = pixels if encoder is None else encoder
    for t in range(steps + 1):
        output = model.output(z)
        diverged = ~output.isfinite().flatten(1).all(1)  # [n]
        output[diverged] = 0
        frame = model.likelihood.mean(output).clone()
        frame[diverged] = math.nan
        yield z, frame
        if t < steps:
            z = rsample(model.encode(model.likelihood.sample(output, pixels)), encoder)
            z[diverged] = math.nan


def drift(z: Tensor) -> float:
    """KL(N(mean, diag variance of z) ‖ N(0, I)) in nats, for latents [n, m]; inf where z is not
    finite.

    Describes single latents over the steps. It sees no correlation between them and exceeds the
    drift of the true moments by about m/n, so it says nothing about the limit: `chain_limit` does.
    """
    z = z.double() if z.device.type != "mps" else z.cpu().double()
    if not torch.isfinite(z).all():
        return float("inf")
    return kl_to_prior(Normal(z.mean(0), z.std(0), validate_args=False)).sum().item()


def local_gain(model: VAE, z: Tensor) -> Tensor:
    """Spectral radius of the Jacobian of the mean map z → mean(f(z)) at each state of z [n, m],
    shape [n].

    Below 1 the mean map contracts around that state, above 1 it expands. NaN at states that are not
    finite.
    """

    def mean_map(state: Tensor) -> Tensor:
        return model.encode(model.mean_image(state[None])).loc[0]

    finite_state = z.isfinite().all(1)
    jacobian = torch.func.vmap(torch.func.jacrev(mean_map))(
        z.where(finite_state[:, None], 0)
    )  # [n, m, m]
    jacobian = jacobian.detach().cpu()
    finite = finite_state.cpu() & jacobian.isfinite().flatten(1).all(1)
    gain = torch.full((len(z),), float("nan"))
    if finite.any():
        gain[finite] = torch.linalg.eigvals(jacobian[finite].double()).abs().amax(1).float()
    return gain


class ChainTrace(NamedTuple):
    """What n chains showed over the steps t = 0 … T."""

    frames: list[Tensor]  # T + 1 times f(z_t), [n, C, H, W] on the CPU
    drifts: list[float]  # T + 1, nats; inf where a latent is not finite
    # steps from the start at which every latent was finite, T + 1 where none ever diverged
    finite_steps: int
    spectral_radius: float | None  # exact, of a linear encoder and decoder
    local_gain: float | None  # median over visited states, of any others
    limit: Limit  # exact, or from the last states
    mixing: Mixing  # exact, measured over the T steps, or not resolved by them

    @property
    def diverged(self) -> bool:
        """Whether a latent of any chain was not finite at any step."""
        return self.finite_steps < len(self.drifts)

    @property
    def metrics(self) -> dict[str, float]:
        """`chain/…` as in metrics.json; the limit where it is known and finite."""
        found = {
            "chain/finite": float(not self.diverged),
            "chain/drift": self.drifts[-1],
        }
        if math.isfinite(self.limit.kl):
            found |= {"chain/limit_kl": self.limit.kl, "chain/limit_kl_se": self.limit.se}
        if self.spectral_radius is not None:
            return found | {"chain/spectral_radius": self.spectral_radius}
        assert self.local_gain is not None
        return found | {"chain/local_gain": self.local_gain}


def simulate(model: VAE, start: Tensor, steps: int, seed: int = 0) -> ChainTrace:
    """Run the chain from the latents `start` [n, m]; gains are taken at 16 states of the last
    finite step."""
    frames, drifts, states, last, finite_steps = [], [], [], start, 0
    noise = [chain_generator(stream, seed, start.device) for stream in ("pixels", "encoder")]
    for t, (z, frame) in enumerate(run_chain(model, start, steps, *noise)):
        frames.append(frame.cpu())
        drifts.append(drift(z))
        states.append(z.cpu())
        if finite_steps == t and torch.isfinite(z).all():
            last, finite_steps = z, t + 1
    weights = affine_weights(model)
    return ChainTrace(
        frames,
        drifts,
        finite_steps,
        spectral_radius(weights) if weights is not None else None,
        local_gain(model, last[:16]).nanmedian().item() if weights is None else None,
        chain_limit(model, states[-1], steps),
        chain_mixing(model, torch.stack(states)),
    )


def one_step_test(model: VAE, n: int, seed: int = 0) -> KLEstimate:
    """Is the prior stationary? z_1 against N(0, I), after one step of n chains from it."""
    start, pixels, encoder = (chain_generator(stream, seed, model.device) for stream in STREAMS)
    z = torch.randn(n, model.latent_dim, generator=start, device=model.device)
    parts = [list(run_chain(model, part, 1, pixels, encoder))[1][0] for part in z.split(1000)]
    return kl_from_sample(torch.cat(parts))
