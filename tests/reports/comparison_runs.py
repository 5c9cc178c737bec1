"""Real runs for the tests of the comparison, and entries with metrics of their own."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import composed
from omegaconf import OmegaConf

from vae.reports.comparison.entries import Entry, measure_entries
from vae.reports.comparison.measure import Training
from vae.reports.comparison.selection import common_data, runs_to_compare
from vae.train import train

ROOT = Path(__file__).parents[2]
MARKUP = "deep <img src=x onerror=\"document.title='x'\"> & <script>document.title='x'</script>"
EVALUATION = {
    "exact/log_p": 12.345678,
    "iwae/K=1000": -987.654321,
    "iwae/K=1000_se": 0.54321,
    "iwae/K=1000_ess": 1.5,
    "samples/fid": 41.25,
    "samples/fid_floor": 0.75,
    "samples/kid": 0.01234,
    "samples/kind": "mean",
    "remark": "<b>bold</b>",
}


def make_run(folder: Path, name: str | None = None, *overrides: str) -> Path:
    """A real run of ten epochs on the 400 digits, with its settings where load_run reads them."""
    pictures = [
        f"~callbacks.{each}"
        for each in ("reconstructions", "prior_samples", "posterior_collapse", "chain")
    ]
    quick = [
        "data=digits",
        f"data.root={ROOT / 'data'}",
        "trainer.accelerator=cpu",
        "trainer.max_epochs=10",
        "data.batch_size=32",
    ]
    config = composed("train", *quick, *pictures, *overrides)
    config.logger = None
    if name is not None:
        config.model.name = name
    (folder / ".hydra").mkdir(parents=True)
    OmegaConf.save(config, folder / ".hydra" / "config.yaml")
    train(config, folder)
    return folder


def with_config(folder: Path, source: Path, **changes: Any) -> Path:
    """A copy of a run, its settings changed."""
    shutil.copytree(source, folder)
    config = OmegaConf.load(folder / ".hydra" / "config.yaml")
    for key, value in changes.items():
        OmegaConf.update(config, key.replace("__", "."), value)
    OmegaConf.save(config, folder / ".hydra" / "config.yaml")
    return folder


def write_evaluation(folder: Path, evaluation: dict[str, Any]) -> None:
    (folder / "evaluation.json").write_text(json.dumps(evaluation))


def changed(training: Training, **metrics: float) -> Training:
    """A training with other metrics (`test__elbo=…`), its values by image shifted to match."""
    metrics = {key.replace("__", "/"): value for key, value in metrics.items()}
    per_image = dict(training.per_image)
    for key, value in metrics.items():
        if key in per_image:
            per_image[key] = per_image[key] + (value - per_image[key].mean())
    return dataclasses.replace(training, metrics=training.metrics | metrics, per_image=per_image)


def entry(name: str, training: Training, *metrics: dict[str, float]) -> Entry:
    """An entry with one training for each of these metrics; without any, the training itself."""
    return Entry(name, [changed(training, **each) for each in metrics] or [training])


def evaluated(name: str, training: Training, *evaluations: dict[str, Any]) -> Entry:
    """An entry with one training for each of these evaluations."""
    return Entry(name, [dataclasses.replace(training, evaluation=each) for each in evaluations])


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A baseline without an evaluation, and a deep model with one and with markup in its name."""
    parent = tmp_path_factory.mktemp("runs")
    baseline = make_run(parent / "a", None, "model=baseline", "model.latent_dim=8")
    deep = make_run(parent / "b", MARKUP, "model=deep", "model.latent_dim=8")
    write_evaluation(deep, EVALUATION)
    return [baseline, deep]


@pytest.fixture(scope="session")
def entries(folders: list[Path]) -> list[Entry]:
    runs = runs_to_compare([str(folder) for folder in folders])
    return measure_entries(runs, common_data(runs))
