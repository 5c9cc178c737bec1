"""A loss and its gradients in one compiled graph."""

import pytest
import torch
from conftest import build_model
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.testing import CompileCounterWithBackend

from vae.models import ELBO, IWAE, BetaELBO, FreeBits, PathELBO
from vae.training.compiled_loss import loss_with_gradients
from vae.training.module import LitVAE

OBJECTIVES = [ELBO(), BetaELBO(warmup_steps=10), FreeBits(0.3), IWAE(2), PathELBO()]
SMALL = ["model=deep", "model.latent_dim=3", "model.encoder.hidden=[8]", "model.decoder.hidden=[8]"]


def by_autograd(task: LitVAE, *inputs) -> dict[str, torch.Tensor]:
    task.zero_grad()
    task.loss_terms(*inputs)[0].mean().backward()
    return gradients(task)


def gradients(task: LitVAE) -> dict[str, torch.Tensor]:
    return {n: p.grad.clone() for n, p in task.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    "objective",
    [OBJECTIVES[0], *(pytest.param(o, marks=pytest.mark.slow) for o in OBJECTIVES[1:])],
    ids=lambda o: type(o).__name__,
)
@pytest.mark.parametrize(
    "likelihood",
    [
        "gaussian",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("learned_sigma", "bernoulli")),
    ],
)
def test_its_gradients_are_autograds(objective, likelihood: str):
    """At each step of a schedule and for the short last batch, compiled four times at most."""
    task = LitVAE(build_model(*SMALL, f"likelihood={likelihood}"), objective=objective)
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    together = loss_with_gradients(task, backend=counter, fullgraph=True)
    for step in range(12):
        images = 5 if step == 1 else 8
        x, eps = torch.rand(images, 1, 28, 28), torch.randn(objective.samples, images, 3)
        terms, found = together(x, eps, step), gradients(task)
        assert not any(term.requires_grad for term in terms)
        expected = by_autograd(task, x, eps, step)
        assert {*found} == {*expected}
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-4)
        for term, same in zip(terms, task.loss_terms(x, eps, step), strict=True):
            torch.testing.assert_close(term, same)
    assert counter.frame_count <= 4


def test_frozen_weights_get_no_gradient_and_statistics_of_a_batch_are_counted_once():
    model = build_model(*SMALL)
    model.decoder = nn.Sequential(nn.BatchNorm1d(3), model.decoder)
    model.encoder.requires_grad_(False)
    task = LitVAE(model)
    torch._dynamo.reset()
    together = loss_with_gradients(task, backend="aot_eager")
    together(torch.rand(8, 1, 28, 28), torch.randn(1, 8, 3), 0)
    assert {name.split(".")[1] for name in gradients(task)} == {"decoder"}
    assert model.decoder[0].num_batches_tracked == 1
    assert model.decoder[0].running_mean.abs().max() > 0


def test_bfloat16_costs_no_more_than_by_autograd():
    torch.manual_seed(0)
    task = LitVAE(build_model(*SMALL))
    inputs = (torch.rand(32, 1, 28, 28), torch.randn(1, 32, 3), 0)
    exact = by_autograd(task, *inputs)
    torch._dynamo.reset()
    together = loss_with_gradients(task, backend="aot_eager")
    with torch.autocast("cpu", torch.bfloat16):
        rounded = by_autograd(task, *inputs)
        together(*inputs)

    def error(found: dict[str, torch.Tensor]) -> float:
        return sum((found[n] - exact[n]).square().sum().item() for n in exact) ** 0.5

    assert 0 < error(gradients(task)) < 1.5 * error(rounded)


def test_weights_are_cast_before_they_are_transposed():
    """A gradient that is cast while transposed is copied twice, a sixth of a step in bfloat16."""
    task = LitVAE(build_model(*SMALL))
    nodes: list[torch.fx.Node] = []

    def collect(graph: torch.fx.GraphModule, _):
        nodes.extend(graph.graph.nodes)
        return graph

    torch._dynamo.reset()
    together = loss_with_gradients(task, backend=aot_autograd(fw_compiler=collect))
    with torch.autocast("cpu", torch.bfloat16):
        together(torch.rand(8, 1, 28, 28), torch.randn(1, 8, 3), 0)
    casts = [node for node in nodes if node.target is torch.ops.aten._to_copy.default]
    assert len(casts) >= 8  # four layers' weights, there and back
    assert not any(is_transposed(node.args[0]) for node in casts)


def is_transposed(node: torch.fx.Node) -> bool:
    """Whether an odd number of transpositions made it, one after the other."""
    return node.target is torch.ops.aten.t.default and not is_transposed(node.args[0])


def test_a_layer_outside_of_autocast_stays_in_float32():
    class InFloat32(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, z):
            with torch.autocast("cpu", enabled=False):
                return self.layer(z.float())

    model = build_model(*SMALL)
    model.decoder = nn.Sequential(InFloat32(), model.decoder)
    task = LitVAE(model)
    torch._dynamo.reset()
    together = loss_with_gradients(task, backend="aot_eager")
    inputs = (torch.rand(32, 1, 28, 28), torch.randn(1, 32, 3), 0)
    with torch.autocast("cpu", torch.bfloat16):
        expected = by_autograd(task, *inputs)
        together(*inputs)
    found = gradients(task)
    assert {*found} == {*expected}
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=0.1, atol=0.1)


def test_layers_made_after_the_setup_are_trained():
    task = LitVAE(build_model(*SMALL))
    torch._dynamo.reset()
    together = loss_with_gradients(task, backend="aot_eager")
    task.model.decoder = nn.Sequential(nn.Linear(3, 3), task.model.decoder)  # as configure_model
    together(torch.rand(8, 1, 28, 28), torch.randn(1, 8, 3), 0)
    assert "model.decoder.0.weight" in gradients(task)
