"""Judge a trained run: python -m vae.evaluate run=<run folder> [against=<run folder>]
[any.key=value …]"""

import time
from typing import Any

import hydra
from omegaconf import DictConfig

from vae import config_folder
from vae.runs.errors import RunError, report_errors


@hydra.main(version_base="1.3", config_path=config_folder(), config_name="evaluate")
@report_errors
def main(config: DictConfig) -> None:
    evaluate(config)


def evaluate(config: DictConfig) -> dict[str, Any]:
    """Metrics of a run, written to its `evaluation.json` once all of them are there, and shown as a
    table.

    Raises UserError with every problem of the settings and the run folder at once, RunError where
    the data cannot be had or the file not be written.
    """
    # Heavy imports wait until a run starts, so that --help answers at once.
    from vae.reports.chain import chains
    from vae.reports.latents import collapse
    from vae.reports.likelihood import bits_per_dimension, likelihoods
    from vae.reports.load import load_and_validate
    from vae.reports.metrics import means, paired
    from vae.reports.samples import load_classifier, samples
    from vae.reports.table import table
    from vae.runs import files

    started = time.perf_counter()
    settings, run, other, data = load_and_validate(config)
    model, images = run.model, data.images("test")
    metrics: dict[str, Any] = {
        "run": str(run.folder),
        "model": model.name,
        "data": run.config.data.get("name"),
    }
    metrics |= {
        "latent_dim": model.latent_dim,
        "likelihood": model.likelihood.label,
        "seed": settings["seed"],
    }

    # 1. How likely are the test images? One value an image, so that two runs compare image by
    # image.
    values, found = likelihoods(model, images, settings)
    metrics |= means(values) | found
    if data.kind == "dequantised" and model.likelihood.density:
        metrics |= bits_per_dimension(metrics, images[0].numel())
    if other is not None:
        metrics["against"] = str(other.folder)
        metrics |= paired(values, likelihoods(other.model, images, settings)[0])
    metrics["time/likelihood_seconds"] = time.perf_counter() - started

    # 2. Which latents carry something?
    metrics |= collapse(model, data, settings)

    # 3. Where does the chain go, and how good are prior samples? Both through a classifier's eyes.
    if settings["chain"]["chains"] or settings["samples"]["n"]:
        classifier, found = load_classifier(data, settings, model.device)
        metrics |= found
        if settings["chain"]["chains"]:
            metrics |= chains(model, classifier, settings)
        if settings["samples"]["n"]:
            metrics |= samples(model, classifier, data, settings)

    metrics["time/seconds"] = time.perf_counter() - started
    print(table(metrics))
    path = run.folder / "evaluation.json"
    try:
        files.write_json(path, metrics)
    except OSError as error:
        raise RunError(
            f"{path} cannot be written ({error.strerror}); the metrics are those above"
        ) from error
    print(f"written to {path}")
    return metrics


if __name__ == "__main__":
    main()
