"""Train a pair, test it, leave a run folder: python -m vae.train model=baseline|deep [any.key=value
…]"""

import os
import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from vae.multirun import job
from vae.runs.errors import UserError, report_errors


@hydra.main(version_base="1.3", config_path="../conf", config_name="train")
@report_errors
def main(config: DictConfig) -> float:
    """Returns the validation ELBO of the kept checkpoint, for a sweeper to maximise."""
    hydra_config = HydraConfig.get()
    folder = Path(hydra_config.runtime.output_dir)
    if hydra_config.mode == RunMode.MULTIRUN:
        return job(train, config, folder)
    from vae.runs.folder import discard_empty_run, saved_config

    if config.get("resume") is not None:
        config = saved_config(folder, hydra_config.overrides.task, config)
    try:
        return train(config, folder)["val/elbo"]
    except UserError:
        discard_empty_run(folder)
        raise


def train(config: DictConfig, folder: Path) -> dict[str, float]:
    """One run from settings to figures: everything it makes goes into `folder`, its final figures
    come back.

    Goes on from `checkpoints/last.ckpt` where the folder has one. Raises UserError with every
    problem of the settings at once, RunError where the data cannot be had.
    """
    # Heavy imports wait until a run starts, so that --help answers at once.
    import torch

    from vae.reports import run_table
    from vae.runs import files
    from vae.runs import folder as runs
    from vae.runs.validation import Builder, incompatibilities
    from vae.theory.ppca import best_linear
    from vae.training import loggers
    from vae.training.checkpoints import AtomicCheckpointIO, BestAndLast
    from vae.training.history import History
    from vae.training.module import LitVAE
    from vae.training.progress import silence_lightning
    from vae.training.shutdown import SignalHandler

    silence_lightning()

    # 1. Settings become objects.
    build = Builder(config)
    build.require(
        "data", "model", "optimizer", "seed", "compile", "skip_bad_steps", "save_every_n_steps"
    )
    build.require(
        *(
            f"trainer.{key}"
            for key in ("num_sanity_val_steps", "inference_mode", "use_distributed_sampler")
        )
    )
    build.seed()
    data = build("data", seed=config.seed)
    model = build("model")
    objective = build("objective")
    build.problems += incompatibilities(model, data)
    optimizer, scheduler = build("optimizer"), build("scheduler")
    resume = runs.checkpoint_to_resume(folder)
    with loggers.logger_lock():
        logger = build("logger", **loggers.arguments(build.config, folder, resume))
    dashboard = loggers.FaultTolerantLogger(logger, build.config, folder, resume)
    interruption = SignalHandler(folder / runs.LAST, build.config["save_every_n_steps"])
    callbacks = [History(folder), *build.each("callbacks"), interruption, BestAndLast(folder)]
    trainer = build(
        "trainer",
        callbacks=callbacks,
        logger=dashboard,
        plugins=[AtomicCheckpointIO()],
        default_root_dir=str(folder),
    )
    build.finish(folder)
    if trainer.strategy.root_device.type == "cpu":
        # Lightning has torch look for NVIDIA's library, and Adam asks at every step: 5 % of a small
        # pair's time.
        os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "0"
    if threads := build.config.get("threads"):
        os.environ["OMP_NUM_THREADS"] = str(
            threads
        )  # for DDP's other processes, which Lightning starts
        torch.set_num_threads(threads)

    # 2. The data, and the best that a linear pair could do on it.
    data.prepare_data()
    data.setup("fit")
    first = trainer.is_global_zero  # of the processes of one run, the one that writes files
    oracle = best_linear(model.likelihood, data.spectrum(), model.latent_dim) if first else None
    options = {key: build.config[key] for key in ("compile", "skip_bad_steps")}
    task = LitVAE(model, optimizer, scheduler, objective, oracle, **options)

    # 3. Training; the checkpoint with the best validation ELBO is kept, and tested.
    with files.folder_lock(folder), interruption, dashboard:
        if first:
            for partial in folder.glob(
                "checkpoints/.*.partial"
            ):  # of a process that was killed while saving
                partial.unlink()
            files.write_json(
                folder / "environment.json",
                runs.environment(config.seed, trainer.strategy.root_device),
            )
        trainer.fit(task, data, ckpt_path=resume, weights_only=True)
        trainer.test(task, data, ckpt_path=folder / runs.BEST, weights_only=True, verbose=False)

        # 4. The figures.
        metrics = task.final | run_table.figures(task, data, callbacks)
        if first:
            files.write_json(folder / "metrics.json", metrics)
            dashboard.log_final(metrics, trainer.global_step)
            print(run_table.table(model, metrics), f"run folder: {folder}", sep="\n")
    return metrics


def resumed(arguments: list[str]) -> list[str]:
    """resume=<run folder> works in that folder, and leaves the settings kept in it alone.

    logger=null, for a group of settings beyond Hydra's own grammar, is logger=none.
    """
    arguments = ["logger=none" if a == "logger=null" else a for a in arguments]
    folders = [a.removeprefix("resume=") for a in arguments if a.startswith("resume=")]
    return (
        [*arguments, f"hydra.run.dir={folders[-1]}", "hydra.output_subdir=null"]
        if folders
        else arguments
    )


@report_errors
def refuse_no_choice(arguments: list[str]) -> None:
    """Hydra would answer logger=null with a traceback."""
    groups = {
        f"{path.name}=null"
        for path in (Path(__file__).parents[1] / "conf").iterdir()
        if path.is_dir()
    }
    if found := groups & {*arguments}:
        raise UserError(
            *(
                f"{choice}: name one of conf/{choice.removesuffix('=null')}"
                for choice in sorted(found)
            )
        )


if __name__ == "__main__":
    sys.argv[1:] = resumed(sys.argv[1:])
    refuse_no_choice(sys.argv[1:])
    main()
