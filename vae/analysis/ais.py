"""Annealed importance sampling of log p(x) (Neal 2001), forwards and backwards.

Forwards it is a lower bound in expectation (for decoders Wu et al. 2017, arXiv:1611.04273).
Backwards from an exact sample of the posterior, which the latent is that an image was drawn from,
it is an upper bound; both together are bidirectional Monte Carlo (Grosse et al. 2015,
arXiv:1511.02543).
"""

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vae.analysis.bounds import Proposal, importance_bounds, log_ratio
from vae.models.vae import VAE

PILOT_CHAINS = 2  # of each image, to adapt the step sizes
ACCEPTANCE = 0.65  # what they adapt to (Beskos et al. 2013; Wu et al. 2017)


class AISEstimate(NamedTuple):
    """What annealed importance sampling found, image by image."""

    log_p: Tensor  # [B], log of the mean weight of the chains: log p(x) from below in expectation
    se: Tensor  # [B], its Monte Carlo standard error over the chains (delta method)
    ess: Tensor  # [B], effective number of the C chains
    acceptance: float  # mean over images, chains and steps


class BidirectionalBounds(NamedTuple):
    """A lower and an upper bound on log p(x) in expectation, image by image, of images drawn from
    the model."""

    lower: Tensor  # [B], nats
    upper: Tensor  # [B]
    acceptance: float  # of the chains forwards


class ChainState(NamedTuple):
    """Where the chains are: z = proposal.from_noise(u), its log p(x, z) − log q(z), and the
    gradient of that ratio."""

    u: Tensor  # [B, C, m]
    ratio: Tensor  # [B, C]
    gradient: Tensor  # [B, C, m]


class AnnealingPath:
    """The geometric path from a Gaussian q(z) to p(x, z): log N(u; 0, I) + beta · log_ratio(u).

    Raises nothing: a chain whose state is not finite rejects every move.
    """

    def __init__(
        self,
        model: VAE,
        images: Tensor,
        proposal: Proposal,
        distributions: int,
        leapfrog: int,
        generator: torch.Generator | None,
    ) -> None:
        self.model, self.images, self.proposal = model, images, proposal
        self.leapfrog, self.generator = leapfrog, generator
        # Each distribution as much narrower than the one before, from where q still rules.
        rise = 5 * torch.linspace(0, 1, distributions + 1, dtype=torch.float64)
        self.betas = (rise.expm1() / rise[-1].expm1()).tolist()  # 0 = betas[0] < … < betas[-1] = 1

    def at(self, u: Tensor) -> ChainState:
        """The state at u [B, C, m]."""
        with torch.enable_grad():
            u = u.detach().requires_grad_()
            ratio = log_ratio(self.model, self.images, u, self.proposal)
            (gradient,) = torch.autograd.grad(ratio.sum(), u)
        return ChainState(u.detach(), ratio.detach(), gradient)

    def transition(self, state: ChainState, beta: float, step: Tensor) -> tuple[ChainState, Tensor]:
        """One Hamiltonian transition that leaves the distribution at `beta` invariant, and is
        reversible.

        `step` [B] is the leapfrog's step size. Also gives the mean probability of acceptance of
        each image's chains, [B] (Neal 2011, arXiv:1206.1901).
        """
        shape, device = state.ratio.shape, state.u.device
        # 1. A momentum, and a step size of its own for each chain: else a latent may swing back to
        # its start
        jitter = 0.7 + 0.6 * torch.rand(shape, generator=self.generator, device=device)
        h = (step[:, None] * jitter)[..., None]  # [B, C, 1]
        momentum = torch.randn(state.u.shape, generator=self.generator, device=device)
        energy = 0.5 * (state.u.square() + momentum.square()).sum(-1) - beta * state.ratio
        # 2. Leapfrog steps
        new, p = state, momentum
        for _ in range(self.leapfrog):
            p = p + 0.5 * h * (beta * new.gradient - new.u)
            new = self.at(new.u + h * p)
            p = p + 0.5 * h * (beta * new.gradient - new.u)
        # 3. Metropolis: accept or stay
        new_energy = 0.5 * (new.u.square() + p.square()).sum(-1) - beta * new.ratio
        probability = (energy - new_energy).clamp(max=0).exp().nan_to_num(0.0)
        accept = torch.rand(shape, generator=self.generator, device=device) < probability
        u = torch.where(accept[..., None], new.u, state.u)
        gradient = torch.where(accept[..., None], new.gradient, state.gradient)
        ratio = torch.where(accept, new.ratio, state.ratio)
        return ChainState(u, ratio, gradient), probability.mean(1)

    def adapt(self) -> Tensor:
        """Step sizes [distributions, B] at which a few chains accept 0.65 of their moves.

        The chains that count keep them fixed: a step that depended on a chain's own past would bias
        its weight.
        """
        state = self.at(self.proposal.sample_noise(PILOT_CHAINS, self.generator))
        first = state.u.shape[-1] ** -0.25
        step = torch.full((len(self.images),), first, device=state.u.device)
        steps = []
        for beta in self.betas[1:]:
            steps.append(step)
            state, rate = self.transition(state, beta, step)
            step = step * (0.2 * (rate - ACCEPTANCE)).exp()
        return torch.stack(steps)

    def forwards(self, u: Tensor, steps: Tensor, moves: Iterable[int]) -> tuple[Tensor, float]:
        """Log weights Σ (beta_t − beta_{t−1}) log_ratio(u_{t−1}) of chains from u [B, C, m] ~ N(0,
        I), [B, C].

        Also the mean acceptance. `moves` counts the distributions from 1.
        """
        state, accepted = self.at(u), 0.0
        log_weight = torch.zeros(state.ratio.shape, dtype=torch.float64)
        for t in moves:
            log_weight += (self.betas[t] - self.betas[t - 1]) * state.ratio.cpu().double()
            state, rate = self.transition(state, self.betas[t], steps[t - 1])
            accepted += rate.mean().item()
        return log_weight, accepted / len(steps)

    def backwards(self, u: Tensor, steps: Tensor, moves: Iterable[int]) -> Tensor:
        """The same log weights of chains that start in u [B, C, m] ~ p(z|x) and run from the last
        distribution to the first, [B, C] (Grosse et al. 2015, section 3)."""
        state = self.at(u)
        log_weight = torch.zeros(state.ratio.shape, dtype=torch.float64)
        for t in moves:
            state, _ = self.transition(state, self.betas[t], steps[t - 1])
            log_weight += (self.betas[t] - self.betas[t - 1]) * state.ratio.cpu().double()
        return log_weight


def initial_proposal(model: VAE, images: Tensor, start: str) -> Proposal:
    """q(z|x) of the encoder for start="posterior", N(0, I) for start="prior"."""
    with torch.no_grad():
        q = Proposal.from_normal(model.encode(images))
    if start == "posterior":
        return q
    return Proposal(torch.zeros_like(q.loc), torch.ones_like(q.scale))


def ais(
    model: VAE,
    images: Tensor,
    chains: int = 16,
    distributions: int = 500,
    leapfrog: int = 10,
    start: str = "posterior",
    generator: torch.Generator | None = None,
    progress: Callable[[Any], Any] = iter,
    proposal: Proposal | None = None,
) -> AISEstimate:
    """Annealed importance sampling of log p(x) for images [B, C, H, W]; B·chains latents move at
    once.

    From a Gaussian (q(z|x), the prior with start="prior", or `proposal`) over `distributions`
    geometric steps to p(x, z), each followed by one Hamiltonian transition of `leapfrog` steps.
    """
    proposal = initial_proposal(model, images, start) if proposal is None else proposal
    path = AnnealingPath(model, images, proposal, distributions, leapfrog, generator)
    steps = path.adapt()
    moves = progress(range(1, distributions + 1))
    log_w, acceptance = path.forwards(proposal.sample_noise(chains, generator), steps, moves)
    bound = importance_bounds(log_w, [chains])[chains]
    weights = log_w.softmax(1)
    freedom = chains - 1 if chains > 1 else math.nan  # one chain says nothing about its error
    se = (weights - 1 / chains).square().sum(1).mul(chains / freedom).sqrt()
    return AISEstimate(bound.bound, se, bound.ess, acceptance)


@torch.no_grad()
def draw_images(model: VAE, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Images [n, C, H, W] from the model itself, x ~ p(x|z), and their latents z ~ N(0, I), [n,
    m]."""
    z = torch.randn(n, model.latent_dim, generator=generator, device=model.device)
    parts = [model.likelihood.sample(model.output(part), generator) for part in z.split(1000)]
    return torch.cat(parts), z


def bidirectional(
    model: VAE,
    images: Tensor,
    z: Tensor,
    chains: int = 16,
    distributions: int = 500,
    leapfrog: int = 10,
    start: str = "posterior",
    generator: torch.Generator | None = None,
    progress: Callable[[Any], Any] = iter,
) -> BidirectionalBounds:
    """Bounds on log p(x) from both sides for images [B, C, H, W] that were drawn from p(x|z), z [B,
    m] ~ N(0, I).

    lower = log (1/C) Σ_c w_c forwards; upper = −log (1/C) Σ_c 1/w_c backwards, all C chains from
    the true z, which is an exact sample of the posterior (Grosse et al. 2015, section 3.1; their
    caveat holds: of other images, as of a test set, there is no such sample).
    """
    law = initial_proposal(model, images, start)
    path = AnnealingPath(model, images, law, distributions, leapfrog, generator)
    steps = path.adapt()
    u = law.to_noise(z[:, None].expand(-1, chains, -1))
    moves = progress([*range(1, distributions + 1), *range(distributions, 0, -1)])
    moves = iter(moves)
    up = (next(moves) for _ in range(distributions))
    forwards, acceptance = path.forwards(law.sample_noise(chains, generator), steps, up)
    backwards = path.backwards(u, steps, moves)
    log_C = math.log(chains)
    lower, upper = forwards.logsumexp(1) - log_C, log_C - (-backwards).logsumexp(1)
    return BidirectionalBounds(lower, upper, acceptance)
