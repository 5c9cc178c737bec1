"""The part of an evaluation that is about the chain decode → sample → encode → sample."""

import math

import torch

from vae.analysis.chain import (
    autocorrelation_time,
    drift,
    gaussian_test,
    local_gain,
    one_step_test,
    run_chain,
)
from vae.analysis.classifier import Classifier
from vae.models.vae import VAE
from vae.reports.evaluation.metrics import Metrics, Settings, progress, seeded_generator
from vae.theory.linear import (
    affine_weights,
    kl_to_standard_normal,
    sample_law,
    spectral_radius,
    stationary_law,
)

REPORTED_STEPS = (
    0,
    1,
    3,
    10,
    30,
    100,
)  # steps of the chain that are looked at, beside the last one


def chains(model: VAE, classifier: Classifier, settings: Settings) -> Metrics:
    """The chain decode → sample → encode → sample: its law where that is known, and what simulation
    shows."""
    n, steps = settings["chain"]["chains"], settings["chain"]["steps"]
    generator = seeded_generator(settings["seed"], model.device)
    start = torch.randn(n, model.latent_dim, generator=generator, device=model.device)
    kept = max(
        1, min(n, 2**25 // (steps * model.latent_dim))
    )  # chains whose every state is kept: 128 MiB
    followed = min(n, 100)  # chains whose every image is classified for 100 steps
    path, states, looks, classes = [], [], [], []
    for t, (z, frame) in enumerate(progress("chain")(run_chain(model, start, steps, generator))):
        if not (torch.isfinite(z).all() and torch.isfinite(frame).all()):
            break
        path.append(z[:kept].cpu().clone())
        if t <= 100:
            classes.append(classifier(frame[:followed]).argmax(1))
        if t in (*REPORTED_STEPS, steps):
            states.append(z[:16])
            shares = torch.bincount(classifier(frame).argmax(1), minlength=10) / n
            looks.append((t, drift(z), shares.tolist()))
    visited = torch.stack(classes)  # [≤ 101, followed]
    at_once = max(1, 4096 // model.latent_dim)  # states whose Jacobians are in memory together
    gain = torch.cat([local_gain(model, part) for part in torch.cat(states).split(at_once)])
    tau = autocorrelation_time(torch.stack(path)).max().item() if len(path) > 100 else math.nan
    kl, p = one_step_test(model, 20 * n, generator)
    metrics: Metrics = {
        "chain/chains": n,
        "chain/steps": steps,
        "chain/finite": float(len(path) == steps + 1),
        "chain/finite_steps": len(path) - 1,
        "chain/local_gain": gain.nanmedian().item(),
        "chain/local_gain_max": gain.max().item(),
        "chain/local_gain_states": len(gain),
        "chain/t": [t for t, _, _ in looks],
        "chain/drift_t": [drift for _, drift, _ in looks],
        "chain/drift": looks[-1][1] if len(path) == steps + 1 else math.inf,
        "chain/drift_floor": model.latent_dim / n,
        "chain/autocorrelation_time": tau,
        "chain/mixing_steps": 1.0 if tau < 1 else (tau + 1) / 2,  # 1/(1 − ρ) of an AR(1)
        "chain/one_step_kl": kl,
        "chain/one_step_p": p,
        "chain/one_step_chains": 20 * n,
        "chain/classes_t": [shares for _, _, shares in looks],
        "chain/class_changes": (visited[1:] != visited[:-1]).double().mean().item(),
        "chain/classes_visited": sum(len(one.unique()) for one in visited.unbind(1)) / followed,
    }
    if affine_weights(model) is not None:
        metrics |= linear_chain(model, 20 * n, generator)
    mixing = metrics["chain/mixing_steps"]
    metrics["chain/memory_at_100"] = (1 - 1 / mixing) ** 100
    return metrics


def linear_chain(model: VAE, n: int, generator: torch.Generator) -> Metrics:
    """ρ(V W), the stationary law of the trained weights, and a simulation of n chains held against
    it.

    The chains start from the law itself: were it not the stationary one, they would leave it within
    the time 1/(1 − ρ) that they are given (200 steps at most).
    """
    pair = affine_weights(model)
    assert pair is not None
    radius = spectral_radius(pair)
    metrics: Metrics = {"chain/spectral_radius": radius}
    metrics["chain/mixing_steps"] = 1 / (1 - radius) if radius < 1 else math.inf
    law = stationary_law(model, pair)
    metrics["chain/has_limit"] = float(law is not None)
    if law is None:
        return metrics
    steps = max(1, min(200, round(metrics["chain/mixing_steps"])))
    ends = []
    for part in progress("long simulation")(
        sample_law(law, n, torch.Generator().manual_seed(0)).float().split(1000)
    ):
        for z, _ in run_chain(model, part.to(model.device), steps, generator):
            last = z
        ends.append(last.cpu().double())
    z = torch.cat(ends)
    error = (
        torch.cov(z.T).view_as(law.covariance_matrix) - law.covariance_matrix
    ).norm() / law.covariance_matrix.norm()
    expected = math.sqrt(
        (1 + law.covariance_matrix.trace() ** 2 / law.covariance_matrix.square().sum()) / n
    )
    kl, p = gaussian_test(z, law)
    return metrics | {
        "chain/stationary_mean": law.loc.tolist(),
        "chain/stationary_covariance": law.covariance_matrix.tolist(),
        "chain/stationary_kl": kl_to_standard_normal(law),
        "chain/agreement_kl": kl,
        "chain/agreement_p": p,
        "chain/agreement_covariance_error": error.item(),
        "chain/agreement_covariance_floor": expected,
        "chain/agreement_chains": n,
        "chain/agreement_steps": steps,
    }
