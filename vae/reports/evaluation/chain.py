"""The part of an evaluation that is about the chain decode → sample → encode → sample."""

import math

import torch
from torch import Tensor

from vae.analysis.chain import (
    STREAMS,
    chain_generator,
    drift,
    local_gain,
    one_step_test,
    run_chain,
)
from vae.analysis.classifier import Classifier
from vae.analysis.gaussian_kl import kl_from_sample
from vae.analysis.limit import (
    Limit,
    Mixing,
    chain_limit,
    exact_mixing,
    measured_mixing,
)
from vae.models.vae import VAE
from vae.reports.evaluation.metrics import Metrics, Settings, progress
from vae.theory.linear import (
    AffineWeights,
    affine_weights,
    sample_gaussian,
    spectral_radius,
    stationary_distribution,
)

REPORTED_STEPS = (0, 1, 3, 10, 30, 100)  # and the last one
MAX_KEPT_STATES = 2**25  # numbers: 128 MiB


def chains(model: VAE, classifier: Classifier, settings: Settings) -> Metrics:
    """`chain/…`: the limit and the mixing time, exact where the law is known, and what the
    simulated chains show.

    At least 2 m + 2 chains are simulated, as fewer could not tell the covariance of m latents.
    """
    steps, seed = settings["chain"]["steps"], settings["seed"]
    n = max(settings["chain"]["chains"], 2 * model.latent_dim + 2)
    weights = affine_weights(model)

    # 1. Chains from the prior: their states, and the classes of their images.
    metrics, last, path = simulated_chains(model, classifier, n, steps, seed)
    metrics |= {"chain/chains": n, "chain/steps": steps}

    # 2. The limit and the time it takes.
    measured = measured_mixing(path)
    stayed = bool(metrics["chain/finite"])
    mixing = exact_mixing(weights) if weights is not None and stayed else measured
    metrics["chain/mixing_steps_measured"] = measured.steps
    metrics |= limit_metrics(chain_limit(model, last, steps)) | mixing_metrics(mixing)

    # 3. One step from the prior.
    one_step = one_step_test(model, 20 * n, seed)
    metrics |= {
        "chain/one_step_kl": one_step.kl,
        "chain/one_step_kl_se": one_step.se,
        "chain/one_step_p": one_step.p,
        "chain/one_step_chains": 20 * n,
    }
    if weights is None:
        return metrics
    metrics["chain/spectral_radius"] = spectral_radius(weights)
    return metrics | (stationary(model, weights, 20 * n, seed) if stayed else {})


def limit_metrics(limit: Limit) -> Metrics:
    return {
        "chain/limit_kl": limit.kl,
        "chain/limit_kl_se": limit.se,
        "chain/limit_p": limit.p,
        "chain/limit_method": limit.method,
        "chain/limit_chains": limit.chains,
        "chain/limit_steps": limit.steps,
        "chain/has_limit": None if limit.has_limit is None else float(limit.has_limit),
    }


def mixing_metrics(mixing: Mixing) -> Metrics:
    """`chain/memory_at_100` only where the mixing time is known."""
    found = {"chain/mixing_steps": mixing.steps, "chain/mixing_method": mixing.method}
    known = not math.isnan(mixing.steps)
    return found | ({"chain/memory_at_100": mixing.memory(100)} if known else {})


def simulated_chains(
    model: VAE, classifier: Classifier, n: int, steps: int, seed: int
) -> tuple[Metrics, Tensor, Tensor]:
    """Metrics of n chains from the prior, their last states [n, m], and the states [T, ≤ n, m] of
    as many as fit in memory. A chain that is not finite ends them all."""
    kept = max(1, min(n, MAX_KEPT_STATES // (steps * model.latent_dim)))
    classified = min(n, 100)  # chains whose every image is classified for 100 steps
    start, pixels, encoder = (chain_generator(stream, seed, model.device) for stream in STREAMS)
    first = torch.randn(n, model.latent_dim, generator=start, device=model.device)
    path, gain_states, reported, classes = [], [], [], []
    states = run_chain(model, first, steps, pixels, encoder)
    for t, (z, frame) in enumerate(progress("chain")(states)):
        if not (torch.isfinite(z).all() and torch.isfinite(frame).all()):
            break
        path.append(z[:kept].cpu().clone())
        if t <= 100:
            classes.append(classifier(frame[:classified]).argmax(1))
        if t in (*REPORTED_STEPS, steps):
            gain_states.append(z[:16])
            labels = classifier(frame).argmax(1)
            shares = torch.bincount(labels, minlength=classifier.head.out_features) / n
            reported.append((t, drift(z), shares.tolist()))
    visited = torch.stack(classes)  # [≤ 101, classified]
    at_once = max(1, 4096 // model.latent_dim)  # states whose Jacobians are in memory together
    gain = torch.cat([local_gain(model, part) for part in torch.cat(gain_states).split(at_once)])
    finite = len(path) == steps + 1
    metrics: Metrics = {
        "chain/finite": float(finite),
        "chain/finite_steps": len(path),
        "chain/local_gain": gain.nanmedian().item(),
        "chain/local_gain_max": gain.max().item(),
        "chain/local_gain_states": len(gain),
        "chain/t": [t for t, _, _ in reported],
        "chain/drift_t": [drift for _, drift, _ in reported],
        "chain/drift": reported[-1][1] if finite else math.inf,
        "chain/classes_t": [shares for _, _, shares in reported],
        "chain/class_changes": (visited[1:] != visited[:-1]).double().mean().item(),
        "chain/classes_visited": sum(len(c.unique()) for c in visited.unbind(1)) / classified,
    }
    return metrics, z if finite else torch.full_like(z, math.nan), torch.stack(path)


def stationary(model: VAE, weights: AffineWeights, n: int, seed: int) -> Metrics:
    """The stationary law of the trained weights, if any, and n simulated chains compared with it.

    The chains start from the law itself: were it not the stationary one, they would leave it within
    the time 1/(1 − ρ) that they are given (200 steps at most).
    """
    law = stationary_distribution(model, weights)
    if law is None:
        return {}
    pixels, encoder = (chain_generator(name, seed, model.device) for name in STREAMS[1:])
    steps = max(1, min(200, round(exact_mixing(weights).steps)))
    states = sample_gaussian(law, n, chain_generator("start", seed)).float()
    ends = []
    for part in progress("long simulation")(states.split(1000)):
        for z, _ in run_chain(model, part.to(model.device), steps, pixels, encoder):
            last = z
        ends.append(last.cpu().double())
    agreement = kl_from_sample(torch.cat(ends), law)
    return {
        "chain/stationary_mean": law.loc.tolist(),
        "chain/stationary_eigenvalues": torch.linalg.eigvalsh(law.covariance_matrix).tolist(),
        "chain/agreement_kl": agreement.kl,
        "chain/agreement_kl_se": agreement.se,
        "chain/agreement_p": agreement.p,
        "chain/agreement_chains": n,
        "chain/agreement_steps": steps,
    }
