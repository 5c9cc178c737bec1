"""The final figures of a run: the ones beside the ELBO, the table on the screen."""

import lightning.pytorch as L

from vae.data.datamodule import SPLITS, ImageDataModule
from vae.models.vae import VAE, count_parameters
from vae.training.module import LitVAE


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
            found[f"oracle/{split}_elbo"] = oracle.elbo(data.images(split)).mean().item()
        found["oracle/collapsed"] = oracle.collapsed
        found["oracle/sigma"] = oracle.sigma
    if model.sigma is not None:
        found["model/sigma"] = model.sigma
    found["time/fit_seconds"] = task.seconds
    found["time/images_per_second"] = task.images_seen / task.seconds
    for callback in callbacks:
        found |= getattr(callback, "final_metrics", {})
    return found


def table(model: VAE, metrics: dict[str, float]) -> str:
    """The figures of metrics.json for the screen, in nats per image."""
    title = f"{model.name}: {model.latent_dim} latents, {model.likelihood.label}"
    sizes = " + ".join(
        f"{metrics[f'model/{part}_parameters']:,.0f} ({part})" for part in ("encoder", "decoder")
    )
    lines = [
        "",
        f"{title}; parameters {sizes}",
        f"{'nats per image':<24}" + "".join(f"{s:>10}" for s in SPLITS),
    ]
    rows = [("ELBO", "{}/elbo"), ("log-likelihood", "{}/log_likelihood"), ("KL", "{}/kl")]
    rows += [("best linear ELBO (pPCA)", "oracle/{}_elbo")]
    for name, key in rows:
        if key.format("test") in metrics:
            lines.append(
                f"{name:<24}" + "".join(f"{metrics[key.format(s)]:>10.2f}" for s in SPLITS)
            )
    lines.append(
        f"{'collapsed latents':<24}"
        + "".join(f"{metrics[f'{s}/collapsed']:>10.0f}" for s in SPLITS)
    )
    if "chain/finite" in metrics:
        finite = "finite" if metrics["chain/finite"] else "NOT finite"
        drift = metrics["chain/drift"]
        names = {"chain/spectral_radius": "spectral radius", "chain/local_gain": "local gain"}
        gain = ", ".join(f"{names[k]} {v:.3f}" for k, v in metrics.items() if k in names)
        lines.append(f"chain: {finite}, {gain}, drift from the prior {drift:.2f} nats")
    rate = metrics["time/images_per_second"]
    lines.append(f"fit: {metrics['time/fit_seconds']:.0f} s, {rate:,.0f} images/s")
    return "\n".join(lines)
