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


def loss_with_gradients(learning: "LitVAE", **options: Any) -> LossTerms:
    """`learning.loss_terms` that also sets the gradients of its mean; the terms need none then.

    `options` are torch.compile's. Every trainable weight should take part in the loss: the gradient
    of any other is zero here, where autograd has none.
    """
    loss = MeanLoss(learning)

    def evaluate(
        weights: Tensors, buffers: Tensors, x: Tensor, eps: Tensor, step: int
    ) -> tuple[Tensor, Terms]:
        return functional_call(loss, {**weights, **buffers}, (x, eps, step))

    compiled = torch.compile(grad(evaluate, has_aux=True), **options)

    def terms_and_gradients(x: Tensor, eps: Tensor, step: int) -> Terms:
        trainable = {name: p for name, p in loss.named_parameters() if p.requires_grad}
        weights = {name: p.detach() for name, p in trainable.items()}
        gradients: Tensors
        terms: Terms
        gradients, terms = compiled(weights, dict(loss.named_buffers()), x, eps, step)
        for name, weight in trainable.items():
            weight.grad = gradients[name]
        return terms

    return terms_and_gradients
