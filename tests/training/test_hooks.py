"""Steps that cost Lightning and torch less do what they did before."""

import functools
from functools import partial
from typing import Any

import lightning.pytorch as L
import pytest
import torch
from conftest import build_model, quiet_trainer
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.profiler import ProfilerActivity, profile

from vae.training import LitVAE
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


def test_a_hook_that_a_step_registers_is_called_after_it(weights: nn.Linear) -> None:
    """As one of Lightning's on_before_optimizer_step, which runs within the step."""
    optimizer = skip_records(torch.optim.SGD(weights.parameters(), lr=0.1))
    called: list[dict[str, Any]] = []

    def closure() -> float:
        optimizer.register_step_post_hook(lambda *given: called.append(given[2]))
        return 0.0

    optimizer.step(closure)
    optimizer.step(closure=lambda: 0.0)
    assert [[*named] for named in called] == [[], ["closure"]]


def test_steps_of_ones_own_are_taken(weights: nn.Linear) -> None:
    """Whether they wrap torch's, are put on the optimizer, or on its class later on."""
    taken: list[str] = []
    parameters = [*weights.parameters()]
    torch.optim.Adam(parameters)  # from now on the class has torch's record around its step

    class Own(torch.optim.Adam):
        @functools.wraps(torch.optim.Adam.step)
        def step(self, closure: Any = None) -> Any:
            taken.append("class")
            return super().step(closure)

    skip_records(Own(parameters)).step()
    optimizer = torch.optim.Adam(parameters)
    optimizer.step = lambda: taken.append("optimizer")  # type: ignore
    skip_records(optimizer).step()
    optimizer = skip_records(torch.optim.Adam(parameters))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.Adam, "step", lambda self: taken.append("later"))
        patch.setattr(torch.optim.Optimizer, "zero_grad", lambda *_: taken.append("zero"))
        optimizer.step()
        optimizer.zero_grad()
    assert taken == ["class", "optimizer", "later", "zero"]


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
    quiet_trainer(max_epochs=1).fit(module, torch.utils.data.DataLoader(torch.ones(4, 3), 2))  # type: ignore[arg-type]
    given = [{k: v for k, v in one.items() if k not in ("self", "batch")} for one in module.given]
    expected: dict[str, list[dict[str, Any]]] = {
        "batch": [{}, {}],
        "batch, batch_idx": [{"batch_idx": 0}, {"batch_idx": 1}],
        "batch, *others": [{"others": (0,)}, {"others": (1,)}],
    }
    assert given == expected[arguments]


def test_a_training_step_need_not_be_a_function() -> None:
    def step(self: Any, factor: float, batch: Tensor) -> Tensor:
        return factor * batch.sum()

    class Mine(LeanModule):
        training_step = functools.partialmethod(step, 2.0)  # type: ignore[assignment]

    assert Mine().training_step(torch.ones(3)) == 6


class Clipping(L.LightningModule):
    """Clips by a rule of its own, whatever the Trainer says."""

    clipped = 0

    def configure_gradient_clipping(self, *_: Any, **__: Any) -> None:
        self.clipped += 1


def test_clipping_by_a_mixin_and_by_the_trainers_value_go_on() -> None:
    class Mine(LitVAE, Clipping):
        pass

    class Calling(LitVAE):
        def configure_gradient_clipping(self, optimizer: Any, *_: Any, **__: Any) -> None:
            super().configure_gradient_clipping(optimizer)

        def on_train_batch_end(self, *_: Any) -> None:
            gradients = [p.grad for p in self.parameters() if p.grad is not None]
            assert torch.stack([g.norm() for g in gradients]).norm() <= 0.5001

    mine, calling = (kind(build_model("model.latent_dim=2")) for kind in (Mine, Calling))
    images = torch.utils.data.DataLoader(torch.rand(8, 1, 28, 28), 4)  # type: ignore[arg-type]
    quiet_trainer(max_epochs=1).fit(mine, images)
    assert mine.clipped == 2
    quiet_trainer(max_epochs=1, gradient_clip_val=0.5).fit(calling, images)
