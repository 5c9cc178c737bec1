"""Steps that cost Lightning and torch less do what they did before."""

from functools import partial
from typing import Any

import lightning.pytorch as L
import pytest
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.profiler import ProfilerActivity, profile

from vae.training.hooks import LeanModule, skip_records

OPTIMIZERS: dict[str, Any] = {
    "Adam": torch.optim.Adam,
    "AdamW, fused": partial(torch.optim.AdamW, fused=True),
    "SGD": partial(torch.optim.SGD, lr=0.1, momentum=0.9),
    "LBFGS": torch.optim.LBFGS,
}


def steps(optimizer: torch.optim.Optimizer, weights: nn.Linear, count: int = 5) -> Tensor:
    """The weights after some steps on fixed data."""
    x = torch.arange(12.0).reshape(4, 3) / 12

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (weights(x) - 1).square().mean()
        loss.backward()
        return loss

    for _ in range(count):
        optimizer.step(closure)  # type: ignore[arg-type]
    return weights.weight.detach().clone()


@pytest.fixture
def weights() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, 2)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_weights_are_those_of_the_optimizer_as_it_comes(kind: str) -> None:
    found = []
    for change in (lambda o: o, skip_records):
        torch.manual_seed(0)
        weights = nn.Linear(3, 2)
        found.append(steps(change(OPTIMIZERS[kind](weights.parameters())), weights))
    assert torch.equal(*found)


def test_hooks_of_an_optimizer_are_called(weights: nn.Linear) -> None:
    optimizer = skip_records(torch.optim.Adam(weights.parameters()))
    called: list[str] = []
    steps(optimizer, weights, 1)
    before = optimizer.register_step_pre_hook(lambda *_: called.append("before"))
    after = optimizer.register_step_post_hook(lambda *_: called.append("after"))
    steps(optimizer, weights, 2)
    before.remove()
    steps(optimizer, weights, 1)
    after.remove()
    steps(optimizer, weights, 1)
    everywhere = register_optimizer_step_post_hook(lambda *_: called.append("everywhere"))
    steps(optimizer, weights, 1)
    everywhere.remove()
    assert called == ["before", "after"] * 2 + ["after", "everywhere"]


def test_a_profile_has_the_optimizers_entries(weights: nn.Linear) -> None:
    optimizer = skip_records(torch.optim.Adam(weights.parameters()))
    steps(optimizer, weights, 1)
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        steps(optimizer, weights, 3)
    found = {event.key: event.count for event in profiled.key_averages()}
    assert found["Optimizer.step#Adam.step"] == 3
    assert found["Optimizer.zero_grad#Adam.zero_grad"] == 3


def test_gradients_are_dropped_or_zeroed(weights: nn.Linear) -> None:
    optimizer = skip_records(torch.optim.Adam(weights.parameters()))
    weights(torch.ones(1, 3)).sum().backward()
    optimizer.zero_grad(set_to_none=False)
    assert weights.weight.grad is not None
    assert not weights.weight.grad.any()
    optimizer.zero_grad()
    assert weights.weight.grad is None


def test_an_optimizer_with_a_zero_grad_of_its_own_keeps_it(weights: nn.Linear) -> None:
    class Own(torch.optim.SGD):
        dropped = 0

        def zero_grad(self, set_to_none: bool = True) -> None:
            self.dropped += 1
            super().zero_grad(set_to_none)

    optimizer = Own(weights.parameters(), lr=0.1)
    steps(skip_records(optimizer), weights, 3)
    assert optimizer.dropped == 3


@pytest.mark.parametrize("arguments", ["batch", "batch, batch_idx", "batch, *others"])
def test_a_training_step_may_leave_out_the_index(arguments: str) -> None:
    """Lightning reads which arguments it has; here the function carries them with it."""
    found: dict[str, Any] = {}
    exec(f"def training_step(self, {arguments}):\n    return self.step(locals())", found)

    class Mine(LeanModule):
        training_step = found["training_step"]

        def __init__(self) -> None:
            super().__init__()
            self.weights = nn.Linear(3, 1)
            self.given: list[dict[str, Any]] = []

        def step(self, given: dict[str, Any]) -> Tensor:
            self.given.append(given)
            return self.weights(given["batch"]).sum()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    module = Mine()
    quiet: dict[str, Any] = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
    )
    trainer = L.Trainer(max_epochs=1, accelerator="cpu", **quiet)
    trainer.fit(module, torch.utils.data.DataLoader(torch.ones(4, 3), 2))  # type: ignore[arg-type]
    given = [{k: v for k, v in one.items() if k not in ("self", "batch")} for one in module.given]
    expected: dict[str, list[dict[str, Any]]] = {
        "batch": [{}, {}],
        "batch, batch_idx": [{"batch_idx": 0}, {"batch_idx": 1}],
        "batch, *others": [{"others": (0,)}, {"others": (1,)}],
    }
    assert given == expected[arguments]
