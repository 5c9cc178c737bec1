"""A learning step's loss and gradients as CUDA graphs: recorded once, replayed at every step.

A step of a small network is a hundred kernels of some microseconds each, and launching them one by
one takes longer than computing them. A CUDA graph launches them all at once. The kernels are the
same, so the numbers are too. https://pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
"""

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as global_hooks
from torchmetrics import Metric

from vae.runs.errors import first_line
from vae.training.compiled_loss import CompiledLoss, Terms
from vae.training.cuda_graphs import LossGraphs, Replay

if TYPE_CHECKING:
    from vae.training.module import LitVAE

log = logging.getLogger(__name__)

EAGER_CALLS = 3  # before a kind of batch is recorded: the last one of an epoch comes once an epoch
MAX_GRAPHS = 8  # at a time: each keeps the tensors in between in memory
MAX_KINDS = 1000  # that are counted
MAX_RECORDINGS = 64  # of a run: recording takes longer than many steps
OWN = ("torch.", "vae.models.")  # whose modules compute with nothing but tensors and constants
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
GLOBAL_HOOKS = tuple(f"_global{name}" for name in HOOKS)


def choose_loss(
    pl_module: "LitVAE", compile: bool, cuda_graph: bool | None
) -> Callable[[Tensor, Tensor, int], Terms]:
    """What computes a step's loss terms. Raises ValueError for two ways at once."""
    if compile and cuda_graph:
        raise ValueError("learning.compile and learning.cuda_graph: take one of them")
    if compile:
        return CompiledLoss(pl_module)
    return pl_module.loss_terms if cuda_graph is False else GraphedLoss(pl_module, cuda_graph)


class GraphedLoss:
    """`pl_module.loss_terms` by CUDA graphs on a CUDA device, as it is elsewhere.

    A graph repeats kernels and no Python, so a batch is computed as it is wherever a hook would
    have to be called, and what Python decided is recorded again when it changes: shapes, precision,
    where the weights are and which are trained, training mode, numbers in the objective and in the
    modules. `wanted` None leaves your own classes alone, which may decide more; True records
    them too.
    """

    def __init__(self, pl_module: "LitVAE", wanted: bool | None = None) -> None:
        self.pl_module, self.wanted = pl_module, wanted
        self.device: torch.device | None = None  # which the following belongs to
        self.refused = True
        self.modules: Modules | None = None
        self.calls: dict[Any, int] = {}  # of each kind of batch
        self.graphs: dict[Any, LossGraphs] = {}  # by kind, the latest last
        self.recordings = 0

    def __call__(self, x: Tensor, eps: Tensor, step: int) -> Terms:
        graphs = self.find(x, eps, step) if torch.is_grad_enabled() else None
        if graphs is None:
            return self.pl_module.loss_terms(x, eps, step)
        terms: Tensor = Replay.apply(graphs, (x, eps, step), *graphs.weights)
        return unstacked(terms)

    def with_gradients(self, x: Tensor, eps: Tensor, step: int) -> Terms:
        """The terms, which need no gradients then: those of the mean objective are set."""
        graphs = self.find(x, eps, step)
        if graphs is None or graphs.have_hooks():
            return self.pl_module.loss_terms(x, eps, step)
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
        if len(self.calls) > MAX_KINDS:
            self.calls.clear()
        self.calls[kind] = self.calls.get(kind, 0) + 1
        if self.calls[kind] <= EAGER_CALLS or self.recordings >= MAX_RECORDINGS:
            return None
        if len(self.graphs) >= MAX_GRAPHS:
            self.graphs.pop(next(iter(self.graphs)))
        self.calls.clear()
        self.recordings += 1
        try:
            self.graphs[kind] = LossGraphs(self.pl_module, x, eps, step)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, TypeError, ValueError) as error:  # what cannot do with tensors alone
            self.refuse(first_line(error))
            return None
        return self.graphs[kind]

    def begin(self, device: torch.device) -> None:
        """Decide whether the step can be recorded on this device."""
        self.device, self.refused, self.modules = device, False, None
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

        parts = (*self.pl_module.model.modules(), self.pl_module.objective)
        names = [type(part).__module__ + "." for part in parts]
        own = type(self.pl_module).loss_terms is LitVAE.loss_terms
        return own and all(name.startswith(OWN) for name in names)

    def kind(self, x: Tensor, eps: Tensor) -> tuple[Any, ...] | None:
        """What is decided outside tensors' values, so that a graph repeats it; None where a module,
        or all of them, calls something that a graph would not."""
        if self.modules is None or self.modules.were_replaced():
            self.modules = Modules(self.pl_module)
        if self.modules.have_hooks() or any(getattr(global_hooks, name) for name in GLOBAL_HOOKS):
            return None
        autocast = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else None
        settings = numbers(getattr(self.pl_module.objective, "__dict__", {}))
        return (x.shape, x.dtype, eps.shape, autocast, *settings.values(), *self.modules.state())

    def __getstate__(self) -> dict[str, Any]:
        return vars(GraphedLoss(self.pl_module, self.wanted))


class Modules:
    """What a graph takes for granted of a module and those in it, looked at in some 20 µs a step.

    Their dictionaries are found once. A metric counts its updates, and takes no part in a loss.
    """

    def __init__(self, root: nn.Module) -> None:
        self.modules = [m for m in root.modules() if not isinstance(m, Metric)]  # kept, so ids are
        dicts = [vars(m) for m in self.modules]
        self.children = [d["_modules"] for d in dicts]
        self.known = self.child_ids()
        self.hooks = [d[name] for d in dicts for name in HOOKS]
        self.tensors = [d[name] for d in dicts for name in ("_parameters", "_buffers")]
        self.inner = dicts[1:]  # Lightning notes many things in the first
        self.numbers = [(d, name) for d in self.inner for name in numbers(d)]

    def child_ids(self) -> list[int]:
        return [id(child) for children in self.children for child in children.values()]

    def were_replaced(self) -> bool:
        return self.child_ids() != self.known

    def have_hooks(self) -> bool:
        return any(self.hooks)

    def state(self) -> tuple[Any, ...]:
        """Where the weights and buffers are, which are trained, and all numbers and modes."""
        tensors = [t for named in self.tensors for t in named.values() if t is not None]
        return (
            *[t.data_ptr() for t in tensors],
            *[t.requires_grad for t in tensors],
            *[d.get(name) for d, name in self.numbers],
            *map(len, self.inner),
        )


def numbers(attributes: dict[str, Any]) -> dict[str, Any]:
    """Those that are numbers, words or modes, such as training."""
    return {k: value for k, value in attributes.items() if isinstance(value, int | float | str)}


def unstacked(terms: Tensor) -> Terms:
    objective, log_likelihood, kl = terms.unbind(0)
    return objective, log_likelihood, kl
