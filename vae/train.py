"""Train a VAE, test it, leave a run folder.

python -m vae.train model=baseline|deep [any.key=value …]
"""

import sys
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from vae import config_folder
from vae.command import command
from vae.jobs import run_job
from vae.runs.errors import UserError, report_errors
from vae.runs.files import hydra_override


@command("train", "lightning.pytorch")
def main(config: DictConfig) -> float | None:
    """Returns the validation ELBO of the best checkpoint, for a sweeper to maximise."""
    flush_denormals()
    hydra_config = HydraConfig.get()
    folder = Path(hydra_config.runtime.output_dir)
    if hydra_config.mode == RunMode.MULTIRUN:
        return run_job(train, config, folder)
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
    from vae.training.best_weights import load_best_weights, save_swa_average
    from vae.training.build import build_run, check_test_limit
    from vae.training.devices import translate_lightning_errors
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
    with (
        files.folder_lock(folder),
        signals,
        logger_context(trainer.logger),
        translate_lightning_errors(),
    ):
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
        save_swa_average(trainer, module, folder)

        # 4. Testing, on all three splits.
        tested = load_best_weights(trainer, module, folder)
        trainer.test(module, data, verbose=False)
        metrics = module.test_metrics | run_table.run_metrics(trainer, module, data)
        if first:
            if not trainer.fast_dev_run:
                files.write_json(folder / "metrics.json", metrics)
                trainer.logger.log_final(metrics, trainer.global_step)
            print(run_table.table(model, metrics), f"run folder: {folder}", sep="\n")
            print(f"tested: {tested}")
    return metrics


GROUP_NONE = {"logger=false": "logger=none"}  # beyond Hydra's own grammar for groups
GROUP_NONE |= {f"{group}=null": f"{group}=none" for group in ("logger", "scheduler", "callbacks")}


def expand_resume(arguments: list[str]) -> list[str]:
    """Arguments for Hydra: `resume=<run folder>` works in that folder and keeps its settings.

    Raises UserError where they name another folder too, and in a sweep.
    """
    arguments = [GROUP_NONE.get(argument, argument) for argument in arguments]
    folders = [a.removeprefix("resume=") for a in arguments if a.startswith("resume=")]
    if not folders:
        return arguments
    if {"-m", "--multirun"} & {*arguments}:
        raise UserError(
            "resume= takes one run; to resume a sweep, repeat its command with "
            "hydra.sweep.dir=<its folder>"
        )
    resume, here = f"resume={folders[-1]}", f"hydra.run.dir={folders[-1]}"
    for argument in arguments:
        if argument.startswith("hydra.run.dir=") and argument != here:
            raise UserError(f"{argument}: {resume} works in the run's own folder")
    at = arguments.index(resume)
    folder = folders[-1]
    if Path(folder).is_dir():  # a sweep's runs have = and , in their names
        resume, here = (hydra_override(key, folder) for key in ("resume", "hydra.run.dir"))
    # before any flag of Hydra's
    return [*arguments[:at], resume, here, "hydra.output_subdir=null", *arguments[at + 1 :]]


@report_errors
def check_group_choices(arguments: list[str]) -> None:
    """Hydra would answer model=null with a traceback."""
    groups = {f"{path.name}=null" for path in Path(config_folder()).iterdir() if path.is_dir()}
    if found := sorted(groups & {*arguments}):
        names = [(choice, choice.removesuffix("=null")) for choice in found]
        raise UserError(*(f"{choice}: name one of conf/{group}" for choice, group in names))


def cli() -> None:
    """The command, as `python -m vae.train` and as the console script `vae-train`."""
    sys.argv[1:] = report_errors(expand_resume)(sys.argv[1:])
    check_group_choices(sys.argv[1:])
    main()


if __name__ == "__main__":
    cli()
