"""What Lightning's documentation promises, row by row: each argument has its effect here, or a line
that refuses it. The table in docs/running.md says the same."""

import math
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import torch
from conftest import run_vae, settings

import vae
from vae.data.batches import as_batch
from vae.runs.checkpoints import BEST, LAST
from vae.runs.errors import UserError
from vae.runs.folder import load_data
from vae.train import train
from vae.training import devices
from vae.training.history import read_history
from vae.training.hooks import STEP_HOOKS
from vae.training.module import LitVAE

# 400 training images make 8 batches an epoch, 100 validation and 300 test images one each.
BASE = ["callbacks=none", "logger=none", "data.batch_size=50", "model.latent_dim=2", "threads=1"]
BASE += ["trainer.accelerator=cpu", "trainer.max_epochs=2"]


class Recorder(L.Callback):
    """Counts what a run did; `latest` is that of the last run made by settings."""

    latest: "Recorder"

    def __init__(self) -> None:
        self.batches, self.steps, self.validations = [0], 0, 0
        self.norms: list[float] = []
        self.rates: list[float] = []
        self.seen: list[list[int]] = []
        Recorder.latest = self

    def on_train_epoch_start(self, trainer: L.Trainer, *_: Any) -> None:
        self.batches.append(0)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, idx: int
    ) -> None:
        self.batches[-1] += 1
        gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
        self.norms.append(torch.stack([g.norm() for g in gradients]).norm().item())
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])
        index = as_batch(batch).index
        self.seen.append([] if index is None else index.tolist())
        self.steps = trainer.global_step

    def on_validation_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.validations += trainer.state.fn == "fit" and not trainer.sanity_checking


def run(folder: Path, *overrides: str) -> tuple[Recorder, dict[str, float]]:
    recorder = "+callbacks.recorder={_target_: test_lightning.Recorder}"
    metrics = train(settings(*BASE, recorder, *overrides), folder)
    return Recorder.latest, metrics


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recorder, dict[str, float]]:
    return run(tmp_path_factory.mktemp("plain") / "run")


def timeless(metrics: dict[str, float]) -> dict[str, float]:
    return {key: value for key, value in metrics.items() if not key.startswith("time/")}


def test_a_plain_run_takes_every_batch(plain: tuple[Recorder, dict[str, float]]) -> None:
    recorder, metrics = plain
    assert recorder.batches[1:] == [8, 8]
    assert (recorder.steps, recorder.validations) == (16, 2)
    assert (metrics["train/images"], metrics["test/images"]) == (400, 300)


class Counter(L.Callback):
    """Counts the calls of hooks, each defined in another way, one it calls itself, and notes which
    ones the other callbacks have."""

    latest: "Counter"

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.on_before_backward = lambda *_: self.calls.append("on_before_backward")
        Counter.latest = self

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.on_before_zero_grad(trainer, pl_module, trainer.optimizers[0])
        self.others = {
            type(c).__name__: {name for name in STEP_HOOKS if getattr(c, name) is not None}
            for c in trainer.callbacks  # type: ignore[attr-defined]
        }

    def on_train_batch_start(self, *_: Any) -> None:
        self.calls.append("on_train_batch_start")


def test_hooks_are_called_where_a_callback_has_them(tmp_path: Path) -> None:
    run(tmp_path, "+callbacks.own={_target_: test_lightning.Counter}")
    own = Counter.latest
    assert own.calls == ["on_train_batch_start", "on_before_backward"] * 16  # 2 epochs of 8 batches
    assert own.others["Counter"] == {*STEP_HOOKS}
    assert own.others["ExactResume"] == {"on_train_batch_end"}
    assert own.others["History"] == set()


# --- arguments of the Trainer ---------------------------------------------------------------------


def test_gradients_are_clipped(tmp_path: Path, plain: tuple[Recorder, dict[str, float]]) -> None:
    recorder, _ = run(tmp_path, "trainer.gradient_clip_val=1")
    assert min(plain[0].norms) > 100
    assert max(recorder.norms) == pytest.approx(1, abs=1e-3)


def test_gradients_are_accumulated(tmp_path: Path) -> None:
    recorder, _ = run(tmp_path, "trainer.accumulate_grad_batches=2")
    assert (recorder.batches[1:], recorder.steps) == ([8, 8], 8)


@pytest.mark.parametrize(
    ("override", "batches"),
    [
        ("trainer.limit_train_batches=0.5", [4, 4]),
        ("trainer.limit_train_batches=3", [3, 3]),
        ("trainer.overfit_batches=2", [2, 2]),
        ("trainer.overfit_batches=0.25", [2, 2]),
        ("trainer.fast_dev_run=true", [1]),
        ("trainer.fast_dev_run=3", [3]),
        ("trainer.max_steps=5", [5]),
        ("trainer.max_steps=11", [8, 3]),
        ("trainer.max_epochs=1", [8]),
    ],
)
def test_batches_are_counted_as_batches(tmp_path: Path, override: str, batches: list[int]) -> None:
    recorder, metrics = run(tmp_path, override, "data.eval_batch_size=25")
    assert recorder.batches[1:] == batches
    assert math.isfinite(metrics["test/elbo"])
    kept = "fast_dev_run" not in override
    assert (tmp_path / "metrics.json").exists() == (tmp_path / LAST).exists() == kept
    if kept:
        last = torch.load(tmp_path / LAST, weights_only=True)
        assert last["global_step"] == sum(batches)


def test_a_run_without_an_epoch_limit_ends_by_its_steps(tmp_path: Path) -> None:
    recorder, _ = run(tmp_path, "trainer.max_epochs=-1", "trainer.max_steps=20")
    assert (recorder.batches[1:], recorder.steps) == ([8, 8, 4], 20)
    assert recorder.rates[-1] < recorder.rates[0]  # the cosine has as many epochs


def test_overfitting_sees_the_same_batches(tmp_path: Path) -> None:
    recorder, _ = run(tmp_path, "trainer.overfit_batches=2")
    assert recorder.seen[:2] == recorder.seen[2:]


@pytest.mark.parametrize(
    ("override", "validations"),
    [
        ("trainer.val_check_interval=0.25", 8),
        ("trainer.val_check_interval=4", 4),
        ("trainer.check_val_every_n_epoch=2", 1),
        ("trainer.check_val_every_n_epoch=5", 0),
        ("trainer.limit_val_batches=0", 0),
        ("trainer.num_sanity_val_steps=2", 2),
    ],
)
def test_validations_come_when_asked_for(
    tmp_path: Path, override: str, validations: int, plain: tuple[Recorder, dict[str, float]]
) -> None:
    recorder, metrics = run(tmp_path, override)
    assert recorder.validations == validations
    assert (tmp_path / BEST).exists() == (validations > 0)
    assert len(read_history(tmp_path)) == validations
    assert metrics["test/elbo"] == plain[1]["test/elbo"]  # the last weights are the best here


def test_a_validation_within_an_epoch_can_be_the_best(tmp_path: Path) -> None:
    """With a learning rate that ruins the weights later on."""
    overrides = ["trainer.val_check_interval=1", "scheduler=onecycle", "scheduler.max_lr=0.05"]
    _, metrics = run(tmp_path, *overrides)
    rows = read_history(tmp_path)
    best = max(rows, key=lambda row: row["val/elbo"])
    assert torch.load(tmp_path / BEST, weights_only=True)["global_step"] == best["step"]
    assert metrics["val/elbo"] == pytest.approx(best["val/elbo"], rel=1e-5)


def test_limited_tests_say_so(tmp_path: Path) -> None:
    _, metrics = run(tmp_path, "trainer.limit_test_batches=1", "data.eval_batch_size=30")
    assert metrics["test/images"] == 30


def test_time_ends_a_run(tmp_path: Path) -> None:
    recorder, _ = run(tmp_path, "trainer.max_epochs=100000", "trainer.max_time=00:00:00:01")
    assert 8 < recorder.steps < 100_000
    assert torch.load(tmp_path / LAST, weights_only=True)["global_step"] == recorder.steps


@pytest.mark.parametrize("precision", ["64-true", "bf16-mixed", "fastest"])
def test_precisions_train(
    tmp_path: Path, precision: str, plain: tuple[Recorder, dict[str, float]]
) -> None:
    _, metrics = run(tmp_path, f"trainer.precision={precision}")
    # in 64-true the noise is drawn in double precision, so it is other noise
    assert metrics["test/elbo"] == pytest.approx(plain[1]["test/elbo"], rel=0.1)
    dtype = torch.load(tmp_path / BEST, weights_only=True)["state_dict"][
        "model.decoder.layers.0.bias"
    ].dtype
    assert dtype == (torch.float64 if precision == "64-true" else torch.float32)


@pytest.mark.parametrize(
    ("hardware", "parameters", "precision", "why"),
    [
        (False, 1_000_000, "32-true", "no bfloat16 hardware"),
        (True, 76_112, "32-true", "76,112 parameters gain nothing from bfloat16"),
        (True, 1_091_920, "bf16-mixed", "the hardware computes in bfloat16"),
    ],
)
def test_the_fastest_precision_depends_on_hardware_and_size(
    monkeypatch, caplog, hardware: bool, parameters: int, precision: str, why: str
) -> None:
    monkeypatch.setattr(devices, "computes_in_bfloat16", lambda _: hardware)
    with caplog.at_level("INFO"):
        assert devices.resolve_precision("fastest", "cpu", parameters) == precision
    assert caplog.messages == [f"trainer.precision=fastest: {precision} ({why})"]
    assert devices.resolve_precision("64-true", "cpu", parameters) == "64-true"


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("trainer.precision=16-true", "trainer.precision=16-true: the ELBO's squares"),
        ("trainer.strategy=ddp_spawn", "trainer.strategy=ddp_spawn: its processes end"),
        ("trainer.barebones=true", "trainer.barebones=true leaves out checkpoints"),
        ("trainer.default_root_dir=x", "trainer.default_root_dir: hydra.run.dir names"),
        ("trainer.max_epoch=3", "trainer.max_epoch: unknown; did you mean trainer.max_epochs?"),
    ],
)
def test_what_cannot_be_honoured_is_refused(tmp_path: Path, override: str, line: str) -> None:
    plus = "" if override.startswith(("trainer.precision", "trainer.strategy")) else "+"
    with pytest.raises(UserError) as refused:
        run(tmp_path, f"{plus}{override}")
    assert [p for p in refused.value.problems if p.startswith(line)], refused.value.problems


def test_an_interval_beyond_the_epoch_is_refused_in_a_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^trainer: `val_check_interval` \(1000\) must be less"):
        run(tmp_path, "trainer.val_check_interval=1000")


@pytest.mark.slow
def test_reports_are_printed_once(tmp_path: Path) -> None:
    """On the command line, where Hydra sets up logging before Lightning is imported."""
    reports = ["trainer.profiler=simple", "callbacks=model_summary"]
    folder = f"hydra.run.dir={tmp_path / 'run'}"
    done = run_vae("train", "data=digits", *BASE, *reports, "trainer.max_epochs=1", folder)
    assert done.returncode == 0, done.stderr
    printed = done.stdout + done.stderr
    assert printed.count("FIT Profiler Report") == 1
    assert printed.count("Trainable params") == 1
    assert (tmp_path / "run" / "train.log").read_text().count("FIT Profiler Report") == 1


def test_without_checkpoints_the_last_weights_are_tested(
    tmp_path: Path, plain: tuple[Recorder, dict[str, float]]
) -> None:
    _, metrics = run(tmp_path, "+trainer.enable_checkpointing=false")
    assert not (tmp_path / "checkpoints").exists()
    assert metrics["test/elbo"] == plain[1]["test/elbo"]


# --- optimisers and schedules ---------------------------------------------------------------------


def test_what_an_optimizer_says_against_its_arguments_is_one_line(tmp_path: Path) -> None:
    node = "optimizer={_target_: torch.optim.SGD, _partial_: true, lr: 0.1, nesterov: true}"
    with pytest.raises(UserError, match=r"^optimizer: Nesterov momentum requires a momentum"):
        run(tmp_path, node.replace("optimizer=", "++optimizer="), "~optimizer.fused")


def test_a_schedule_of_a_run_without_an_end_is_refused(tmp_path: Path) -> None:
    endless = ["trainer.max_epochs=-1", "trainer.max_time=00:00:00:01"]
    with pytest.raises(UserError, match=r"^scheduler: a run without an end has no length"):
        run(tmp_path / "cosine", *endless)
    recorder, metrics = run(tmp_path / "none", *endless, "scheduler=none")
    assert recorder.steps > 16
    assert metrics["test/images"] == 300


class OwnStep(LitVAE):
    """A learning step from scratch, which logs nothing."""

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:  # type: ignore[override]
        x = batch.images()
        eps = torch.randn(1, len(x), self.model.latent_dim)
        return -self.model.elbo_terms(x, eps[0])[0].elbo.mean()


def test_a_learning_step_from_scratch(tmp_path: Path, capfd: Any) -> None:
    own = "learning._target_=test_lightning.OwnStep"
    _, metrics = run(tmp_path, own, "callbacks=default", "callbacks.chain=null")
    rows = read_history(tmp_path)
    assert rows[-1]["val/elbo"] > rows[0]["val/elbo"]
    assert math.isnan(rows[-1]["train/elbo"])
    assert metrics["val/elbo"] == pytest.approx(rows[-1]["val/elbo"], rel=1e-6)


def test_weight_decay_needs_no_plus(tmp_path: Path) -> None:
    def norm(name: str, decay: float) -> float:
        run(tmp_path / name, "optimizer=adamw", f"optimizer.weight_decay={decay}")
        state = torch.load(tmp_path / name / LAST, weights_only=True)["state_dict"]
        return state["model.encoder.layers.0.weight"].norm().item()

    assert norm("strong", 10.0) < norm("weak", 0.0)


@pytest.mark.parametrize("optimizer", ["sgd", "rmsprop", "lbfgs"])
def test_other_optimisers_raise_the_elbo(tmp_path: Path, optimizer: str) -> None:
    rate = [] if optimizer == "lbfgs" else ["optimizer.lr=0.00001"]
    run(tmp_path, f"optimizer={optimizer}", *rate, "trainer.max_epochs=3")
    elbos = [row["val/elbo"] for row in read_history(tmp_path)]
    assert elbos[-1] > elbos[0]


@pytest.mark.parametrize(
    ("overrides", "rates"),
    [
        (["scheduler=none"], [1e-3] * 16),
        (["scheduler=cosine"], [1e-3] * 8 + [5e-4] * 8),
        (  # whichever ends the run
            ["scheduler=cosine", "trainer.max_steps=16", "trainer.max_epochs=30"],
            [1e-3] * 8 + [5e-4] * 8,
        ),
        (
            ["scheduler=cosine", "scheduler.interval=step"],
            [5e-4 * (1 + math.cos(math.pi * t / 16)) for t in range(16)],
        ),
        (
            ["scheduler=warmup_cosine", "scheduler.warmup_steps=4"],
            [1e-3 * (0.25 + 0.75 * t / 4) for t in range(4)]
            + [5e-4 * (1 + math.cos(math.pi * t / 12)) for t in range(12)],
        ),
        (["scheduler=steps", "scheduler.milestones=[1]"], [1e-3] * 8 + [1e-4] * 8),
    ],
    ids=lambda value: " ".join(value) if isinstance(value[0], str) else "",
)
@pytest.mark.parametrize("learning", ["litvae", "blocks"])
def test_schedules_follow_epochs_or_steps(
    tmp_path: Path, overrides: list[str], rates: list[float], learning: str
) -> None:
    if learning == "blocks" and "trainer.max_steps=16" in overrides:
        pytest.skip("blocks refuse max_steps")
    seen: list[float] = []
    step = torch.optim.Adam.step

    def noted(optimizer: torch.optim.Adam, *args: Any, **kwargs: Any) -> Any:
        seen.append(optimizer.param_groups[0]["lr"])
        return step(optimizer, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.Adam, "step", noted)
        run(tmp_path, f"learning={learning}", *overrides)
    assert seen == pytest.approx(rates, rel=1e-6)


def test_a_schedule_of_one_s_own_needs_its_target_alone(tmp_path: Path) -> None:
    own = "{_target_: torch.optim.lr_scheduler.StepLR, step_size: 1, gamma: 0.5}"
    recorder, _ = run(tmp_path, "scheduler=none", f"+scheduler={own}", "optimizer.lr=0.01")
    assert recorder.rates == [0.01] * 7 + [0.005] * 8 + [0.0025]  # stepped before the batch ends


def test_one_cycle_follows_the_steps_of_the_run(tmp_path: Path) -> None:
    recorder, _ = run(tmp_path, "scheduler=onecycle", "scheduler.max_lr=0.01")
    assert max(recorder.rates) == pytest.approx(0.01, rel=0.1)
    assert recorder.rates[-1] < 0.001


def test_plateau_lowers_the_rate_where_the_elbo_stays(tmp_path: Path) -> None:
    """A rise of less than 1000 nats counts as none here."""
    options = ["scheduler=plateau", "scheduler.patience=0", "scheduler.factor=0.5"]
    options += ["+scheduler.threshold=1000", "+scheduler.threshold_mode=abs"]
    recorder, _ = run(tmp_path, *options, "trainer.max_epochs=6")
    rate, best, rates = 1e-3, -math.inf, []
    for row in read_history(tmp_path):
        rates += [rate] * 8
        if row["val/elbo"] > best + 1000:
            best = row["val/elbo"]
        else:
            rate *= 0.5
    assert rate < 1e-3
    assert recorder.rates == pytest.approx(rates)


# --- callbacks ------------------------------------------------------------------------------------


def evaluated(folder: Path) -> float:
    """The test ELBO of the model that `load_run` opens, with the noise of a run's own test."""
    loaded = vae.load_run(folder)
    images = load_data(loaded.config).images("test")
    eps = torch.randn(300, 2, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return loaded.model.elbo_terms(images, eps)[0].elbo.mean().item()


@pytest.mark.parametrize("callback", ["ema", "swa"])
def test_averaged_weights_are_validated_tested_and_opened(
    tmp_path: Path, callback: str, plain: tuple[Recorder, dict[str, float]]
) -> None:
    _, metrics = run(tmp_path, f"callbacks=[none,{callback}]", "trainer.max_epochs=4")
    assert metrics["test/elbo"] == pytest.approx(evaluated(tmp_path), rel=1e-5)
    last = read_history(tmp_path)[-1]
    assert last["val/elbo"] == pytest.approx(metrics["val/elbo"], rel=1e-5)
    run(tmp_path / "without", "trainer.max_epochs=4")
    assert abs(metrics["test/elbo"] - evaluated(tmp_path / "without")) > 1


def test_early_stopping_stops(tmp_path: Path) -> None:
    options = ["callbacks=[none,early_stopping]", "callbacks.early_stopping.min_delta=100000"]
    recorder, _ = run(tmp_path, *options, "trainer.max_epochs=50")
    assert len(recorder.batches) - 1 < 50


def test_accumulation_by_epoch(tmp_path: Path) -> None:
    node = "{_target_: lightning.pytorch.callbacks.GradientAccumulationScheduler, "
    recorder, _ = run(tmp_path, f"+callbacks.mine={node} scheduling: {{1: 4}}}}")
    assert recorder.steps == 8 + 2


def test_a_checkpoint_callback_names_its_steps(tmp_path: Path) -> None:
    node = "{_target_: lightning.pytorch.callbacks.ModelCheckpoint, every_n_train_steps: 3, "
    run(tmp_path, f"+callbacks.mine={node} save_top_k: -1, filename: 'at-{{step}}'}}")
    files = sorted((tmp_path / "checkpoints").glob("at-*.ckpt"))
    steps = {torch.load(f, weights_only=True)["global_step"]: f.name for f in files}
    assert steps == {step: f"at-step={step}.ckpt" for step in (3, 6, 9, 12, 15)}


def test_the_finders_find(tmp_path: Path) -> None:
    recorder, _ = run(tmp_path / "lr", "callbacks=[none,lr_finder]", "scheduler=none")
    assert recorder.rates[-1] != 1e-3
    recorder, _ = run(tmp_path / "batch", "callbacks=[none,batch_size_finder]")
    assert recorder.batches[-1] < 8


def test_the_learning_rate_is_logged(tmp_path: Path) -> None:
    overrides = ["callbacks=[none,lr_monitor]", "logger=csv"]
    run(tmp_path, *overrides, "callbacks.lr_monitor.logging_interval=epoch")
    text = (tmp_path / "csv" / "metrics.csv").read_text()
    assert "lr-Adam" in text.splitlines()[0]


# --- many steps per call --------------------------------------------------------------------------


def test_blocks_give_the_same_floats(
    tmp_path: Path, plain: tuple[Recorder, dict[str, float]], caplog: pytest.LogCaptureFixture
) -> None:
    recorder, metrics = run(tmp_path, "learning=blocks", "learning.batches_per_block=3")
    assert recorder.batches[1:] == [3, 3]
    assert "callbacks: Recorder is called once for every 3 batches" in caplog.text
    assert recorder.steps == 16
    assert timeless(metrics) == timeless(plain[1])


@pytest.mark.parametrize(
    "overrides",
    [
        ("scheduler=plateau", "scheduler.patience=0", "scheduler.mode=min"),
        ("scheduler=plateau", "trainer.limit_val_batches=0"),
        ("scheduler=cosine", "+scheduler.frequency=2"),
        ("scheduler=cosine", "scheduler.interval=step", "+scheduler.frequency=3"),
    ],
    ids=" ".join,
)
def test_blocks_step_schedulers_as_lightning_does(
    tmp_path: Path, overrides: tuple[str, ...]
) -> None:
    overrides += ("trainer.max_epochs=4",)
    recorder, expected = run(tmp_path / "litvae", *overrides)
    assert (min(recorder.rates) < 1e-3) == ("trainer.limit_val_batches=0" not in overrides)
    blocks = ("learning=blocks", "learning.batches_per_block=3")
    assert timeless(run(tmp_path / "blocks", *blocks, *overrides)[1]) == timeless(expected)


@pytest.mark.parametrize(
    "override",
    [
        "scheduler.interval=step",
        "trainer.gradient_clip_val=1",
        "trainer.accumulate_grad_batches=2",
        "trainer.limit_train_batches=3",
        "trainer.max_steps=5",
        "callbacks=[none,ema]",
    ],
)
def test_blocks_refuse_what_needs_single_batches(tmp_path: Path, override: str) -> None:
    with pytest.raises(UserError, match="learning=blocks") as refused:
        run(tmp_path, "learning=blocks", "scheduler=plateau", override)
    assert override.split("=")[0].split(".")[0] in str(refused.value)


# --- in Python ------------------------------------------------------------------------------------


def test_a_checkpoint_loads_by_itself(tmp_path: Path) -> None:
    run(tmp_path, "model=deep", "scheduler=cosine")
    module = vae.LitVAE.load_from_checkpoint(tmp_path / BEST, weights_only=True)
    assert module.hparams["model"]["encoder"]["hidden"] == [512, 256]
    loaded = vae.load_run(tmp_path).model
    z = torch.randn(5, 2)
    with torch.no_grad():
        assert torch.equal(module.model.mean_image(z), loaded.mean_image(z))


def test_a_checkpoint_of_foreign_classes_builds_nothing(tmp_path: Path) -> None:
    run(tmp_path)
    checkpoint = torch.load(tmp_path / BEST, weights_only=True)
    checkpoint["hyper_parameters"]["model"]["_target_"] = "os.system"
    torch.save(checkpoint, tmp_path / BEST)
    with pytest.raises(UserError, match=r"os\.system is refused"):
        vae.LitVAE.load_from_checkpoint(tmp_path / BEST, weights_only=True)
