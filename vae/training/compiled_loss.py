"""A learning step's loss compiled, alone or with its gradients as one graph.

torch.compile leaves the backward pass to autograd, which saves tensors in between and calls the
compiled halves one after the other. For a linear model that takes a third of a step.
"""

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from vae.training.module import LitVAE

Terms = tuple[Tensor, Tensor, Tensor]  # what loss_terms returns, [B] each
Tensors = dict[str, Tensor]
LossTerms = Callable[[Tensor, Tensor, int], Terms]


class CompiledLoss:
    """`pl_module.loss_terms`, compiled at its first call; a copy of it compiles its own."""

    def __init__(self, pl_module: "LitVAE") -> None:
        self.pl_module = pl_module
        self.compiled: Callable[..., Any] | None = None

    def __call__(self, x: Tensor, eps: Tensor, step: int) -> Any:
        if self.compiled is None:
            self.compiled = torch.compile(self.pl_module.loss_terms)
        return self.compiled(x, eps, step)

    def __getstate__(self) -> dict[str, Any]:
        return {"pl_module": self.pl_module, "compiled": None}


class CastsWeights(TorchFunctionMode):
    """Under autocast, a linear layer's weight is cast before it is transposed.

    Autocast itself casts the transpose, whose gradient is then copied twice: on a CPU a sixth of a
    step in bfloat16.
    """

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if function is nn.functional.linear and len(args) == 3:
            x, weight, bias = args
            if torch.is_autocast_enabled(x.device.type) and weight.dtype == torch.float32:
                args = (x, weight.to(torch.get_autocast_dtype(x.device.type)), bias)
        return function(*args, **(kwargs or {}))


class MeanLoss(nn.Module):
    """The mean objective of a batch, as a module whose weights can be given by name."""

    def __init__(self, pl_module: "LitVAE") -> None:
        super().__init__()
        self.pl_module = pl_module

    def forward(self, x: Tensor, eps: Tensor, step: int) -> tuple[Tensor, Terms]:
        with CastsWeights():
            terms = self.pl_module.loss_terms(x, eps, step)
        return terms[0].sum() * (1.0 / len(x)), terms


def loss_with_gradients(pl_module: "LitVAE", **options: Any) -> LossTerms:
    """`pl_module.loss_terms` that also sets the gradients of its mean; the terms need none then.

    `options` are torch.compile's. Every trainable weight should take part in the loss: the gradient
    of any other is zero here, where autograd has none.
    """
    loss = MeanLoss(pl_module)

    def evaluate(
        weights: Tensors, buffers: Tensors, x: Tensor, eps: Tensor, step: int
    ) -> tuple[Tensor, Terms]:
        return functional_call(loss, {**weights, **buffers}, (x, eps, step))

    compiled = torch.compile(grad(evaluate, has_aux=True), **options)

    @functools.cache  # at the first step: walking through the modules at each takes 3 % of it
    def walked() -> tuple[dict[str, nn.Parameter], dict[str, nn.Module]]:
        with_buffers = {name: m for name, m in loss.named_modules() if [*m.buffers(recurse=False)]}
        return dict(loss.named_parameters()), with_buffers

    def terms_and_gradients(x: Tensor, eps: Tensor, step: int) -> Terms:
        parameters, with_buffers = walked()
        trainable = {name: p for name, p in parameters.items() if p.requires_grad}
        weights = {name: p.detach() for name, p in trainable.items()}
        buffers: Tensors = {}
        for name, module in with_buffers.items():
            buffers.update(module.named_buffers(prefix=name, recurse=False))
        gradients: Tensors
        terms: Terms
        gradients, terms = compiled(weights, buffers, x, eps, step)
        for name, weight in trainable.items():
            weight.grad = gradients[name]
        return terms

    return terms_and_gradients
