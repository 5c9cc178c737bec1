"""A learning step's loss and gradients as CUDA graphs: recorded once, replayed at every step.

A step of a small network is a hundred kernels of some microseconds each, and launching them one by
one takes longer than computing them. A CUDA graph launches them all at once. The kernels are the
same, so the numbers are too. https://pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
"""

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call
from torch.nn.modules import module as global_hooks

from vae.runs.errors import RunError, first_line
from vae.training.one_graph import CompiledLoss, Terms

if TYPE_CHECKING:
    from vae.training.module import LitVAE

log = logging.getLogger(__name__)

EAGER_CALLS = 2  # before a kind of batch is recorded: the last one of an epoch comes once an epoch
MOST_GRAPHS = 8  # each keeps the tensors in between in memory
OWN = ("torch.", "vae.models.")  # whose modules compute with nothing but tensors and constants
GLOBAL_HOOKS = (
    "_global_forward_hooks",
    "_global_forward_pre_hooks",
    "_global_backward_hooks",
    "_global_backward_pre_hooks",
)


def choose_loss(
    learning: "LitVAE", compile: bool, cuda_graph: bool | None
) -> Callable[[Tensor, Tensor, int], Terms]:
    """What computes a step's loss terms. Raises ValueError for two ways at once."""
    if compile and cuda_graph:
        raise ValueError("learning.compile and learning.cuda_graph: take one of them")
    if compile:
        return CompiledLoss(learning)
    return learning.loss_terms if cuda_graph is False else GraphedLoss(learning, cuda_graph)


class GraphedLoss:
    """`learning.loss_terms` by CUDA graphs on a CUDA device, as it is elsewhere.

    A graph repeats kernels and no Python, so a batch is computed as it is wherever a hook would
    have to be called, and what Python decided is recorded anew when it changes: shapes, precision,
    which weights are trained, training mode, numbers in the objective. `wanted` None leaves classes
    of one's own alone, which may decide more; True records them too.
    """

    def __init__(self, learning: "LitVAE", wanted: bool | None = None) -> None:
        self.learning, self.wanted = learning, wanted
        self.calls: dict[Any, int] = {}
        self.graphs: dict[Any, LossGraphs] = {}
        self.device: torch.device | None = None  # which the following belong to
        self.refused = True
        self.modules: list[nn.Module] = []
        self.parameters: list[nn.Parameter] = []

    def __call__(self, x: Tensor, eps: Tensor, step: int) -> Terms:
        graphs = self.find(x, eps, step) if torch.is_grad_enabled() else None
        if graphs is None:
            return self.learning.loss_terms(x, eps, step)
        terms: Tensor = Replay.apply(graphs, (x, eps, step), *graphs.weights)
        return unstacked(terms)

    def with_gradients(self, x: Tensor, eps: Tensor, step: int) -> Terms:
        """The terms, which need no gradients then: those of the mean objective are set."""
        graphs = self.find(x, eps, step)
        if graphs is None:
            return self.learning.loss_terms(x, eps, step)
        terms = graphs.terms(x, eps, step)
        for weight, gradient in zip(graphs.weights, graphs.mean_gradients(), strict=True):
            weight.grad = gradient
        return unstacked(terms)

    def find(self, x: Tensor, eps: Tensor, step: int) -> "LossGraphs | None":
        """The graphs of batches like this one; None where there are none yet, or never."""
        if x.device != self.device:
            self.begin(x.device)
        if self.refused or self.has_hooks():
            return None
        kind = self.kind(x, eps)
        if kind not in self.graphs:
            self.calls[kind] = self.calls.get(kind, 0) + 1
            if self.calls[kind] <= EAGER_CALLS or len(self.graphs) >= MOST_GRAPHS:
                return None
            try:
                self.graphs[kind] = LossGraphs(self.learning, x, eps, step)
            except RuntimeError as error:  # among them what asks a value of the device
                self.refuse(first_line(error))
                return None
        return self.graphs[kind]

    def begin(self, device: torch.device) -> None:
        """Look at what is trained, and whether it can be recorded on this device."""
        self.device, self.refused = device, False
        self.modules = [*self.learning.modules()]
        self.parameters = [*self.learning.parameters()]
        if device.type != "cuda":
            self.refuse(f"{device.type} has none")
        elif torch.distributed.is_initialized():
            self.refuse("several processes exchange their gradients")
        elif not self.wanted and not self.knows_classes():
            self.refused = True

    def refuse(self, reason: str) -> None:
        self.refused = True
        if self.wanted:
            log.warning("learning.cuda_graph: no CUDA graph of the step: %s", reason)

    def knows_classes(self) -> bool:
        """Whether all that computes the loss is torch's or this project's."""
        from vae.training.module import LitVAE

        parts = (*self.learning.model.modules(), self.learning.objective)
        names = [type(part).__module__ + "." for part in parts]
        own = type(self.learning).loss_terms is LitVAE.loss_terms
        return own and all(name.startswith(OWN) for name in names)

    def has_hooks(self) -> bool:
        """Whether a module, or all of them, calls something that a graph would not."""
        found = any(
            m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks
            for m in self.modules
        )
        return found or any(getattr(global_hooks, name) for name in GLOBAL_HOOKS)

    def kind(self, x: Tensor, eps: Tensor) -> tuple[Any, ...]:
        """What is decided outside tensors' values, so that a graph repeats it."""
        autocast = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else None
        parts = vars(self.learning.objective), vars(self.learning.model.likelihood)
        settings = [value for part in parts for value in part.values()]
        return (
            x.shape,
            x.dtype,
            eps.shape,
            autocast,
            *(value for value in settings if isinstance(value, int | float | str)),
            *(weight.data_ptr() if weight.requires_grad else 0 for weight in self.parameters),
            *(module.training for module in self.modules),
        )

    def __getstate__(self) -> dict[str, Any]:
        return vars(GraphedLoss(self.learning, self.wanted))


class StackedLoss(nn.Module):
    """Objective, log p(x|z) and KL as one tensor [3, B], by weights that can be given by name."""

    def __init__(self, learning: "LitVAE") -> None:
        super().__init__()
        self.learning = learning

    def forward(self, x: Tensor, eps: Tensor, step: Any) -> Tensor:
        return torch.stack(self.learning.loss_terms(x, eps, step))


class LossGraphs:
    """Loss terms of batches of one kind, and their gradients, as two CUDA graphs.

    What they compute with stays where it was recorded: inputs are copied there, and the next replay
    overwrites outputs and gradients. Raises RunError where the step cannot be recorded.
    """

    def __init__(self, learning: "LitVAE", x: Tensor, eps: Tensor, step: int) -> None:
        loss = StackedLoss(learning)
        named = {name: w for name, w in loss.named_parameters() if w.requires_grad}
        self.weights = [*named.values()]
        self.x, self.eps = x.detach().clone(), eps.detach().clone()
        self.step = torch.full((), step, dtype=torch.float64, device=x.device)
        self.replays = 0

        def forward() -> tuple[Tensor]:
            # The weights under other names: what autograd knows of their own belongs to the stream
            # of earlier steps, which a graph may not touch.
            aliases = {name: weight.detach().requires_grad_() for name, weight in named.items()}
            autocast = torch.is_autocast_enabled("cuda")
            # a cast that is cached would be no part of the graph
            with torch.autocast("cuda", enabled=autocast, cache_enabled=False):
                self.loss = functional_call(loss, aliases, (self.x, self.eps, self.step))
            self.aliases = [*aliases.values()]
            return (self.loss,)

        def backward() -> tuple[Tensor | None, ...]:
            inputs = self.loss, self.aliases, self.grad_terms
            return torch.autograd.grad(*inputs, allow_unused=True)

        with unchanged(learning, x.device):
            forward()
            self.grad_terms = torch.zeros_like(self.loss)
            backward()
        pool = torch.cuda.graph_pool_handle()
        try:
            self.replay_forward, (self.output,) = record(forward, pool)
            self.replay_backward, self.gradients = record(backward, pool)
        except RuntimeError as error:  # after which the generators do not work any more
            raise RunError(
                f"the step cannot be recorded as a CUDA graph ({first_line(error)}); "
                "learning.cuda_graph=false computes it without"
            ) from error
        self.mean = torch.zeros_like(self.grad_terms)
        self.mean[0] = 1 / len(x)

    def terms(self, x: Tensor, eps: Tensor, step: int) -> Tensor:
        """Objective, log p(x|z) and KL, [3, B]."""
        self.x.copy_(x)
        self.eps.copy_(eps)
        self.step.fill_(step)
        self.replay_forward()
        self.replays += 1
        return self.output.detach().clone()

    def differentiate(self, grad_terms: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients by the weights of what `terms` computed last, given those by the terms."""
        self.grad_terms.copy_(grad_terms)
        self.replay_backward()
        return self.gradients

    def mean_gradients(self) -> tuple[Tensor | None, ...]:
        """Gradients of the mean objective."""
        return self.differentiate(self.mean)


class Replay(torch.autograd.Function):
    """LossGraphs as a function of the weights, for autograd."""

    @staticmethod
    def forward(ctx: Any, graphs: LossGraphs, batch: tuple[Any, ...], *weights: Tensor) -> Tensor:
        ctx.graphs = graphs
        terms = graphs.terms(*batch)
        ctx.replays = graphs.replays
        return terms

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_terms: Tensor) -> tuple[Any, ...]:
        if ctx.replays != ctx.graphs.replays:
            raise RuntimeError(
                "the loss of another batch was computed before this one's backward pass, and took "
                "its place in the CUDA graph; learning.cuda_graph=false computes both"
            )
        found = ctx.graphs.differentiate(grad_terms)
        there = [gradient for gradient in found if gradient is not None]
        copies = iter(torch._foreach_mul(there, 1.0))  # the next replay overwrites the gradients
        return None, None, *(None if gradient is None else next(copies) for gradient in found)


def unstacked(terms: Tensor) -> Terms:
    objective, log_likelihood, kl = terms.unbind(0)
    return objective, log_likelihood, kl


def record(compute: Callable[[], tuple[Any, ...]], pool: Any) -> tuple[Callable[[], None], Any]:
    """What repeats this computation on the device, and its outputs there."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        outputs = compute()
    return graph.replay, outputs


@contextlib.contextmanager
def unchanged(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Trial runs of a model: they leave generators and buffers as they were, and RuntimeError is
    raised where the host asks a value of the device, which a graph cannot do."""
    generators = torch.get_rng_state(), torch.cuda.get_rng_state(device)
    buffers = [buffer.clone() for buffer in model.buffers()]
    mode = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(action="ignore"):  # that this mode does not find everything
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(mode)
        for buffer, before in zip(model.buffers(), buffers, strict=True):
            buffer.copy_(before)
        torch.set_rng_state(generators[0])
        torch.cuda.set_rng_state(generators[1], device)
