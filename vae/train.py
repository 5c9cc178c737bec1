"""Train a pair, test it, leave a run folder: python -m vae.train model=baseline|deep [any.key=value …]"""

import os
import sys
import time
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from vae.errors import told_in_one_line
from vae.jobs import job


@hydra.main(version_base="1.3", config_path="../conf", config_name="train")
@told_in_one_line
def main(config: DictConfig) -> float:
    """Returns the validation ELBO of the kept checkpoint, for a sweeper to maximise."""
    hydra_config = HydraConfig.get()
    folder = Path(hydra_config.runtime.output_dir)
    if hydra_config.mode == RunMode.MULTIRUN:
        return job(train, config, folder)
    if config.resume is not None:
        from vae.runs import saved_config

        config = saved_config(folder, hydra_config.overrides.task)
    return train(config, folder)["val/elbo"]


def train(config: DictConfig, folder: Path) -> dict[str, float]:
    """One run from settings to figures: everything it makes goes into `folder`, its final figures come back.

    Goes on from `checkpoints/last.ckpt` where the folder has one. Raises UserError with every problem of the
    settings at once, MachineError where the data cannot be had.
    """
    import lightning.pytorch as L  # heavy imports wait until a run starts, so that --help answers at once
    import torch

    from vae import report, runs
    from vae.callbacks.progress import quiet
    from vae.module import LitVAE
    from vae.ppca import PPCA, Spectrum
    from vae.settings import Builder

    quiet()
    L.seed_everything(config.seed, verbose=False)
    if config.get("threads"):
        os.environ["OMP_NUM_THREADS"] = str(config.threads)  # for DDP's other processes, which Lightning starts
        torch.set_num_threads(config.threads)

    # 1. Settings become objects.
    build = Builder(config)
    data = build("data", seed=config.seed)
    model = build("model")
    optimizer, scheduler = build("optimizer"), build("scheduler")
    logger = build("logger", save_dir=str(folder))
    callbacks = [*build.each("callbacks"), *runs.checkpoints(folder)]
    trainer = build("trainer", callbacks=callbacks, logger=logger or False, default_root_dir=str(folder))
    build.finish(folder)

    # 2. The data, and the best that a linear pair could do on it.
    data.prepare_data()
    data.setup("fit")
    first = trainer.is_global_zero  # of the processes of one run, the one that writes files
    oracle = PPCA(Spectrum.remembered(data.split_pixels("train")), model.latent_dim, model.sigma) if first else None
    task = LitVAE(model, optimizer, scheduler, oracle)
    if first:
        runs.write_json(folder / "environment.json", runs.environment(config.seed, trainer.strategy.root_device))

    # 3. Training; the checkpoint with the best validation ELBO is kept, and tested.
    started = time.perf_counter()
    trainer.fit(task, data, ckpt_path=runs.checkpoint_to_resume(folder), weights_only=True)
    seconds = time.perf_counter() - started
    trainer.test(task, data, ckpt_path=folder / runs.BEST, weights_only=True, verbose=False)

    # 4. The figures.
    metrics = task.final | report.figures(task, data, callbacks)
    metrics |= {"time/fit_seconds": seconds, "time/images_per_second": task.images_seen / seconds}
    if first:
        runs.write_json(folder / "metrics.json", metrics)
        report.log_final(trainer.loggers, build.config, metrics, trainer.global_step)
        print(report.table(model, metrics), f"run folder: {folder}", sep="\n")
    return metrics


def resumed(arguments: list[str]) -> list[str]:
    """resume=<run folder> works in that folder, and leaves the settings kept in it alone."""
    folders = [a.removeprefix("resume=") for a in arguments if a.startswith("resume=")]
    return [*arguments, f"hydra.run.dir={folders[-1]}", "hydra.output_subdir=null"] if folders else arguments


if __name__ == "__main__":
    sys.argv[1:] = resumed(sys.argv[1:])
    main()
