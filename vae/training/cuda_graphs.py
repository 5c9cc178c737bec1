"""The loss of a learning step and its gradients, recorded as two CUDA graphs.

https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
"""

import contextlib
import gc
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call

from vae.runs.devices import restore_rng, rng_state
from vae.runs.errors import RunError, first_line

if TYPE_CHECKING:
    from vae.training.module import LitVAE


class StackedLoss(nn.Module):
    """Objective, log p(x|z) and KL as one tensor [3, B], by weights that can be given by name."""

    def __init__(self, pl_module: "LitVAE") -> None:
        super().__init__()
        self.pl_module = pl_module

    def forward(self, x: Tensor, eps: Tensor, step: Any) -> Tensor:
        return torch.stack(self.pl_module.loss_terms(x, eps, step))


class LossGraphs:
    """Loss terms of batches of one kind, and their gradients, as two CUDA graphs.

    What they compute with stays where it was recorded: inputs are copied there, and the next replay
    overwrites outputs and gradients. Raises RunError where the step cannot be recorded.
    """

    def __init__(self, pl_module: "LitVAE", x: Tensor, eps: Tensor, step: int) -> None:
        loss = StackedLoss(pl_module)
        named = {name: w for name, w in loss.named_parameters() if w.requires_grad}
        self.weights = [*named.values()]
        # whatever becomes of the module, what the graphs compute with stays in memory
        self.kept = [tensor.detach() for tensor in (*loss.parameters(), *loss.buffers())]
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
            with torch.autocast("cuda", enabled=False):  # as a backward pass is elsewhere
                # the graph is retained for a second backward pass, which may come
                found = torch.autograd.grad(*inputs, allow_unused=True, retain_graph=True)
            return tuple(map(laid_out_like, found, self.weights))

        # 1. A trial, and what it would change.
        with unchanged(pl_module, x.device):
            forward()
            self.grad_terms = torch.zeros_like(self.loss)
            backward()

        # 2. Both graphs.
        try:
            recorded = record(x.device, forward, backward)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise RunError(
                f"the step cannot be recorded as a CUDA graph ({first_line(error)}); "
                "learning.cuda_graph=false computes it without"
            ) from error
        (self.replay_forward, (self.output,)), (self.replay_backward, self.gradients) = recorded

        # 3. What the gradients of the mean objective are multiplied with.
        self.mean = torch.zeros_like(self.grad_terms)
        self.mean[0] = 1 / len(x)

    def have_hooks(self) -> bool:
        """Whether a weight calls something as it gets its gradient from autograd."""
        return any(w._backward_hooks or w._post_accumulate_grad_hooks for w in self.weights)

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


def laid_out_like(gradient: Tensor | None, weight: Tensor) -> Tensor | None:
    """The gradient with the strides of its weight, which optimizers want."""
    if gradient is None or gradient.stride() == weight.stride():
        return gradient
    return torch.empty_like(weight).copy_(gradient)


Computation = Callable[[], tuple[Any, ...]]


def record(
    device: torch.device, *computations: Computation
) -> list[tuple[Callable[[], None], Any]]:
    """What repeats each of these computations on the device, and its outputs there.

    Where that fails, stream and generators are put back as they were before.
    """
    recorded = []
    collects = gc.isenabled()
    gc.collect()
    gc.disable()  # a graph that dies while another is recorded would break it
    try:
        with torch.cuda.device(device), torch.cuda.stream(torch.cuda.Stream(device)):
            pool = torch.cuda.graph_pool_handle()
            options: Any = {"pool": pool, "stream": torch.cuda.current_stream()}
            for compute in computations:
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph, capture_error_mode="thread_local", **options):
                    outputs = compute()
                recorded.append((graph.replay, outputs))
    except BaseException:
        # the generator would wait for the recording's end for ever
        with contextlib.suppress(RuntimeError, IndexError):
            generator = torch.cuda.default_generators[device.index or 0]
            generator.graphsafe_set_state(generator.clone_state())
        raise
    finally:
        if collects:
            gc.enable()
    return recorded


@contextlib.contextmanager
def unchanged(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Trial runs of a model: they leave generators and buffers as they were, and RuntimeError is
    raised where the host asks a value of the device, which a graph cannot do."""
    generators = rng_state(device)
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
        restore_rng(generators, device)
