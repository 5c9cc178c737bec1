"""A learning step's loss and gradients as CUDA graphs: recorded once, replayed at every step.

A step of a small network is a hundred kernels of some microseconds each, and launching them one by
one takes longer than computing them. A CUDA graph launches them all at once. The kernels are the
same, so the numbers are too. https://pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
"""

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.modules import module as global_hooks
from torchmetrics import Metric

from vae.runs.errors import first_line
from vae.training.loss_graphs import LossGraphs, Replay
from vae.training.one_graph import CompiledLoss, Terms

if TYPE_CHECKING:
    from vae.training.module import LitVAE

log = logging.getLogger(__name__)

EAGER_CALLS = 3  # before a kind of batch is recorded: the last one of an epoch comes once an epoch
MOST_GRAPHS = 8  # at a time: each keeps the tensors in between in memory
MOST_KINDS = 1000  # that are counted
MOST_RECORDINGS = 64  # of a run: recording takes longer than many steps
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
    where the weights are and which are trained, training mode, numbers in the objective and in the
    modules. `wanted` None leaves classes of one's own alone, which may decide more; True records
    them too.
    """

    def __init__(self, learning: "LitVAE", wanted: bool | None = None) -> None:
        self.learning, self.wanted = learning, wanted
        self.device: torch.device | None = None  # which the following belongs to
        self.refused = True
        self.calls: dict[Any, int] = {}  # of each kind of batch
        self.graphs: dict[Any, LossGraphs] = {}  # by kind, the latest last
        self.recordings = 0

    def __call__(self, x: Tensor, eps: Tensor, step: int) -> Terms:
        graphs = self.find(x, eps, step) if torch.is_grad_enabled() else None
        if graphs is None:
            return self.learning.loss_terms(x, eps, step)
        terms: Tensor = Replay.apply(graphs, (x, eps, step), *graphs.weights)
        return unstacked(terms)

    def with_gradients(self, x: Tensor, eps: Tensor, step: int) -> Terms:
        """The terms, which need no gradients then: those of the mean objective are set."""
        graphs = self.find(x, eps, step)
        if graphs is None or graphs.have_hooks():
            return self.learning.loss_terms(x, eps, step)
        terms = graphs.terms(x, eps, step)
        for weight, gradient in zip(graphs.weights, graphs.mean_gradients(), strict=True):
            weight.grad = gradient
        return unstacked(terms)

    def find(self, x: Tensor, eps: Tensor, step: int) -> "LossGraphs | None":
        """The graphs of batches like this one; None where there are none yet, or never."""
        if x.device != self.device:
            self.begin(x.device)
        if self.refused or x.requires_grad or eps.requires_grad:
            return None
        kind = self.kind(x, eps)
        if kind is None:
            return None
        if kind in self.graphs:
            self.graphs[kind] = graphs = self.graphs.pop(kind)
            return graphs
        if len(self.calls) > MOST_KINDS:
            self.calls.clear()
        self.calls[kind] = self.calls.get(kind, 0) + 1
        if self.calls[kind] <= EAGER_CALLS or self.recordings >= MOST_RECORDINGS:
            return None
        if len(self.graphs) >= MOST_GRAPHS:
            self.graphs.pop(next(iter(self.graphs)))
        self.calls.clear()
        self.recordings += 1
        try:
            self.graphs[kind] = LossGraphs(self.learning, x, eps, step)
        except (RuntimeError, TypeError, ValueError) as error:  # what cannot do with tensors alone
            if isinstance(error, torch.OutOfMemoryError):
                raise
            self.refuse(first_line(error))
            return None
        return self.graphs[kind]

    def begin(self, device: torch.device) -> None:
        """Decide whether the step can be recorded on this device."""
        self.device, self.refused = device, False
        self.graphs.clear()
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

    def kind(self, x: Tensor, eps: Tensor) -> tuple[Any, ...] | None:
        """What is decided outside tensors' values, so that a graph repeats it; None where a module,
        or all of them, calls something that a graph would not."""
        if any(getattr(global_hooks, name) for name in GLOBAL_HOOKS):
            return None
        autocast = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else None
        found: list[Any] = [x.shape, x.dtype, eps.shape, autocast]
        found += constants(self.learning.objective)
        for m in self.learning.modules():
            if m._forward_hooks or m._forward_pre_hooks or m._backward_hooks:
                return None
            if m._backward_pre_hooks:
                return None
            if isinstance(m, Metric):  # counts its updates
                continue
            if m is not self.learning:
                found += constants(m)
            for tensor in (*m._parameters.values(), *m._buffers.values()):
                if tensor is not None:
                    found += (tensor.data_ptr(), tensor.requires_grad)
        return tuple(found)

    def __getstate__(self) -> dict[str, Any]:
        return vars(GraphedLoss(self.learning, self.wanted))


def constants(part: Any) -> list[Any]:
    """The numbers and words that an objective or a module keeps, training mode among them."""
    values = getattr(part, "__dict__", {}).values()
    return [value for value in values if isinstance(value, int | float | str)]


def unstacked(terms: Tensor) -> Terms:
    objective, log_likelihood, kl = terms.unbind(0)
    return objective, log_likelihood, kl
