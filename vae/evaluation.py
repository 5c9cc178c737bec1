"""The parts of an evaluation: each takes a trained pair and gives its figures, flat keys as in metrics.json.

`<key>_se` is the standard error of `<key>`. Everything random comes from `seed`, part by part, so that one part
gives the same figures whether the others run or not.
"""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from tqdm import tqdm

from vae import chain, likelihood, metrics
from vae.classifier import Classifier, accuracy, cached_classifier, in_batches
from vae.collapse import usage
from vae.data import ImageDataModule, as_images
from vae.errors import UserError
from vae.likelihood import Estimate
from vae.module import COLLAPSED, INACTIVE
from vae.networks import VAE, linear_pair
from vae.ppca import PPCA, Spectrum
from vae.runs import Run, load_data, load_run
from vae.settings import EVALUATE_RULES, leaves, out_of_rule

Settings = dict[str, Any]
Figures = dict[str, Any]
Values = dict[str, Tensor]  # one value an image, by key

THRESHOLDS = (0.001, 0.01, 0.1, 0.5)
LOOK = (0, 1, 3, 10, 30, 100)  # steps of the chain that are looked at, beside the last one


def opened(config: DictConfig) -> tuple[Settings, Run, Run | None, ImageDataModule]:
    """The settings, the run, the run to compare it with, and their data; UserError tells all problems at once."""
    settings: Settings = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    problems = [p for key, value in leaves(settings) if (p := out_of_rule(key, value, EVALUATE_RULES))]
    device, problem = choose_device(settings["accelerator"])
    if problem is not None:
        problems.append(problem)
    runs: dict[str, Run | None] = {"run": None, "against": None}
    allow = settings["allow"] if isinstance(settings["allow"], list) else []
    for key in runs:
        if isinstance(settings[key], str) and settings[key]:
            try:
                runs[key] = load_run(settings[key], device=device, allow=tuple(allow))
            except UserError as error:
                problems += [f"{key}: {line}" for line in error.problems]
    run, other = runs["run"], runs["against"]
    if run is not None and other is not None:
        names = [one.config.get("data", {}).get("name") for one in (run, other)]
        if names[0] != names[1]:
            problems.append(
                f"against={settings['against']} was trained on {names[1]}, run={settings['run']} on {names[0]}"
            )
    if problems or run is None:
        raise UserError(*problems)
    try:
        data = load_data(run.config, settings["data"]["root"], tuple(allow))
    except UserError as error:
        raise UserError(*(f"run: {run.folder}: {line}" for line in error.problems)) from error
    for one in (run, other):
        if one is not None:
            one.model.requires_grad_(False)
    return settings, run, other, data


def choose_device(accelerator: Any) -> tuple[str, str | None]:
    """The device of an accelerator's name, and what is wrong with it."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if accelerator == "auto":
        return next(device for device, ready in there.items() if ready), None
    device = {"gpu": "cuda"}.get(accelerator, accelerator)
    if there.get(device, True):
        return (device if device in there else "cpu"), None
    return "cpu", f"accelerator={accelerator}: this machine has none; try accelerator=cpu"


def bar(what: str) -> Callable[[Any], Any]:
    """A progress bar on a terminal, nothing elsewhere."""
    return partial(tqdm, desc=what, leave=False, disable=None)


def batches(pixels: Tensor, settings: Settings, device: torch.device) -> Any:
    """Float images [≤ batch_size, 1, 28, 28] on the device."""
    return (as_images(part.to(device)) for part in pixels.split(settings["batch_size"]))


def generator_of(seed: int, device: torch.device) -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)


def likelihoods(model: VAE, pixels: Tensor, settings: Settings) -> tuple[Values, Figures]:
    """ELBO, exact log p of a linear pair, L_K and AIS of test images: one value an image, and the effective sizes."""
    device, seed, pair = model.device, settings["seed"], linear_pair(model)
    values: Values = {}
    shape = (settings["elbo"]["samples"], len(pixels), model.latent_dim)
    # With one sample this is the noise of the training's own test.
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).split(settings["batch_size"], dim=1)
    terms = [
        likelihood.elbo_terms(model, x, part.to(device))
        for x, part in zip(bar("ELBO")(batches(pixels, settings, device)), noise, strict=True)
    ]
    values["test/log_likelihood"] = torch.cat([t.log_likelihood for t in terms])
    values["test/kl"] = torch.cat([t.kl for t in terms]).sum(1)
    values["test/elbo"] = values["test/log_likelihood"] - values["test/kl"]
    chosen = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))
    some, few = chosen[: settings["iwae"]["images"]], chosen[: settings["ais"]["images"]]
    if pair is not None:
        exact = [likelihood.linear_log_likelihood(pair, model.sigma, x) for x in batches(pixels, settings, device)]
        elbo = [likelihood.linear_elbo(model, pair, x) for x in batches(pixels, settings, device)]
        values["exact/log_p"], values["exact/elbo"] = torch.cat(exact), torch.cat(elbo)
        values["exact/gap"] = values["exact/log_p"] - values["exact/elbo"]

    figures: Figures = {"test/images": len(pixels), "test/samples": shape[0]}
    if len(some):
        x = as_images(pixels[some].to(device))
        Ks, rows = settings["iwae"]["K"], settings["iwae"]["rows"]
        bounds = likelihood.iwae(model, x, Ks, generator_of(seed, device), rows, bar("importance-weighted bound"))
        for K, bound in bounds.items():
            values[f"iwae/K={K}"] = bound.bound
            figures[f"iwae/K={K}_ess"] = bound.ess.mean().item()
        figures |= {"iwae/images": len(some), "iwae/K": Ks}
        if pair is not None:
            values["iwae/exact_log_p"] = values["exact/log_p"][some]
    if len(few):
        at_once = max(1, settings["ais"]["rows"] // settings["ais"]["chains"])
        options = {key: settings["ais"][key] for key in ("chains", "distributions", "leapfrog", "start")}
        generator = generator_of(seed, device)
        parts = [
            likelihood.ais(model, x, generator=generator, progress=bar("AIS"), **options)
            for x in as_images(pixels[few].to(device)).split(at_once)
        ]
        values["ais/log_p"] = torch.cat([part.log_p for part in parts])
        figures["ais/mc_se"] = torch.cat([part.se for part in parts]).square().sum().sqrt().item() / len(few)
        figures["ais/ess"] = torch.cat([part.ess for part in parts]).mean().item()
        figures["ais/acceptance"] = sum(part.acceptance for part in parts) / len(parts)
        figures |= {"ais/images": len(few)} | {f"ais/{key}": value for key, value in options.items()}
        if pair is not None:
            values["ais/exact_log_p"] = values["exact/log_p"][few]
        if len(few) <= len(some):
            best = settings["iwae"]["K"][-1]
            values["ais/iwae"] = values[f"iwae/K={best}"][: len(few)]
    return values, figures


def means(values: Values) -> Figures:
    """Mean and standard error of every value."""
    estimates = {key: Estimate.of(value) for key, value in values.items()}
    return {k: v for key, (mean, se) in estimates.items() for k, v in ((key, mean), (f"{key}_se", se))}


def paired(values: Values, others: Values) -> Figures:
    """`against/<key>`: this run less the other, image by image, for every value that both have."""
    return means({f"against/{key}": values[key].cpu() - others[key].cpu() for key in values if key in others})


def collapse(model: VAE, data: ImageDataModule, settings: Settings) -> Figures:
    """What each latent carries over the test split; for a linear pair beside the closed form of the training split."""
    found = usage(model, batches(data.split_pixels("test"), settings, model.device))
    counts = found.counts(THRESHOLDS)
    figures: Figures = {
        "collapse/collapsed": int((found.kl < COLLAPSED).sum()),
        "collapse/inactive": int((found.variance < INACTIVE).sum()),
        "collapse/latents": model.latent_dim,
        "collapse/thresholds": [t for t, _, _ in counts],
        "collapse/collapsed_at": [collapsed for _, collapsed, _ in counts],
        "collapse/inactive_at": [inactive for _, _, inactive in counts],
        "collapse/kl": found.kl.tolist(),
        "collapse/variance": found.variance.tolist(),
        "collapse/aggregated_mean": found.aggregated.mean.tolist(),
        "collapse/aggregated_covariance": found.aggregated.covariance.tolist(),
        "collapse/aggregated_kl": found.aggregated.kl_to_prior(),
    }
    if linear_pair(model) is not None:
        train = data.split_pixels("train")
        oracle = PPCA(Spectrum.of(train), model.latent_dim, model.sigma)
        figures |= {
            "collapse/train_kl": usage(model, batches(train, settings, model.device)).kl.tolist(),
            "collapse/predicted_kl": oracle.kl.tolist(),
            "collapse/predicted_collapsed": oracle.collapsed,
            "oracle/test_elbo": oracle.elbo(data.split_pixels("test")).mean().item(),
        }
    return figures


def classifier_of(data: ImageDataModule, settings: Settings, device: torch.device) -> tuple[Classifier, Figures]:
    """The classifier of this data set's training split, and how well it does on test."""
    options = settings["classifier"]
    train, labels = data.split_pixels("train").to(device), data.labels["train"][data.index["train"]]
    folder = Path(options["folder"])
    found = cached_classifier(folder, train, labels, options["epochs"], progress=bar("classifier"))
    right = accuracy(found, data.split_pixels("test").to(device), data.labels["test"][data.index["test"]])
    return found, {"classifier/test_accuracy": right}


def chains(model: VAE, classifier: Classifier, settings: Settings) -> Figures:
    """The chain decode → sample → encode → sample: its law where that is known, and what simulation shows."""
    n, steps = settings["chain"]["chains"], settings["chain"]["steps"]
    generator = generator_of(settings["seed"], model.device)
    start = torch.randn(n, model.latent_dim, generator=generator, device=model.device)
    kept = max(1, min(n, 2**25 // (steps * model.latent_dim)))  # chains whose every state is kept: 128 MiB
    followed = min(n, 100)  # chains whose every digit is classified for 100 steps
    path, states, looks, classes = [], [], [], []
    for t, (z, frame) in enumerate(bar("chain")(chain.run_chain(model, start, steps, generator))):
        if not (torch.isfinite(z).all() and torch.isfinite(frame).all()):
            break
        path.append(z[:kept].cpu())
        if t <= 100:
            classes.append(classifier(frame[:followed]).argmax(1))
        if t in (*LOOK, steps):
            states.append(z[:16])
            shares = torch.bincount(classifier(frame).argmax(1), minlength=10) / n
            looks.append((t, chain.drift(z), shares.tolist()))
    visited = torch.stack(classes)  # [≤ 101, followed]
    gain = chain.local_gain(model, torch.cat(states))
    tau = chain.autocorrelation_time(torch.stack(path)).max().item() if len(path) > 100 else math.nan
    kl, p = chain.one_step_test(model, 20 * n, generator)
    figures: Figures = {
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
    if linear_pair(model) is not None:
        figures |= linear_chain(model, 20 * n, generator)
    mixing = figures["chain/mixing_steps"]
    figures["chain/memory_at_100"] = (1 - 1 / mixing) ** 100
    return figures


def linear_chain(model: VAE, n: int, generator: torch.Generator) -> Figures:
    """ρ(V W), the stationary law of the trained weights, and a simulation of n chains held against it.

    The chains start from the law itself: were it not the stationary one, they would leave it within the time
    1/(1 − ρ) that they are given (200 steps at most).
    """
    pair = linear_pair(model)
    assert pair is not None
    radius = chain.spectral_radius(model, torch.empty(0))
    figures: Figures = {"chain/spectral_radius": radius}
    figures["chain/mixing_steps"] = 1 / (1 - radius) if radius < 1 else math.inf
    law = chain.stationary_law(model, pair)
    figures["chain/has_limit"] = float(law is not None)
    if law is None:
        return figures
    steps = max(1, min(200, round(figures["chain/mixing_steps"])))
    ends = []
    for part in bar("long simulation")(law.draw(n, torch.Generator().manual_seed(0)).float().split(1000)):
        for z, _ in chain.run_chain(model, part.to(model.device), steps, generator):
            last = z
        ends.append(last.cpu().double())
    z = torch.cat(ends)
    error = (torch.cov(z.T).view_as(law.covariance) - law.covariance).norm() / law.covariance.norm()
    expected = math.sqrt((1 + law.covariance.trace() ** 2 / law.covariance.square().sum()) / n)
    kl, p = chain.gaussian_test(z, law)
    return figures | {
        "chain/stationary_mean": law.mean.tolist(),
        "chain/stationary_covariance": law.covariance.tolist(),
        "chain/stationary_kl": law.kl_to_prior(),
        "chain/agreement_kl": kl,
        "chain/agreement_p": p,
        "chain/agreement_covariance_error": error.item(),
        "chain/agreement_covariance_floor": expected,
        "chain/agreement_chains": n,
        "chain/agreement_steps": steps,
    }


def samples(model: VAE, classifier: Classifier, data: ImageDataModule, settings: Settings) -> Figures:
    """Prior samples against test images in the classifier's features, beside the floor: training images against test.

    All three sets have the same size. `<key>_floor` is what a perfect model would score.
    """
    options, seed = settings["samples"], settings["seed"]
    test, train = data.split_pixels("test"), data.split_pixels("train")
    n = min(options["n"], len(test), len(train))
    generator = generator_of(seed, model.device)
    fake = torch.cat([model.sample(min(1000, n - i), generator) for i in range(0, n, 1000)])
    if options["kind"] == "clipped":
        fake = fake.clamp(0, 1)
    elif options["kind"] == "noisy":
        fake = fake + model.sigma * torch.randn(fake.shape, generator=generator, device=fake.device)
    order = torch.Generator().manual_seed(seed)
    chosen = [pixels[torch.randperm(len(pixels), generator=order)[:n]].to(model.device) for pixels in (test, train)]
    real, floor, made = (in_batches(classifier.features, images).cpu() for images in (*chosen, fake))
    figures: Figures = {"samples/n": n, "samples/kind": options["kind"], "samples/k": options["k"]}
    figures["samples/expected_coverage"] = metrics.expected_coverage(n, n, options["k"])
    for name, other in (("", made), ("_floor", floor)):
        kid, kid_se = metrics.kernel_distance(real, other, seed=seed)
        figures |= {
            f"samples/fid{name}": metrics.frechet_distance(real, other),
            f"samples/fid{name}_se": metrics.frechet_error(real, other, torch.Generator().manual_seed(seed)),
            f"samples/kid{name}": kid,
            f"samples/kid{name}_se": kid_se,
        }
        found = metrics.neighbours(real, other, options["k"])
        figures |= means({f"samples/{key}{name}": value for key, value in found._asdict().items()})
    return figures
