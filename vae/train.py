"""Train a VAE, test it, leave a run folder.

python -m vae.train model=baseline|deep [any.key=value …]
"""

import os
import sys
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from vae import config_folder
from vae.command import command
from vae.jobs import job
from vae.runs.errors import UserError, report_errors


@command("train", "lightning.pytorch")
def main(config: DictConfig) -> float | None:
    """Returns the validation ELBO of the best checkpoint, for a sweeper to maximise."""
    flush_denormals()
    hydra_config = HydraConfig.get()
    folder = Path(hydra_config.runtime.output_dir)
    if hydra_config.mode == RunMode.MULTIRUN:
        return job(train, config, folder)
    from vae.runs import files
    from vae.runs.checkpoints import LAST
    from vae.runs.folder import discard_empty_run, saved_config

    if config.get("resume") is not None:
        task: Any = OmegaConf.to_container(hydra_config.overrides.task, resolve=False)
        config = saved_config(folder, task, config)
        if files.is_rank_zero() and not (folder / LAST).exists():
            print(f"{folder} has no checkpoint yet: it starts from the beginning")
    try:
        return train(config, folder).get("val/elbo", float("nan"))
    except UserError:
        discard_empty_run(folder)
        raise


def flush_denormals() -> None:
    """Have this process round numbers below 1e-38 to zero, before torch starts its threads.

    A linear decoder's weights for pixels that are black in all images shrink to such numbers, with
    which many processors compute slowly: an epoch of the baseline took 2.5 s instead of 1.1. Set
    for a command's process alone: a thread takes the setting of the one that started it.
    """
    import torch

    torch.set_flush_denormal(True)


def train(config: DictConfig, folder: Path) -> dict[str, float]:
    """One run from settings to metrics, which come back; everything it makes goes into `folder`.

    Resumes from `checkpoints/last.ckpt` where the folder has one. Raises UserError with every
    problem of the settings at once, RunError where the data cannot be had.
    """
    # Heavy imports wait until a run starts, so that --help answers at once.
    from vae.data.datamodule import SPLITS
    from vae.reports import run_table
    from vae.runs import files
    from vae.runs import folder as runs
    from vae.runs.checkpoints import check_checkpoints
    from vae.training.devices import lightning_refusals
    from vae.training.keep import keep_average, load_kept
    from vae.training.loggers import logger_context
    from vae.training.progress import silence_lightning

    silence_lightning()

    # 1. Settings become objects.
    data, module, trainer, signals, resume = build_run(config, folder)
    first = trainer.is_global_zero  # of the processes of one run, the one that writes files

    # 2. The data.
    data.prepare_data()
    data.setup("fit")
    data.test_splits = SPLITS
    model = module.model

    # 3. Training.
    with files.folder_lock(folder), signals, logger_context(trainer.logger), lightning_refusals():
        check_test_limit(trainer, data)
        if resume is not None:
            check_checkpoints(model, trainer.max_epochs, trainer.max_steps, folder)
        if first and not trainer.fast_dev_run:
            for partial in folder.glob("checkpoints/.*.partial"):  # of a process that was killed
                partial.unlink()
            runs.write_resolved_config(config, folder)
            environment = runs.environment(config.seed, trainer.strategy.root_device)
            environment["precision"] = trainer.precision  # which one `fastest` was
            files.write_json(folder / "environment.json", environment)
        trainer.fit(module, data, ckpt_path=resume, weights_only=True)
        keep_average(trainer, module, folder)

        # 4. Testing, on all three splits.
        tested = load_kept(trainer, module, folder)
        trainer.test(module, data, verbose=False)
        metrics = module.test_metrics | run_table.run_metrics(trainer, module, data)
        if first:
            if not trainer.fast_dev_run:
                files.write_json(folder / "metrics.json", metrics)
                trainer.logger.log_final(metrics, trainer.global_step)
            print(run_table.table(model, metrics), f"run folder: {folder}", sep="\n")
            print(f"tested: {tested}")
    return metrics


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
    import torch

    from vae.models.vae import count_parameters
    from vae.runs.checkpoints import LAST, checkpoint_to_resume
    from vae.runs.validation import Builder, incompatibilities
    from vae.training import loggers
    from vae.training.blocks import BlockTraining, block_problems
    from vae.training.checkpoints import AtomicCheckpointIO
    from vae.training.devices import resolve_precision, unavailable
    from vae.training.hooks import NoProfiler, skip_empty_hooks
    from vae.training.resume import without_finders
    from vae.training.schedules import as_schedule
    from vae.training.shutdown import SignalHandler

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
    build.problems += unavailable(settings)
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
    from lightning.pytorch.callbacks import ModelCheckpoint, ProgressBar, WeightAveraging

    from vae.training.checkpoints import BestAndLast
    from vae.training.finite import FiniteCheck
    from vae.training.history import History
    from vae.training.resume import ExactResume

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


GROUP_NONE = {"logger=false": "logger=none"}  # beyond Hydra's own grammar for groups
GROUP_NONE |= {f"{group}=null": f"{group}=none" for group in ("logger", "scheduler", "callbacks")}


def resumed(arguments: list[str]) -> list[str]:
    """Arguments for Hydra: `resume=<run folder>` works in that folder and keeps its settings.

    Raises UserError where they name another folder too, and in a sweep.
    """
    arguments = [GROUP_NONE.get(argument, argument) for argument in arguments]
    folders = [a.removeprefix("resume=") for a in arguments if a.startswith("resume=")]
    if not folders:
        return arguments
    if {"-m", "--multirun"} & {*arguments}:
        raise UserError("resume= takes one run; the sweep's own command again resumes a sweep")
    resume, here = f"resume={folders[-1]}", f"hydra.run.dir={folders[-1]}"
    for argument in arguments:
        if argument.startswith("hydra.run.dir=") and argument != here:
            raise UserError(f"{argument}: {resume} works in the run's own folder")
    at = arguments.index(resume) + 1  # before any flag of Hydra's
    return [*arguments[:at], here, "hydra.output_subdir=null", *arguments[at:]]


@report_errors
def refuse_no_choice(arguments: list[str]) -> None:
    """Hydra would answer model=null with a traceback."""
    groups = {f"{path.name}=null" for path in Path(config_folder()).iterdir() if path.is_dir()}
    if found := sorted(groups & {*arguments}):
        names = [(choice, choice.removesuffix("=null")) for choice in found]
        raise UserError(*(f"{choice}: name one of conf/{group}" for choice, group in names))


def cli() -> None:
    """The command, as `python -m vae.train` and as the console script `vae-train`."""
    sys.argv[1:] = report_errors(resumed)(sys.argv[1:])
    refuse_no_choice(sys.argv[1:])
    main()


if __name__ == "__main__":
    cli()
