"""A loss and its gradients compiled as one graph.

torch.compile leaves the backward pass to autograd, which saves tensors in between and calls the
compiled halves one after the other. For a linear model that takes a third of a step.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad

if TYPE_CHECKING:
    from vae.training.module import LitVAE

Terms = tuple[Tensor, Tensor, Tensor]  # what loss_terms returns, [B] each
Tensors = dict[str, Tensor]
LossTerms = Callable[[Tensor, Tensor, int], Terms]


class MeanLoss(nn.Module):
    """The mean objective of a batch, as a module whose weights can be given by name."""

    def __init__(self, learning: "LitVAE") -> None:
        super().__init__()
        self.learning = learning

    def forward(self, x: Tensor, eps: Tensor, step: int) -> tuple[Tensor, Terms]:
        terms = self.learning.loss_terms(x, eps, step)
        return terms[0].sum() * (1.0 / len(x)), terms

    def linear_weights_cast(self, weights: Tensors, device: str) -> Tensors:
        """The weights, those of linear layers as autocast would have them if it is on.

        Left to itself it casts their transposes, whose gradients are then copied twice: on a CPU a
        sixth of a step in bfloat16.
        """
        if not torch.is_autocast_enabled(device):
            return weights
        layers = [name for name, m in self.named_modules() if isinstance(m, nn.Linear)]
        names = {f"{name}.weight" for name in layers} & {*weights}
        dtype = torch.get_autocast_dtype(device)
        return {**weights, **{name: weights[name].to(dtype) for name in names}}


def loss_with_gradients(learning: "LitVAE", **options: Any) -> LossTerms:
    """`learning.loss_terms` that also sets the gradients of its mean; the terms need none then.

    `options` are torch.compile's. Every trainable weight should take part in the loss: the gradient
    of any other is zero here, where autograd has none.
    """
    loss = MeanLoss(learning)

    def evaluate(
        weights: Tensors, buffers: Tensors, x: Tensor, eps: Tensor, step: int
    ) -> tuple[Tensor, Terms]:
        weights = loss.linear_weights_cast(weights, x.device.type)
        return functional_call(loss, {**weights, **buffers}, (x, eps, step))

    compiled = torch.compile(grad(evaluate, has_aux=True), **options)

    # looked up once: walking through the modules at every step takes 3 % of it
    parameters = dict(loss.named_parameters())
    with_buffers = {name: m for name, m in loss.named_modules() if [*m.buffers(recurse=False)]}

    def terms_and_gradients(x: Tensor, eps: Tensor, step: int) -> Terms:
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
