"""The final metrics of a run: those next to the ELBO, and the table on the screen."""

import logging

import lightning.pytorch as L

from vae.data.datamodule import SPLITS, ImageDataModule
from vae.models.vae import VAE, count_parameters
from vae.runs.errors import first_line
from vae.theory.ppca import PPCA
from vae.training.module import LitVAE
from vae.training.resume import ExactResume

log = logging.getLogger(__name__)


def run_metrics(trainer: L.Trainer, module: LitVAE, data: ImageDataModule) -> dict[str, float]:
    """Parameters, the closed-form optimum on each split, what the callbacks found, times."""
    model, oracle = module.model, find_oracle(module.model, data)
    metrics: dict[str, float] = {
        "model/encoder_parameters": count_parameters(model.encoder),
        "model/decoder_parameters": count_parameters(model.decoder),
    }
    if oracle is not None:
        metrics["oracle/train_elbo"] = oracle.train_elbo
        for split in ("val", "test"):
            metrics[f"oracle/{split}_elbo"] = oracle.elbo(data.images(split)).mean().item()
        metrics["oracle/collapsed"] = oracle.collapsed
        metrics["oracle/sigma"] = oracle.sigma
        metrics["oracle/kl"], metrics["oracle/squared_error"] = (
            oracle.total_kl,
            oracle.squared_error,
        )
    if model.sigma is not None:
        metrics["model/sigma"] = model.sigma
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, ExactResume):
            metrics["time/fit_seconds"] = callback.seconds
            metrics["time/images_per_second"] = callback.images_seen / max(callback.seconds, 1e-9)
        metrics |= getattr(callback, "final_metrics", {})
    return metrics


def find_oracle(model: VAE, data: ImageDataModule) -> PPCA | None:
    """The closed-form optimum; none where the covariance of so large images has no room."""
    try:
        return data.best_linear(model)
    except (MemoryError, RuntimeError) as error:
        log.warning("no closed-form optimum of a linear model: %s", first_line(error))
        return None


def table(model: VAE, metrics: dict[str, float]) -> str:
    """The metrics of metrics.json for the screen, in nats per image."""
    title = f"{model.name}: {model.latent_dim} latents, {model.likelihood.label}"
    sizes = " + ".join(
        f"{metrics[f'model/{part}_parameters']:,.0f} ({part})" for part in ("encoder", "decoder")
    )
    lines = [
        "",
        f"{title}; parameters {sizes}",
        f"{'nats per image':<24}" + "".join(f"{s:>10}" for s in SPLITS),
    ]
    rows = [("ELBO", "{}/elbo", 2), ("log-likelihood", "{}/log_likelihood", 2), ("KL", "{}/kl", 2)]
    rows += [("best linear ELBO (pPCA)", "oracle/{}_elbo", 2)]
    rows += [("collapsed latents", "{}/collapsed", 0)]
    for name, key, digits in rows:
        if key.format("test") in metrics:
            values = (metrics[key.format(split)] for split in SPLITS)
            lines.append(f"{name:<24}" + "".join(f"{value:>10.{digits}f}" for value in values))
    if "test/collapsed" not in metrics:
        lines.append("nothing was tested (trainer.limit_test_batches=0)")
    if "chain/finite" in metrics:
        finite = "finite" if metrics["chain/finite"] else "NOT finite"
        drift = metrics["chain/drift"]
        names = {"chain/spectral_radius": "spectral radius", "chain/local_gain": "local gain"}
        gain = ", ".join(f"{names[k]} {v:.3f}" for k, v in metrics.items() if k in names)
        lines.append(f"chain: {finite}, {gain}, drift from the prior {drift:.2f} nats")
    rate = metrics["time/images_per_second"]
    lines.append(f"fit: {metrics['time/fit_seconds']:.0f} s, {rate:,.0f} images/s")
    return "\n".join(lines)
