"""The final figures of a run: the ones beside the ELBO, the log's last entry, the table on the screen."""

from pathlib import Path
from typing import Any

import lightning.pytorch as L
from lightning.pytorch.loggers import Logger, TensorBoardLogger

from vae.callbacks.chain_video import ChainVideo
from vae.data import SPLITS, ImageDataModule
from vae.module import LitVAE
from vae.networks import VAE, count_parameters
from vae.runs import read_checkpoint
from vae.settings import leaves


def figures(task: LitVAE, data: ImageDataModule, callbacks: list[L.Callback]) -> dict[str, float]:
    """Parameters, the closed-form optimum on each split, and what the chain showed."""
    model, oracle = task.model, task.oracle
    found: dict[str, float] = {
        "model/encoder_parameters": count_parameters(model.encoder),
        "model/decoder_parameters": count_parameters(model.decoder),
    }
    if oracle is not None:
        found["oracle/train_elbo"] = oracle.train_elbo
        for split in ("val", "test"):
            found[f"oracle/{split}_elbo"] = oracle.elbo(data.split_pixels(split)).mean().item()
        found["oracle/collapsed"] = oracle.collapsed
    found["time/fit_seconds"] = task.seconds
    found["time/images_per_second"] = task.images_seen / task.seconds
    for callback in callbacks:
        if isinstance(callback, ChainVideo):
            found |= callback.figures
    return found


def continued(config: dict[str, Any], resume: Path | None) -> dict[str, int]:
    """Of TensorBoard's writer: points that a killed run logged after the checkpoint are not to be shown twice."""
    logger = config.get("logger")
    tensorboard = isinstance(logger, dict) and str(logger.get("_target_")).endswith("TensorBoardLogger")
    return {"purge_step": read_checkpoint(resume)["global_step"] + 1} if resume and tensorboard else {}


def log_final(loggers: list[Logger], config: dict[str, Any], metrics: dict[str, float], step: int) -> None:
    """Hyperparameters and final figures, for TensorBoard's HPARAMS tab.

    Final train and val figures belong to the kept checkpoint, so they get the prefix `final/`: under their own
    names they would add a point to the curves.
    """
    curves = ("train/", "val/")
    final = {f"final/{k}" if k.startswith(curves) else k: v for k, v in metrics.items()}
    shown = {k: v for k, v in leaves(config) if isinstance(v, int | float | str) and not k.startswith("callbacks.")}
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.log_hyperparams(shown, final, step)
        else:
            logger.log_hyperparams(shown)
            logger.log_metrics(final, step)
        logger.save()
        logger.finalize("success")  # closes the event file and ends the thread that writes it


def table(model: VAE, metrics: dict[str, float]) -> str:
    """The figures of metrics.json for the screen, in nats per image."""
    title = f"{model.name}: {model.latent_dim} latents, sigma {model.sigma:g}"
    sizes = " + ".join(f"{metrics[f'model/{part}_parameters']:,.0f} ({part})" for part in ("encoder", "decoder"))
    lines = [
        "",
        f"{title}; parameters {sizes}",
        f"{'nats per image':<24}" + "".join(f"{s:>10}" for s in SPLITS),
    ]
    rows = [("ELBO", "{}/elbo"), ("log-likelihood", "{}/log_likelihood"), ("KL", "{}/kl")]
    rows += [("best linear ELBO (pPCA)", "oracle/{}_elbo")]
    for name, key in rows:
        if key.format("test") in metrics:
            lines.append(f"{name:<24}" + "".join(f"{metrics[key.format(s)]:>10.2f}" for s in SPLITS))
    lines.append(f"{'collapsed latents':<24}" + "".join(f"{metrics[f'{s}/collapsed']:>10.0f}" for s in SPLITS))
    if "chain/finite" in metrics:
        finite = "finite" if metrics["chain/finite"] else "NOT finite"
        radius, drift = metrics["chain/spectral_radius"], metrics["chain/drift"]
        lines.append(f"chain: {finite}, spectral radius {radius:.3f}, drift from the prior {drift:.2f} nats")
    rate = metrics["time/images_per_second"]
    lines.append(f"fit: {metrics['time/fit_seconds']:.0f} s, {rate:,.0f} images/s")
    return "\n".join(lines)
