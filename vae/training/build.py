"""A run's objects, from its settings."""

import os
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import ModelCheckpoint, ProgressBar, WeightAveraging
from omegaconf import DictConfig

from vae.models.vae import count_parameters
from vae.runs.checkpoints import LAST, checkpoint_to_resume
from vae.runs.errors import UserError
from vae.runs.validation import Builder, incompatibilities
from vae.training import loggers
from vae.training.blocks import BlockTraining, block_problems
from vae.training.checkpoints import AtomicCheckpointIO, BestAndLast
from vae.training.devices import device_problems, resolve_precision
from vae.training.finite import FiniteCheck
from vae.training.history import History
from vae.training.hooks import NoProfiler, skip_empty_hooks
from vae.training.resume import ExactResume, without_finders
from vae.training.schedules import as_schedule
from vae.training.shutdown import SignalHandler


def check_test_limit(trainer: Any, data: Any) -> None:
    """Raise UserError where a fraction of a split's test batches is none: known before training."""
    limit = trainer.limit_test_batches
    if not 0 < limit < 1:  # a fraction
        return
    data.setup("test")
    for split, loader in zip(data.test_splits, data.test_dataloader(), strict=True):
        if limit * len(loader) < 1:
            raise UserError(
                f"trainer.limit_test_batches={limit}: less than one of the {len(loader)} batches "
                f"of {split} images, which are tested too"
            )


def build_run(config: DictConfig, folder: Path) -> tuple[Any, ...]:
    """Data module, LightningModule, Trainer, signal handler, and the checkpoint to resume from.

    Raises UserError with every problem of the settings at once.
    """
    # 1. What is trained, on which data.
    build = Builder(config)
    build.require("data", "model", "objective", "optimizer", "learning", "seed", "trainer")
    build.seed()
    data = build("data", seed=config.seed)
    model = build("model")
    build.problems += incompatibilities(model, data)
    parts = {"objective": build("objective"), "optimizer": build("optimizer")}
    node = build.config["scheduler"] if build("scheduler") is not None else None
    parts["scheduler"] = as_schedule(node, build.instantiate)

    # 2. What goes along: callbacks, the logger, signals.
    resume = checkpoint_to_resume(folder)
    chosen = loggers.build_loggers(build, folder, resume)
    logger = loggers.FaultTolerantLogger(chosen, build.config, folder, resume)
    signals = SignalHandler(folder / LAST, build.config.get("save_every_n_steps", 0))
    callbacks = build.each("callbacks")
    if resume is not None:
        callbacks = without_finders(callbacks, build.problems)
    callbacks = order_callbacks(callbacks, build.config, signals, folder)

    # 3. The Trainer.
    settings = build.config["trainer"]
    build.problems += device_problems(settings)
    settings["precision"] = resolve_precision(
        settings.get("precision", "32-true"),
        settings.get("accelerator", "auto"),
        count_parameters(model) if model is not None else 0,
    )
    trainer = build(
        "trainer",
        callbacks=callbacks,
        logger=logger,
        plugins=[AtomicCheckpointIO()],
        profiler=settings.get("profiler") or NoProfiler(),
        default_root_dir=str(folder),
    )
    build.finish(folder)
    skip_empty_hooks(trainer.callbacks)
    module = build("learning", model=model, **parts)
    build.problems += block_problems(trainer) if isinstance(module, BlockTraining) else []
    build.finish(folder)
    kept = ("model", "objective", "optimizer", "scheduler")
    module.hparams.update({name: build.config.get(name) for name in kept})

    # 4. The processor.
    if trainer.strategy.root_device.type == "cpu":
        # Lightning has torch look for NVIDIA's library, and Adam asks at every step: 5 % of a small
        # model's time.
        os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "0"
    if threads := build.config.get("threads"):
        os.environ["OMP_NUM_THREADS"] = str(threads)  # for processes that DDP starts
        torch.set_num_threads(threads)
    return data, module, trainer, signals, resume


def order_callbacks(chosen: list[Any], config: dict[str, Any], signals: Any, folder: Path) -> list:
    """The chosen callbacks and those of every run, in the order that their hooks need.

    Pictures are drawn before WeightAveraging takes its weights back; a checkpoint within an epoch
    is saved after everything else has seen the batch.
    """

    settings = config["trainer"]
    if settings.get("enable_progress_bar") is False:
        chosen = [c for c in chosen if not isinstance(c, ProgressBar)]
    for callback in chosen:
        if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
            callback.dirpath = str(folder / "checkpoints")
    averaging = [c for c in chosen if isinstance(c, WeightAveraging)]
    others = [c for c in chosen if c not in averaging]
    always = [FiniteCheck(config.get("skip_bad_steps", False)), ExactResume()]
    best = [] if settings.get("enable_checkpointing") is False else [BestAndLast(folder)]
    return [History(folder), *others, *always, *averaging, signals, *best]
