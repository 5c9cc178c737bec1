"""comparison.json: every metric of the page, unrounded."""

from collections.abc import Sequence
from typing import Any

from omegaconf import OmegaConf

from vae.reports.comparison.entries import Entry, compare, value_of
from vae.reports.comparison.measure import Training


def as_json(
    entries: Sequence[Entry], verdict: dict[str, list[str]], cautions: list[str]
) -> dict[str, Any]:
    """Verdict, cautions, and of each entry means with both errors, differences and trainings."""
    return {
        "verdict": verdict,
        "not_to_be_concluded": cautions,
        "reference": entries[0].name,
        "entries": [entry_json(entry, entries[0]) for entry in entries],
    }


def entry_json(entry: Entry, reference: Entry) -> dict[str, Any]:
    """`metrics`: mean, `se` (over images or samples), `sd` (over trainings) and trainings."""
    keys = dict.fromkeys([*entry.first.metrics, *entry.first.evaluation])
    return {
        "name": entry.name,
        "metrics": {
            key: entry.metric(key)._asdict()
            for key in keys
            if not key.endswith("_se") and entry.has(key)
        },
        "difference_to_reference": {
            key: compare(reference, entry, key)._asdict()
            for key in entry.first.per_image
            if key in reference.first.per_image
        },
        "trainings": [training_json(training) for training in entry.trainings],
    }


def training_json(training: Training) -> dict[str, Any]:
    closed_form = training.oracle.kl.tolist() if training.linear and training.oracle else None
    metrics = {key: value_of(training, key) for key in training.metrics}
    return {
        "folder": str(training.run.folder),
        "seed": training.seed,
        "settings": OmegaConf.to_container(training.run.config, resolve=False),
        "metrics": metrics,
        "kl_per_latent": training.kl.tolist(),
        "closed_form_kl_per_latent": closed_form,
        "chain_limit": training.limit._asdict(),
        "chain_drift": training.trace.drifts,
        "curves": training.history,
        "evaluation": training.evaluation,
        "notes": training.notes,
    }
