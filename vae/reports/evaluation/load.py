"""Opens what an evaluation needs: its settings, the run, the run to compare with, the data."""

import os

from omegaconf import DictConfig

from vae.data.datamodule import ImageDataModule
from vae.reports.evaluation.metrics import Settings
from vae.runs.errors import UserError, resolved
from vae.runs.folder import Run, divergence_problem, load_data, load_run
from vae.runs.validation import EVALUATE_RULES, accelerators, problems_of, unavailable_accelerator


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
    """What its metrics are about: the data set, its pixels, and whether they are nats of a
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
