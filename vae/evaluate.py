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
    """Figures of a run, written to its `evaluation.json` once all of them are there, and shown as a
    table.

    Raises UserError with every problem of the settings and the run folder at once, RunError where
    the data cannot be had or the file not be written.
    """
    # Heavy imports wait until a run starts, so that --help answers at once.
    from vae.reports.evaluation import chain as evaluation_chain
    from vae.reports.evaluation import measure as evaluation
    from vae.reports.evaluation.table import table
    from vae.runs import files

    started = time.perf_counter()
    settings, run, other, data = evaluation.load_and_validate(config)
    model, images = run.model, data.images("test")
    figures: dict[str, Any] = {
        "run": str(run.folder),
        "model": model.name,
        "data": run.config.data.get("name"),
    }
    figures |= {
        "latent_dim": model.latent_dim,
        "likelihood": model.likelihood.label,
        "seed": settings["seed"],
    }

    # 1. How likely are the test images? One value an image, so that two runs compare image by
    # image.
    values, found = evaluation.likelihoods(model, images, settings)
    figures |= evaluation.means(values) | found
    if data.kind == "dequantised" and model.likelihood.density:
        figures |= evaluation.bits_per_dimension(figures)
    if other is not None:
        figures["against"] = str(other.folder)
        figures |= evaluation.paired(
            values, evaluation.likelihoods(other.model, images, settings)[0]
        )
    figures["time/likelihood_seconds"] = time.perf_counter() - started

    # 2. Which latents carry something?
    figures |= evaluation.collapse(model, data, settings)

    # 3. Where does the chain go, and how good are prior samples? Both through a classifier's eyes.
    if settings["chain"]["chains"] or settings["samples"]["n"]:
        classifier, found = evaluation.classifier_of(data, settings, model.device)
        figures |= found
        if settings["chain"]["chains"]:
            figures |= evaluation_chain.chains(model, classifier, settings)
        if settings["samples"]["n"]:
            figures |= evaluation.samples(model, classifier, data, settings)

    figures["time/seconds"] = time.perf_counter() - started
    print(table(figures))
    path = run.folder / "evaluation.json"
    try:
        files.write_json(path, figures)
    except OSError as error:
        raise RunError(
            f"{path} cannot be written ({error.strerror}); the figures are those above"
        ) from error
    print(f"written to {path}")
    return figures


if __name__ == "__main__":
    main()
