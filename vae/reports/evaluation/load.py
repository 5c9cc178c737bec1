"""Opens what an evaluation needs: its settings, the run, the run to compare with, the data."""

import os
from typing import Any

from omegaconf import DictConfig, OmegaConf

from vae.data.datamodule import ImageDataModule
from vae.reports.evaluation.metrics import Settings
from vae.reports.evaluation.settings import EvaluateSettings
from vae.runs.devices import accelerators, unavailable_accelerator
from vae.runs.errors import UserError, resolved
from vae.runs.folder import Run, load_data, open_runs
from vae.runs.identity import comparability, incomparable
from vae.runs.settings import settings_problems


def load_and_validate(config: DictConfig) -> tuple[Settings, Run, Run | None, ImageDataModule]:
    """The settings, the run, the run to compare it with, and their data.

    UserError tells all problems at once.
    """
    # 1. The settings by themselves.
    settings = resolved(config)
    problems = settings_problems(settings, EvaluateSettings)
    problems += unavailable_accelerator("accelerator", settings.get("accelerator"))
    problems += sample_problems(settings.get("samples"))

    # 2. The runs.
    device = accelerators().get(str(settings.get("accelerator")), "cpu")
    allow = settings.get("allow")
    opened: dict[str, Run] = {}
    for key in ("run", "against"):
        for run in open_runs(key, settings.get(key), allow, device, problems):
            opened[key] = run
    first, other = opened.get("run"), opened.get("against")
    if first is not None and other is not None:
        problems += [
            f"against={other.folder} does not compare with run={first.folder}: {line} there"
            for line in incomparable(described(other), described(first))
        ]
    if first is not None and not os.access(first.folder, os.W_OK):
        problems.append(
            f"run: {first.folder} cannot be written, and evaluation.json goes there; "
            "copy the run elsewhere"
        )
    if problems or first is None:
        raise UserError(*problems)

    # 3. The data.
    try:
        data = load_data(first.config, settings["data"]["root"], tuple(settings["allow"]))
    except UserError as error:
        raise UserError(*(f"run: {first.folder}: {line}" for line in error.problems)) from error
    for one in opened.values():
        one.model.requires_grad_(False)
    return settings, first, other, data


def described(run: Run) -> dict[str, Any]:
    """What must be alike between runs whose metrics are compared."""
    settings: Any = OmegaConf.to_container(run.config)
    return comparability(settings, run.model.image_shape, run.model.likelihood.density)


def sample_problems(samples: Any) -> list[str]:
    """Neighbours and the KID's cubic terms need more samples than there are of them."""
    n, k = (samples.get(key) if isinstance(samples, dict) else None for key in ("n", "k"))
    if isinstance(n, int) and isinstance(k, int) and 0 < n <= max(k, 3):
        return [f"samples.n={n} must be more than samples.k={k} and than 3, or 0 to do without"]
    return []
