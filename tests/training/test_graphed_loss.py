"""Loss and gradients replayed on a GPU: what is replayed, and what is not.

On an emulated GPU, whose graphs compute anew what a CUDA graph would repeat; the other half is in
test_gpu.py.
"""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from conftest import build_model, settings, timeless_metrics
from emulated_gpu import emulated_gpu, record
from torch import Tensor, nn

from vae.models import ELBO, BetaELBO
from vae.runs.errors import RunError, UserError
from vae.train import train
from vae.training import LitVAE
from vae.training.graphed_loss import EAGER_CALLS, MAX_GRAPHS, MAX_RECORDINGS, GraphedLoss

SMALL = ["model=deep", "model.latent_dim=3", "model.encoder.hidden=[8]", "model.decoder.hidden=[8]"]
QUIET = ("callbacks=none", "logger=none", "trainer.max_epochs=2", "model.latent_dim=4")


@pytest.fixture
def recorded() -> Iterator[mock.Mock]:
    """An emulated GPU; called once for both graphs of a kind of batch."""
    with emulated_gpu(), mock.patch("vae.training.cuda_graphs.record", side_effect=record) as calls:
        yield calls


def learning_step(objective: Any = None, wanted: bool | None = None) -> LitVAE:
    learning = LitVAE(build_model(*SMALL), objective=objective or ELBO(), cuda_graph=wanted)
    return learning.to("cuda")


def batch(images: int = 6) -> tuple[Tensor, Tensor]:
    x = torch.rand(images, 1, 28, 28, device="cuda")
    return x, torch.randn(1, images, 3, device="cuda")


def gradients(learning: LitVAE) -> list[Tensor | None]:
    return [None if w.grad is None else w.grad.clone() for w in learning.parameters()]


def by(loss: Any, learning: LitVAE, x: Tensor, eps: Tensor, step: int = 0) -> list[Any]:
    """The terms and the gradients of a weighted sum of all three."""
    learning.zero_grad()
    terms = loss(x, eps, step)
    sum(weight * term.square().mean() for weight, term in enumerate(terms, 1)).backward()
    return [*(term.detach().clone() for term in terms), *gradients(learning)]


def same(found: list[Any], expected: list[Any]) -> bool:
    pairs = zip(found, expected, strict=True)
    return all((a is None and b is None) or torch.allclose(a, b, rtol=1e-5) for a, b in pairs)


# --- whole runs -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "overrides",
    [
        ("model=deep",),
        ("learning=blocks",),
        ("trainer.accumulate_grad_batches=2", "trainer.gradient_clip_val=1"),
        ("objective=warmup", "data.pixels=dequantised", "likelihood=learned_sigma"),
    ],
    ids=" ".join,
)
def test_a_run_by_graphs_is_that_without(
    overrides: tuple[str, ...], recorded: mock.Mock, tmp_path: Path
) -> None:
    found = {}
    for graph in (False, True):
        folder = tmp_path / str(graph)
        config = settings("trainer.accelerator=gpu", "data.batch_size=50", *QUIET, *overrides)
        config.learning.cuda_graph = graph
        train(config, folder)
        found[graph] = timeless_metrics(folder)
        assert recorded.call_count == graph
    assert found[True] == pytest.approx(found[False], rel=1e-5)


# --- numbers --------------------------------------------------------------------------------------


def test_terms_and_gradients_are_those_of_the_loss(recorded: mock.Mock) -> None:
    """Of any function of the terms, for whole batches and a short one, at each step of a schedule,
    with some weights frozen."""
    learning = learning_step(BetaELBO(warmup_steps=6))
    for step in range(16):
        learning.model.decoder.requires_grad_(step < 8)
        x, eps = batch(4 if step % 3 == 2 else 6)
        expected = by(learning.loss_terms, learning, x, eps, step)
        assert same(by(learning.compute_loss, learning, x, eps, step), expected)
    assert recorded.call_count == 2  # whole batches, and those of the frozen decoder
    assert learning.model.decoder.layers[0].weight.grad is None


def test_gradients_of_several_batches_add_up(recorded: mock.Mock) -> None:
    learning = learning_step()
    for _ in range(EAGER_CALLS):
        learning.compute_loss(*batch(), 0)
    batches = [batch() for _ in range(3)]
    sums = {}
    for name, loss in (("eager", learning.loss_terms), ("graph", learning.compute_loss)):
        learning.zero_grad()
        for x, eps in batches:
            loss(x, eps, 0)[0].mean().backward()
        sums[name] = gradients(learning)
    assert recorded.called
    assert same(sums["graph"], sums["eager"])


def test_a_second_backward_pass_gives_the_same(recorded: mock.Mock) -> None:
    learning = learning_step()
    for _ in range(EAGER_CALLS):
        learning.compute_loss(*batch(), 0)
    terms, weights = learning.compute_loss(*batch(), 0), [*learning.parameters()]
    assert recorded.called
    kl = torch.autograd.grad(terms[2].mean(), weights, retain_graph=True, allow_unused=True)
    likelihood = torch.autograd.grad(terms[1].mean(), weights, retain_graph=True)
    objective = torch.autograd.grad(terms[0].mean(), weights)
    for a, b, c in zip(kl, likelihood, objective, strict=True):
        torch.testing.assert_close(a - b, c, rtol=1e-4, atol=1e-5)


def test_images_that_are_learned_get_their_gradient(recorded: mock.Mock) -> None:
    learning = learning_step()
    for _ in range(EAGER_CALLS + 2):
        x, eps = batch()
        learning.compute_loss(x.requires_grad_(), eps, 0)[0].sum().backward()
        assert x.grad.abs().sum() > 0
    assert not recorded.called


def test_terms_are_kept_beyond_the_next_replay(recorded: mock.Mock) -> None:
    learning = learning_step()
    batches = [batch() for _ in range(EAGER_CALLS + 3)]
    kept = [learning.compute_loss(x, eps, 0)[0] for x, eps in batches]
    assert recorded.called
    for objective, (x, eps) in zip(kept, batches, strict=True):
        torch.testing.assert_close(objective, learning.loss_terms(x, eps, 0)[0])


def test_a_loss_whose_place_was_taken_is_no_wrong_gradient(recorded: mock.Mock) -> None:
    learning = learning_step()
    for _ in range(EAGER_CALLS):
        learning.compute_loss(*batch(), 0)
    first, second = (learning.compute_loss(*batch(), 0)[0].mean() for _ in range(2))
    with pytest.raises(RuntimeError, match=r"another batch .* learning\.cuda_graph=false"):
        (first + second).backward()


def test_trial_runs_leave_statistics_of_batches_and_generators_alone(recorded: mock.Mock) -> None:
    learning = learning_step(wanted=True)
    learning.model.decoder = nn.Sequential(nn.BatchNorm1d(3), learning.model.decoder)
    learning.to("cuda")
    states = []
    for _ in range(EAGER_CALLS):
        learning.compute_loss(*batch(), 0)
    x, eps = batch()
    state = torch.get_rng_state()
    learning.compute_loss(x, eps, 0)
    assert recorded.called
    assert torch.equal(torch.get_rng_state(), state)
    states.append(int(learning.model.decoder[0].num_batches_tracked))
    # of the emulation: once as the graph is recorded, where a GPU only notes it, and once replayed
    assert states == [EAGER_CALLS + 2]


# --- what is recorded, and when it is not ---------------------------------------------------------


def calls_by_graph(learning: LitVAE, recorded: mock.Mock, calls: int = EAGER_CALLS + 2) -> bool:
    """Whether the last of some steps replayed a graph."""
    for _ in range(calls):
        terms = learning.compute_loss(*batch(), 0)
    return "Unbind" in str(terms[0].grad_fn) and recorded.called


class OwnEncoder(nn.Module):
    """Decides by something that is no tensor."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.scale = encoder, 1.0

    def forward(self, x: Tensor) -> Any:
        return self.encoder(self.scale * x)


class Hurried(ELBO):
    """An objective that looks at the number of steps."""

    def loss(self, terms: Any, step: int) -> Tensor:
        return super().loss(terms, step) * (1 if step < 3 else 2)


class Listed(ELBO):
    """An objective that takes a number from a list."""

    __slots__ = ()

    def loss(self, terms: Any, step: int) -> Tensor:
        return super().loss(terms, step) * [1.0, 2.0][step]


def test_classes_of_ones_own_are_recorded_where_asked_for(recorded: mock.Mock) -> None:
    for wanted in (None, True):
        learning = learning_step(wanted=wanted)
        learning.model.encoder = OwnEncoder(learning.model.encoder)
        assert calls_by_graph(learning, recorded) == bool(wanted)


def test_false_records_nothing(recorded: mock.Mock) -> None:
    assert not calls_by_graph(learning_step(wanted=False), recorded)
    assert calls_by_graph(learning_step(), recorded)


def test_a_cpu_has_no_graphs_and_it_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    learning = LitVAE(build_model(*SMALL), cuda_graph=True)
    with caplog.at_level(logging.WARNING), mock.patch("vae.training.cuda_graphs.record") as calls:
        for _ in range(5):
            learning.compute_loss(torch.rand(6, 1, 28, 28), torch.randn(1, 6, 3), 0)
    assert not calls.called
    assert caplog.messages == ["learning.cuda_graph: no CUDA graph of the step: cpu has none"]


def test_two_ways_at_once_are_refused(tmp_path: Path) -> None:
    both = settings(*QUIET, "learning.compile=true", "learning.cuda_graph=true")
    with pytest.raises(UserError, match=r"learning\.compile and learning\.cuda_graph: take one"):
        train(both, tmp_path)


@pytest.mark.parametrize(
    ("objective", "reason"), [(Hurried, "the host asks a value"), (Listed, "")]
)
def test_what_asks_a_value_of_the_device_is_computed_without(
    objective: Any, reason: str, recorded: mock.Mock, caplog: pytest.LogCaptureFixture
) -> None:
    learning = learning_step(objective(), wanted=True)
    with caplog.at_level(logging.WARNING):
        assert not calls_by_graph(learning, recorded)
    (line,) = caplog.messages
    assert line.startswith(f"learning.cuda_graph: no CUDA graph of the step: {reason}")
    assert learning.compute_loss(*batch(), 1)[0].isfinite().all()


def test_hooks_are_called(recorded: mock.Mock) -> None:
    learning = learning_step()
    assert calls_by_graph(learning, recorded)
    seen: list[Any] = []
    hook = learning.model.encoder.register_forward_hook(lambda *_: seen.append(1))
    assert not calls_by_graph(learning, recorded, 3)
    assert seen == [1, 1, 1]
    hook.remove()
    assert calls_by_graph(learning, recorded, 1)


def test_hooks_of_weights_are_called(recorded: mock.Mock) -> None:
    """By autograd, which blocks leave out otherwise."""
    learning = learning_step()
    for _ in range(EAGER_CALLS + 1):
        learning.compute_loss.with_gradients(*batch(), 0)
    assert not learning.compute_loss.with_gradients(*batch(), 0)[0].requires_grad
    learning.model.decoder.layers[0].weight.register_hook(lambda g: None)
    assert learning.compute_loss.with_gradients(*batch(), 0)[0].requires_grad


@pytest.mark.parametrize("what", ["decoder", "frozen weight", "statistics", "dropout"])
def test_what_is_replaced_is_not_replayed(what: str, recorded: mock.Mock) -> None:
    learning = learning_step(wanted=True)
    layers = nn.BatchNorm1d(3), nn.Dropout(0.5), learning.model.decoder
    learning.model.decoder = nn.Sequential(*layers).to("cuda")
    learning.model.encoder.requires_grad_(False)
    assert calls_by_graph(learning, recorded)
    if what == "decoder":
        learning.model.decoder = build_model(*SMALL, seed=1).decoder.to("cuda")
    elif what == "frozen weight":
        weight = learning.model.encoder.layers[0].weight
        weight.data = 2 * weight.data
    elif what == "statistics":
        learning.model.decoder[0].running_mean = torch.ones(3, device="cuda")
    else:
        learning.model.decoder[1].p = 0.0
    assert not calls_by_graph(learning, recorded, 1)
    assert calls_by_graph(learning, recorded)
    assert recorded.call_count == 2


def test_a_changed_setting_is_recorded_anew(recorded: mock.Mock) -> None:
    """As a callback might change it between epochs."""
    learning = learning_step(BetaELBO(2.0))
    for beta in (2.0, 0.5, 2.0):
        learning.objective.beta = beta
        assert calls_by_graph(learning, recorded)
        x, eps = batch()
        objective, log_likelihood, kl = learning.compute_loss(x, eps, 0)
        torch.testing.assert_close(objective, beta * kl - log_likelihood)
    learning.eval()
    assert not calls_by_graph(learning, recorded, 1)
    assert recorded.call_count == 2


def test_graphs_are_few(recorded: mock.Mock) -> None:
    """Each keeps memory: the one used last goes first."""
    learning = learning_step()
    for images in range(1, MAX_GRAPHS + 4):
        for _ in range(EAGER_CALLS + 1):
            learning.compute_loss(*batch(images), 0)
        if images > 1:
            learning.compute_loss(*batch(1), 0)  # is used all the time
    assert recorded.call_count == MAX_GRAPHS + 3
    sizes = {kind[0][0] for kind in learning.compute_loss.graphs}
    assert sizes == {1, *range(5, MAX_GRAPHS + 4)}


def test_recordings_have_an_end(recorded: mock.Mock) -> None:
    """Where something changes at every few steps, recording would take longer than it saves."""
    learning = learning_step(BetaELBO())
    for value in range(MAX_RECORDINGS + 5):
        learning.objective.beta = float(value)
        for _ in range(EAGER_CALLS + 1):
            learning.compute_loss(*batch(2), 0)
    assert recorded.call_count == MAX_RECORDINGS


def test_what_cannot_be_recorded_is_said_in_one_line(recorded: mock.Mock) -> None:
    recorded.side_effect = RuntimeError("CUDA error: operation not permitted\nmore of it")
    with pytest.raises(RunError, match=r"\(CUDA error: operation not permitted\); learning\.cuda"):
        calls_by_graph(learning_step(), recorded)


def test_a_copy_records_its_own(recorded: mock.Mock) -> None:
    learning = learning_step()
    assert calls_by_graph(learning, recorded)
    state = GraphedLoss.__getstate__(learning.compute_loss)
    assert not state["graphs"]
    assert state["pl_module"] is learning
