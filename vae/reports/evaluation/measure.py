"""The parts of an evaluation: each takes a trained pair and gives its figures, flat keys as in
metrics.json.

`<key>_se` is the standard error of `<key>`. Everything random comes from `seed`, part by part, so
that one part gives the same figures whether the others run or not.
"""

import math
import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor
from tqdm import tqdm

from vae.analysis.ais import ais
from vae.analysis.bounds import Estimate, elbo_terms, iwae
from vae.analysis.classifier import Classifier, accuracy, cached_classifier, in_batches
from vae.analysis.latents import COLLAPSE_THRESHOLD, INACTIVE_THRESHOLD, latent_statistics
from vae.analysis.sample_quality import (
    expected_coverage,
    frechet_distance,
    frechet_error,
    kernel_distance,
    neighbours,
)
from vae.data.datamodule import ImageDataModule
from vae.models.vae import VAE
from vae.runs.errors import UserError, resolved
from vae.runs.folder import Run, divergence_problem, load_data, load_run
from vae.runs.validation import EVALUATE_RULES, accelerators, problems_of, unavailable_accelerator
from vae.theory.linear import (
    affine_weights,
    kl_to_standard_normal,
    linear_elbo,
    linear_log_likelihood,
)
from vae.theory.ppca import best_linear

Settings = dict[str, Any]


Figures = dict[str, Any]


Values = dict[str, Tensor]  # one value an image, by key


THRESHOLDS = (0.001, 0.01, 0.1, 0.5)


def load_and_validate(config: DictConfig) -> tuple[Settings, Run, Run | None, ImageDataModule]:
    """The settings, the run, the run to compare it with, and their data; UserError tells all
    problems at once."""
    settings = resolved(config)
    problems = problems_of(settings, EVALUATE_RULES) + unavailable_accelerator(
        "accelerator", settings["accelerator"]
    )
    device = accelerators().get(str(settings["accelerator"]), "cpu")
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
        seen = [images_of(one) for one in (run, other)]
        if seen[0] != seen[1]:
            problems.append(
                f"against={settings['against']} was trained on {seen[1]}, run={settings['run']} on {seen[0]}"
            )
    problems += [
        f"{key}: {problem}"
        for key, one in runs.items()
        if one and (problem := evaluation_problem(one, key == "run"))
    ]
    n, k = settings["samples"]["n"], settings["samples"]["k"]
    if isinstance(n, int) and isinstance(k, int) and 0 < n <= max(k, 3):
        problems.append(
            f"samples.n={n} must be more than samples.k={k} and than 3, or 0 to do without"
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


def images_of(run: Run) -> str:
    """What its figures are about: the data set, its pixels, and whether they are nats of a
    density."""
    data = run.config.get("data", {})
    kind = "density" if run.model.likelihood.density else "probability"
    return f"{data.get('name')}, {data.get('pixels', 'grey')} pixels, by {kind}"


def evaluation_problem(run: Run, written: bool) -> str | None:
    """Why a run that could be read cannot be evaluated, or None; better said before the work than
    after it."""
    if problem := divergence_problem(run):
        return problem
    if written and not os.access(run.folder, os.W_OK):
        return f"{run.folder} cannot be written, and evaluation.json goes there; copy the run elsewhere"
    return None


def bar(what: str) -> Callable[[Any], Any]:
    """A progress bar on a terminal, nothing elsewhere."""
    return partial(tqdm, desc=what, leave=False, disable=None)


def batches(images: Tensor, settings: Settings, device: torch.device) -> Any:
    """Images [≤ batch_size, 1, 28, 28] on the device."""
    return (part.to(device) for part in images.split(settings["batch_size"]))


def generator_of(seed: int, device: torch.device) -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)


def likelihoods(model: VAE, images: Tensor, settings: Settings) -> tuple[Values, Figures]:
    """ELBO, exact log p of a linear pair, L_K and AIS of test images: one value an image, and the
    effective sizes."""
    device, seed, pair = model.device, settings["seed"], affine_weights(model)
    values: Values = {}
    shape = (settings["elbo"]["samples"], len(images), model.latent_dim)
    # With one sample this is the noise of the training's own test.
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).split(
        settings["batch_size"], dim=1
    )
    terms = [
        elbo_terms(model, x, part.to(device))
        for x, part in zip(bar("ELBO")(batches(images, settings, device)), noise, strict=True)
    ]
    values["test/log_likelihood"] = torch.cat([t.log_likelihood for t in terms])
    values["test/kl"] = torch.cat([t.kl for t in terms]).sum(1)
    values["test/elbo"] = values["test/log_likelihood"] - values["test/kl"]
    chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    some, few = chosen[: settings["iwae"]["images"]], chosen[: settings["ais"]["images"]]
    if pair is not None:
        exact = [linear_log_likelihood(pair, x) for x in batches(images, settings, device)]
        elbo = [linear_elbo(model, pair, x) for x in batches(images, settings, device)]
        values["exact/log_p"], values["exact/elbo"] = torch.cat(exact), torch.cat(elbo)
        values["exact/gap"] = values["exact/log_p"] - values["exact/elbo"]

    figures: Figures = {"test/images": len(images), "test/samples": shape[0]}
    if len(some):
        x = images[some].to(device)
        Ks, rows = settings["iwae"]["K"], settings["iwae"]["rows"]
        bounds = iwae(
            model, x, Ks, generator_of(seed, device), rows, bar("importance-weighted bound")
        )
        for K, bound in bounds.items():
            values[f"iwae/K={K}"] = bound.bound
            figures[f"iwae/K={K}_ess"] = bound.ess.mean().item()
        figures |= {"iwae/images": len(some), "iwae/K": Ks}
        if pair is not None:
            values["iwae/exact_log_p"] = values["exact/log_p"][some]
    if len(few):
        at_once = max(1, settings["ais"]["rows"] // settings["ais"]["chains"])
        options = {
            key: settings["ais"][key] for key in ("chains", "distributions", "leapfrog", "start")
        }
        generator = generator_of(seed, device)
        parts = [
            ais(model, x, generator=generator, progress=bar("AIS"), **options)
            for x in images[few].to(device).split(at_once)
        ]
        values["ais/log_p"] = torch.cat([part.log_p for part in parts])
        figures["ais/mc_se"] = torch.cat(
            [part.se for part in parts]
        ).square().sum().sqrt().item() / len(few)
        figures["ais/ess"] = torch.cat([part.ess for part in parts]).mean().item()
        figures["ais/acceptance"] = sum(part.acceptance for part in parts) / len(parts)
        figures |= {"ais/images": len(few)} | {
            f"ais/{key}": value for key, value in options.items()
        }
        if pair is not None:
            values["ais/exact_log_p"] = values["exact/log_p"][few]
        if len(few) <= len(some):
            best = settings["iwae"]["K"][-1]
            values["ais/iwae"] = values[f"iwae/K={best}"][: len(few)]
    return values, figures


def means(values: Values) -> Figures:
    """Mean and standard error of every value."""
    estimates = {key: Estimate.of(value) for key, value in values.items()}
    return {
        k: v for key, (mean, se) in estimates.items() for k, v in ((key, mean), (f"{key}_se", se))
    }


def bits_per_dimension(figures: Figures) -> Figures:
    """`bits/<key>` of every mean log density of pixels (x + u)/256: of the 256 grey levels
    themselves, from above.

    −log₂ p(x) / D + 8 (Theis et al. 2016, arXiv:1511.01844, section 3.1).
    """
    keys = [key for key in figures if re.fullmatch(r"test/elbo|(exact|ais)/log_p|iwae/K=\d+", key)]
    return {f"bits/{key}": 8 - figures[key] / (784 * math.log(2)) for key in keys}


def paired(values: Values, others: Values) -> Figures:
    """`against/<key>`: this run less the other, image by image, for every value that both have."""
    return means(
        {f"against/{key}": values[key].cpu() - others[key].cpu() for key in values if key in others}
    )


def collapse(model: VAE, data: ImageDataModule, settings: Settings) -> Figures:
    """What each latent carries over the test split; for a linear pair beside the closed form of the
    training split."""
    found = latent_statistics(model, batches(data.images("test"), settings, model.device))
    counts = found.counts(THRESHOLDS)
    figures: Figures = {
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
    oracle = best_linear(model.likelihood, data.spectrum(), model.latent_dim) if linear else None
    if oracle is not None:
        figures |= {
            "collapse/train_kl": latent_statistics(
                model, batches(data.images("train"), settings, model.device)
            ).kl.tolist(),
            "collapse/predicted_kl": oracle.kl.tolist(),
            "collapse/predicted_collapsed": oracle.collapsed,
            "oracle/test_elbo": oracle.elbo(data.images("test")).mean().item(),
        }
    return figures


def classifier_of(
    data: ImageDataModule, settings: Settings, device: torch.device
) -> tuple[Classifier, Figures]:
    """The classifier of this data set's training split, and how well it does on test."""
    options = settings["classifier"]
    train, labels = data.split_pixels("train").to(device), data.labels["train"][data.index["train"]]
    folder = Path(options["folder"])
    found = cached_classifier(folder, train, labels, options["epochs"], progress=bar("classifier"))
    right = accuracy(
        found, data.split_pixels("test").to(device), data.labels["test"][data.index["test"]]
    )
    return found, {"classifier/test_accuracy": right}


def samples(
    model: VAE, classifier: Classifier, data: ImageDataModule, settings: Settings
) -> Figures:
    """Prior samples against test images in the classifier's features, beside the floor: training
    images against test.

    All three sets have the same size. `<key>_floor` is what a perfect model would score.
    """
    options, seed = settings["samples"], settings["seed"]
    test, train = data.split_pixels("test"), data.split_pixels("train")
    n = min(options["n"], len(test), len(train))
    generator = generator_of(seed, model.device)
    noisy = options["kind"] == "noisy"
    fake = torch.cat([model.sample(min(1000, n - i), generator, noisy) for i in range(0, n, 1000)])
    if options["kind"] == "clipped":
        fake = fake.clamp(0, 1)
    order = torch.Generator().manual_seed(seed)
    chosen = [
        pixels[torch.randperm(len(pixels), generator=order)[:n]].to(model.device)
        for pixels in (test, train)
    ]
    real, floor, made = (
        in_batches(classifier.features, images).cpu() for images in (*chosen, fake)
    )
    figures: Figures = {"samples/n": n, "samples/kind": options["kind"], "samples/k": options["k"]}
    figures["samples/expected_coverage"] = expected_coverage(n, n, options["k"])
    for name, other in (("", made), ("_floor", floor)):
        kid, kid_se = kernel_distance(real, other, seed=seed)
        figures |= {
            f"samples/fid{name}": frechet_distance(real, other),
            f"samples/fid{name}_se": frechet_error(
                real, other, torch.Generator().manual_seed(seed)
            ),
            f"samples/kid{name}": kid,
            f"samples/kid{name}_se": kid_se,
        }
        found = neighbours(real, other, options["k"])
        figures |= means({f"samples/{key}{name}": value for key, value in found._asdict().items()})
    return figures
