"""Runs that the tests of the comparison share."""

from pathlib import Path

import pytest
from comparison_runs import EVALUATION, MARKUP, make_run, write_evaluation

from vae.reports.comparison.entries import Entry, measure_entries
from vae.reports.comparison.selection import common_data, open_runs


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
    runs = open_runs([str(folder) for folder in folders])
    return measure_entries(runs, common_data(runs))
