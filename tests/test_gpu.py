"""On a real GPU, where there is one: make test-gpu. All other tests compute on the CPU.

Numbers of a GPU are not those of a CPU to the last digit, and its noise is another: what is asked
for is that they agree as two seeds do, and that replayed steps agree with launched ones.
"""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

import lightning.pytorch as L
import pytest
import torch
from conftest import FIGURES, ROOT, composed, settings, timeless_metrics, train_run

from vae.data.datamodule import ImageDataModule
from vae.evaluate import evaluate
from vae.export import export
from vae.training import LitVAE, cuda_graphs

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU: make test-gpu"),
]
QUIET = ("callbacks=none", "logger=none", "trainer.accelerator=gpu")


def trained(folder: Path, *overrides: str) -> dict[str, float]:
    train_run(folder, settings(*overrides))
    return timeless_metrics(folder)


@pytest.mark.parametrize("graph", ["false", "true"])
@pytest.mark.parametrize(
    ("model", "elbo", "error"), [("baseline", 200.82, 0.7), ("deep", 280.49, 2.0)]
)
def test_the_lab_ends_where_it_ends_on_a_cpu(
    model: str, elbo: float, error: float, graph: str, mnist: ImageDataModule, tmp_path: Path
) -> None:
    """Within what three seeds on a CPU differ by: standard deviations of 0.24 and 0.73 nats."""
    where = [
        "data=mnist",
        f"data.root={mnist.root}",
        f"model={model}",
        f"learning.cuda_graph={graph}",
    ]
    metrics = trained(tmp_path / "run", *where, "trainer.accelerator=gpu")
    print(model, graph, metrics["test/elbo"], metrics["test/collapsed"])
    assert metrics["oracle/test_elbo"] == pytest.approx(202.29, abs=0.005)
    assert metrics["test/elbo"] == pytest.approx(elbo, abs=error)
    for name in FIGURES:
        assert (tmp_path / "run" / "figures" / f"{name}.png").is_file()
    assert (tmp_path / "run" / "videos" / "chain.gif").is_file()
    environment = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert environment["device"] == torch.cuda.get_device_name()


@pytest.mark.parametrize(
    "overrides",
    [
        ("model=deep",),
        ("model=conv", "trainer.deterministic=warn"),
        ("learning=blocks",),
        ("trainer.precision=bf16-mixed", "model=deep"),
        ("trainer.precision=16-mixed", "model=deep"),
        ("trainer.accumulate_grad_batches=2", "trainer.gradient_clip_val=1"),
        ("objective=warmup", "data.pixels=dequantised", "likelihood=learned_sigma"),
        ("objective=iwae", "data.pixels=binarised", "likelihood=bernoulli"),
        ("objective=free_bits",),
    ],
    ids=" ".join,
)
def test_replayed_steps_are_launched_ones(overrides: tuple[str, ...], tmp_path: Path) -> None:
    """The same noise and, but for rounding, the same numbers."""
    short = (*QUIET, "data.batch_size=50", "trainer.max_epochs=3", *overrides)
    launched = trained(tmp_path / "launched", *short, "learning.cuda_graph=false")
    with mock.patch.object(cuda_graphs, "record", wraps=cuda_graphs.record) as recorded:
        replayed = trained(tmp_path / "replayed", *short, "learning.cuda_graph=true")
    assert recorded.called
    assert replayed == pytest.approx(launched, rel=1e-4, abs=1e-4)


class NoWaits(L.Callback):
    """From the second step of an epoch to its last, nothing may wait for the device."""

    def on_train_batch_end(self, *_: Any) -> None:
        torch.cuda.set_sync_debug_mode("error")

    def on_train_epoch_end(self, *_: Any) -> None:
        torch.cuda.set_sync_debug_mode("default")

    on_validation_start = on_train_epoch_end


@pytest.mark.parametrize("learning", ["litvae", "blocks"])
@pytest.mark.parametrize("graph", ["false", "true"])
def test_no_step_waits_for_the_device(
    learning: str, graph: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vae.training import build

    order = build.order_callbacks
    monkeypatch.setattr(build, "order_callbacks", lambda *a: [*order(*a), NoWaits()])
    where = (f"learning={learning}", f"learning.cuda_graph={graph}", "data.batch_size=5")
    try:
        assert trained(tmp_path / "run", *QUIET, *where, "trainer.max_epochs=2")["test/elbo"]
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_killed_run_ends_as_the_whole_one(mnist: ImageDataModule, tmp_path: Path) -> None:
    run, whole = tmp_path / "killed", tmp_path / "whole"
    short = ["model=deep", f"data.root={mnist.root}", *QUIET, "trainer.max_epochs=8"]
    line = [sys.executable, "-m", "vae.train", *short]
    subprocess.run([*line, f"hydra.run.dir={whole}"], cwd=ROOT, check=True, capture_output=True)
    with subprocess.Popen([*line, f"hydra.run.dir={run}"], cwd=ROOT) as process:
        deadline = time.monotonic() + 90
        while not (run / "checkpoints" / "last.ckpt").exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        time.sleep(0.3)
        process.send_signal(signal.SIGKILL)
    assert not (run / "metrics.json").exists()
    resume = [sys.executable, "-m", "vae.train", f"resume={run}"]
    subprocess.run(resume, cwd=ROOT, check=True, capture_output=True)
    assert timeless_metrics(run) == pytest.approx(timeless_metrics(whole), rel=1e-6)


def test_a_run_is_judged_as_on_a_cpu(tmp_path: Path) -> None:
    """Closed forms and what depends on the weights alone agree; estimates with noise of their own
    agree within their errors."""
    run = tmp_path / "run"
    trained(run, "trainer.max_epochs=30", "model.latent_dim=4", "model.sigma=0.5", *QUIET)
    few = ["iwae.images=60", "iwae.K=[1,100]", "gap.images=20", "gap.steps=60", "ais.images=20"]
    few += ["ais.distributions=100", "bdmc.images=8", "bdmc.distributions=100", "ppc.images=5"]
    few += ["chain.chains=50", "chain.steps=120", "samples.n=300", f"classifier.folder={tmp_path}"]
    cpu, gpu = (
        evaluate(composed("evaluate", f"run={run}", f"accelerator={device}", *few))
        for device in ("cpu", "gpu")
    )
    for key in ("test/elbo", "test/kl", "refit/sigma", "exact/log_p"):
        assert gpu[key] == pytest.approx(cpu[key], rel=1e-4), key
    assert gpu["ais/log_p"] == pytest.approx(cpu["ais/log_p"], abs=0.5)
    assert gpu["bdmc/lower"] <= gpu["bdmc/upper"] + 0.5


def test_a_run_is_exported(tmp_path: Path) -> None:
    run = tmp_path / "run"
    trained(run, "trainer.max_epochs=2", "model.latent_dim=4", *QUIET)
    assert export(composed("export", f"run={run}"))["latent_dim"] == 4


def test_a_step_of_ones_own_trainer_uses_the_gpu(tmp_path: Path) -> None:
    """A plain Trainer, a plain loader."""
    learning = LitVAE(composed("train").model, cuda_graph=True)
    images = torch.rand(200, 1, 28, 28)
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False)
    trainer = L.Trainer(accelerator="gpu", devices=1, max_epochs=2, **quiet)
    trainer.fit(learning, torch.utils.data.DataLoader(images, batch_size=40))
    assert len(learning.compute_loss.graphs) == 1
    assert trainer.callback_metrics["train/elbo"].isfinite()
