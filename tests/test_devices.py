"""On a GPU: no tensor on the wrong device, nothing that makes a training step wait for the device.

Without a GPU an emulated one shows it (tests/emulated_gpu.py), which computes what the CPU does.
"""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import torch
from conftest import composed, settings, train_run
from emulated_gpu import DeviceMismatch, EmulatedGPU, emulated_gpu
from torch._subclasses.fake_tensor import FakeTensorMode

import vae
from vae.evaluate import evaluate
from vae.train import train
from vae.training import LitVAE

QUIET = ("callbacks=none", "logger=none", "trainer.max_epochs=1", "model.latent_dim=4")


# --- the emulated GPU refuses what PyTorch refuses ------------------------------------------------

OPERATIONS = {
    "sum of two": lambda gpu, cpu: gpu + cpu,
    "sum with a number": lambda gpu, cpu: gpu + cpu.sum(),
    "concatenation": lambda gpu, cpu: torch.cat([gpu, cpu]),
    "product": lambda gpu, cpu: gpu @ cpu.T,
    "layer": lambda gpu, cpu: torch.nn.functional.linear(gpu, cpu),
    "indices from the CPU": lambda gpu, cpu: gpu[torch.tensor([0, 1])],
    "index_select by the CPU": lambda gpu, cpu: gpu.index_select(0, torch.tensor([0, 1])),
    "assignment": lambda gpu, cpu: gpu.clone().__setitem__(0, cpu[0]),
    "assignment by indices": lambda gpu, cpu: gpu.__setitem__(gpu[0].long(), cpu),
    "where": lambda gpu, cpu: torch.where(gpu > 0, gpu, cpu),
    "where with a number": lambda gpu, cpu: torch.where(gpu > 0, gpu, 0.0),
    "in place": lambda gpu, cpu: gpu.clone().add_(cpu),
    "copy": lambda gpu, cpu: gpu.clone().copy_(cpu),
    "after a move": lambda gpu, cpu: gpu + cpu.to(gpu.device),
    "after a move like another": lambda gpu, cpu: gpu + cpu.to(gpu),
    "back on the CPU": lambda gpu, cpu: gpu.cpu() + cpu,
    "a new one of the same device": lambda gpu, cpu: gpu + gpu.new_ones(3, 3),
    "a new one of the default": lambda gpu, cpu: gpu + torch.ones(3, 3),
    "log density": lambda gpu, cpu: torch.distributions.Normal(gpu, gpu.exp()).log_prob(cpu),
}


# On a real GPU these raise; FakeTensorMode lets them pass.
STRICTER = {
    "indices from the GPU": lambda gpu, cpu: cpu[gpu[0].long()],
    "stack with a number": lambda gpu, cpu: torch.stack([gpu.sum(), cpu.sum()]),
}


def refused(operation: Any) -> bool:
    try:
        operation(torch.ones(3, 3, device="cuda"), torch.ones(3, 3))
    except (RuntimeError, DeviceMismatch):
        return True
    return False


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_emulated_gpu_refuses_what_pytorch_refuses(name: str) -> None:
    with FakeTensorMode():
        expected = refused(OPERATIONS[name])
    with emulated_gpu():
        assert refused(OPERATIONS[name]) == expected


@pytest.mark.parametrize("name", STRICTER)
def test_the_emulated_gpu_refuses_what_a_gpu_refuses(name: str) -> None:
    with emulated_gpu():
        assert refused(STRICTER[name])


def test_the_emulated_gpu_counts_waits_and_copies() -> None:
    with emulated_gpu() as gpu:
        x = torch.randn(5, device="cuda")
        assert not gpu.waits | gpu.copies  # drawn there
        x.sum().item(), bool(x[0] > 0), x.tolist(), x.cpu(), x[x > 0], float(x[0]), x.nonzero()
        assert sum(gpu.waits.values()) == 7
        torch.tensor([1.0], device="cuda"), torch.ones(2).to("cuda"), x.new_tensor([1.0])
        assert sum(gpu.copies.values()) == 3
        with pytest.raises(DeviceMismatch):  # a generator belongs to a device too
            torch.randn(5, device="cuda", generator=torch.Generator())
        with pytest.raises(TypeError):
            x.numpy()


# --- training -------------------------------------------------------------------------------------


def fitted(folder: Path, accelerator: str, *overrides: str) -> dict[str, float]:
    metrics = train_run(folder, settings(f"trainer.accelerator={accelerator}", *overrides))
    return {key: value for key, value in metrics.items() if not key.startswith("time/")}


PIXELS = {
    "gaussian": ("grey", "dequantised"),
    "learned_sigma": ("grey", "dequantised"),
    "bernoulli": ("binarised",),
}
COMBINATIONS = [
    pytest.param(
        (f"likelihood={likelihood}", f"data.pixels={pixels}", f"objective={objective}"),
        # each likelihood and kind of pixels, and each objective, is in the fast ones
        marks=() if objective == "elbo" or likelihood == "bernoulli" else pytest.mark.slow,
    )
    for likelihood, kinds in PIXELS.items()
    for pixels in kinds
    for objective in ("elbo", "path", "beta", "warmup", "free_bits", "iwae")
]


@pytest.mark.parametrize("combination", COMBINATIONS, ids=" ".join)
def test_learning_steps_on_a_gpu_are_those_on_a_cpu(combination: Any, tmp_path: Path) -> None:
    """Training, validation and test of each objective, likelihood and kind of pixels: nothing of
    two devices meets, and the numbers are the CPU's."""
    expected = fitted(tmp_path / "cpu", "cpu", *QUIET, *combination)
    with emulated_gpu():
        assert fitted(tmp_path / "gpu", "gpu", *QUIET, *combination) == expected


# Where a run waits for the device, and why that is no loss: it is seldom, or the host needs the
# value. What runs in every step is not among them.
EXPECTED_WAITS = {
    "analysis/chain.py:drift": "a number of the table, once a step of the chain at the end",
    "analysis/chain.py:local_gain": "eigenvalues are found on the CPU",
    "analysis/chain.py:simulate": "frames and states are kept on the CPU",
    "plots/images.py:tile": "a picture is drawn by the CPU",
    "plots/latents.py:*": "likewise",
    "theory/ppca.py:cached": "the closed form, on the CPU, once a run",
    "theory/ppca.py:as_rows": "likewise, in float64",
    "theory/linear.py:*": "likewise",
    "training/checkpoints.py:save_best": "whether this validation was the best",
    "training/finite.py:on_validation_epoch_end": "whether training is finite, once a validation",
    "training/history.py:*": "a row of history.csv",
    "training/loggers.py:*": "a logger's numbers",
    "training/metrics.py:<dictcomp>": "means over a split, once a validation",
    "training/progress.py:*": "a line on the screen, once a validation",
    "training/schedules.py:run_length": "Lightning counts the batches, once a run",
    "models/likelihoods.py:sigma": "a learned sigma as a number, once a validation",
    "train.py:train": "Lightning: batches counted, results and weights to the CPU at the end",
}


def unexpected(waits: Counter[str]) -> list[str]:
    expected = {*EXPECTED_WAITS}
    return sorted(w for w in waits if not {w, f"{w.rpartition(':')[0]}:*"} & expected)


@pytest.mark.parametrize(
    "overrides",
    [
        ["model=deep"],
        pytest.param(["model=baseline"], marks=pytest.mark.slow),
        pytest.param(["model=conv"], marks=pytest.mark.slow),
        pytest.param(["likelihood=learned_sigma"], marks=pytest.mark.slow),
    ],
    ids=" ".join,
)
def test_a_whole_run_on_a_gpu_is_that_on_a_cpu(overrides: list[str], tmp_path: Path) -> None:
    """With every picture, checkpoint and logger of a default run."""
    pictures = ("chain", "elbo_curves", "reconstructions", "prior_samples", "posterior_collapse")
    often = [f"callbacks.{name}.every_n_epochs=1" for name in pictures]
    often += ["callbacks.chain.steps=10", "trainer.max_epochs=2"]
    expected = fitted(tmp_path / "cpu", "cpu", *often, *overrides)
    with emulated_gpu() as gpu:
        assert fitted(tmp_path / "gpu", "gpu", *often, *overrides) == expected
    for name in pictures:
        assert (tmp_path / "gpu" / "figures" / f"{name}.png").is_file(), name
    assert unexpected(gpu.waits) == []


def test_a_run_resumes_on_a_gpu(tmp_path: Path) -> None:
    flat = [*QUIET, "scheduler=none", "optimizer.lr=0.0001"]
    with emulated_gpu():
        expected = fitted(tmp_path / "whole", "gpu", *flat, "trainer.max_epochs=3")
        fitted(tmp_path / "part", "gpu", *flat, "trainer.max_epochs=2")
        longer = settings("trainer.accelerator=gpu", *flat, "trainer.max_epochs=3")
        resumed = train(longer, tmp_path / "part")
    assert {key: resumed[key] for key in expected} == expected


# --- within a step --------------------------------------------------------------------------------


class Within(L.Callback):
    """What the device waits for and gets from the first step of an epoch to its last."""

    def __init__(self, gpu: EmulatedGPU) -> None:
        self.gpu, self.waits, self.copies = gpu, Counter[str](), Counter[str]()
        self.before = (Counter[str](), Counter[str]())

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:
            self.before = self.gpu.waits.copy(), self.gpu.copies.copy()

    def on_train_batch_end(
        self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.waits = self.gpu.waits - self.before[0]
        self.copies = self.gpu.copies - self.before[1]


class Asks(LitVAE):
    """A learning step as one might write it: it looks at its loss."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        outputs = super().training_step(batch, batch_idx)
        self.last_loss = outputs["loss"].item()
        return outputs


def within_steps(
    monkeypatch: pytest.MonkeyPatch, folder: Path, *overrides: str
) -> tuple[Counter[str], Counter[str], int]:
    """Waits and copies within the epoch of a run of 80 steps, and the number of steps."""
    from vae.training import build

    with emulated_gpu() as gpu:
        within, order = Within(gpu), build.order_callbacks
        monkeypatch.setattr(build, "order_callbacks", lambda *a: [within, *order(*a), within])
        fitted(folder, "gpu", *QUIET, "data.batch_size=5", *overrides)
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    return within.waits, within.copies, checkpoint["global_step"]


@pytest.mark.parametrize(
    "overrides",
    [
        ["learning=litvae"],
        ["learning=blocks"],
        ["data.pixels=dequantised", "objective=iwae", "likelihood=learned_sigma"],
        ["data.pixels=binarised", "likelihood=bernoulli", "objective=free_bits"],
        pytest.param(
            ["model=conv", "objective=warmup", "callbacks=default"], marks=pytest.mark.slow
        ),
        ["trainer.gradient_clip_val=1", "trainer.accumulate_grad_batches=2"],
        ["optimizer=adamw", "scheduler=warmup_cosine"],
    ],
    ids=" ".join,
)
def test_a_step_neither_waits_for_the_gpu_nor_copies_to_it(
    overrides: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Batches come from the device, random numbers are drawn there, no value is asked for."""
    waits, copies, steps = within_steps(monkeypatch, tmp_path / "run", *overrides)
    assert (waits, copies) == ({}, {})
    assert steps == (40 if "trainer.accumulate_grad_batches=2" in overrides else 80)


def test_a_wait_in_a_step_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("vae.training.LitVAE", Asks)
    waits, _copies, steps = within_steps(monkeypatch, tmp_path / "run")
    assert sum(waits.values()) == steps == 80


def test_data_are_moved_once() -> None:
    """Pixels, labels and indices, then the fixed noise of a split; of an epoch its order alone."""
    config = settings("data.pixels=binarised")
    data = vae.ImageDataModule(**{k: v for k, v in config.data.items() if k != "_target_"})
    data.prepare_data()
    data.setup("fit")
    data.setup("test")
    with emulated_gpu() as gpu:
        data._move_to(torch.device("cuda"))
        assert sum(gpu.copies.values()) == 2 + 2 + 3  # train and val are of one file
        gpu.copies.clear()
        for _epoch in range(3):
            data._move_to(torch.device("cuda"))
            for batch in data.loader("train", shuffle_seed=0, training=True):
                assert batch.pixels.is_cuda
                assert batch.labels.is_cuda
        assert gpu.copies == {"data/batches.py:__iter__": 3}
        for split in ("val", "test"):
            for _ in range(2):
                assert all(batch.images().is_cuda for batch in data.loader(split))
                assert data.images(split, 16).is_cuda
                assert data.split_labels(split).is_cuda
        assert gpu.copies == {"data/batches.py:__iter__": 3, "data/datamodule.py:fixed_noise": 2}
    assert not gpu.waits


# --- evaluation -----------------------------------------------------------------------------------

ESTIMATORS = [
    *("iwae.images=12", "iwae.K=[1,10]", "gap.images=4", "gap.K=20", "gap.steps=10"),
    *("ais.images=4", "ais.chains=3", "ais.distributions=5", "ais.leapfrog=2"),
    *("bdmc.images=3", "bdmc.chains=2", "bdmc.distributions=5", "ppc.images=4"),
    *("chain.chains=12", "chain.steps=100", "samples.n=150", "classifier.epochs=1"),
]


@pytest.mark.parametrize(
    "model",
    ["baseline", *(pytest.param(name, marks=pytest.mark.slow) for name in ("deep", "conv"))],
)
def test_estimators_on_a_gpu_give_what_they_give_on_a_cpu(model: str, tmp_path: Path) -> None:
    """Bounds, AIS, BDMC, inference gap, refit, predictive check, chain and sample metrics."""
    run = tmp_path / "run"
    fitted(run, "cpu", *QUIET, f"model={model}")
    found = {}
    for accelerator in ("cpu", "gpu"):
        where = (f"accelerator={accelerator}", f"classifier.folder={tmp_path / accelerator}")
        config = composed("evaluate", f"run={run}", *where, *ESTIMATORS)
        if accelerator == "gpu":
            with emulated_gpu():
                evaluate(config)
        else:
            evaluate(config)
        found[accelerator] = json.loads((run / "evaluation.json").read_text())
    timeless = [
        {key: value for key, value in metrics.items() if not key.startswith("time/")}
        for metrics in found.values()
    ]
    assert {"ais/log_p", "bdmc/lower", "gap/amortisation", "samples/fid"} <= timeless[0].keys()
    assert timeless[0] == timeless[1]
