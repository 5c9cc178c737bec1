"""What each latent carries, and what the closed form of a linear model predicts."""

from vae.analysis.latents import COLLAPSE_THRESHOLD, INACTIVE_THRESHOLD, latent_statistics
from vae.data.datamodule import ImageDataModule
from vae.models.vae import VAE
from vae.reports.evaluation.metrics import Metrics, Settings, batches
from vae.theory.linear import affine_weights, kl_to_standard_normal

THRESHOLDS = (0.001, 0.01, 0.1, 0.5)  # nats or variance, below which latents are counted


def collapse(model: VAE, data: ImageDataModule, settings: Settings) -> Metrics:
    """What each latent carries over the test split; for a linear model next to the closed form of
    the training split."""
    found = latent_statistics(model, batches(data.images("test"), settings, model.device))
    counts = found.counts(THRESHOLDS)
    metrics: Metrics = {
        "collapse/collapsed": int((found.kl < COLLAPSE_THRESHOLD).sum()),
        "collapse/inactive": int((found.variance < INACTIVE_THRESHOLD).sum()),
        "collapse/latents": model.latent_dim,
        "collapse/thresholds": [t for t, _, _ in counts],
        "collapse/collapsed_at": [collapsed for _, collapsed, _ in counts],
        "collapse/inactive_at": [inactive for _, _, inactive in counts],
        "collapse/kl": found.kl.tolist(),
        "collapse/variance": found.variance.tolist(),
        "collapse/aggregated_mean": found.aggregated.loc.tolist(),
        "collapse/aggregated_covariance": found.aggregated.covariance_matrix.tolist(),
        "collapse/aggregated_kl": kl_to_standard_normal(found.aggregated),
    }
    linear = affine_weights(model) is not None  # only then is the spectrum needed
    oracle = data.best_linear(model) if linear else None
    if oracle is not None:
        metrics |= {
            "collapse/train_kl": latent_statistics(
                model, batches(data.images("train"), settings, model.device)
            ).kl.tolist(),
            "collapse/predicted_kl": oracle.kl.tolist(),
            "collapse/predicted_collapsed": oracle.collapsed,
            "oracle/test_elbo": oracle.elbo(data.images("test")).mean().item(),
        }
    return metrics
