"""Which runs are compared, which repeat one training, and which do not compare."""

from pathlib import Path
from typing import Any

import pytest
from comparison_runs import (
    MARKUP,
    folders,
    with_config,
)

from vae.reports.comparison.selection import common_data, group_runs, runs_to_compare
from vae.runs.errors import UserError
from vae.runs.folder import load_run


def test_names_say_what_differs(folders: list[Path], tmp_path: Path) -> None:
    a = folders[0]
    runs = [load_run(folder) for folder in folders]
    assert group_runs(runs)[0] == ["baseline", MARKUP]
    other = with_config(tmp_path / "c", a, optimizer__lr=0.01, seed=3, trainer__log_every_n_steps=7)
    assert group_runs([runs[0], load_run(other)])[0] == ["baseline, lr=0.001", "baseline, lr=0.01"]


def test_runs_that_differ_in_the_seed_alone_are_one_entry(
    folders: list[Path], tmp_path: Path
) -> None:
    seeds = [with_config(tmp_path / f"seed{n}", folders[0], seed=n) for n in (2, 1)]
    names, groups = group_runs([load_run(f) for f in (folders[0], seeds[0], folders[1], seeds[1])])
    assert names == ["baseline", MARKUP]
    assert [[run.config.seed for run in group] for group in groups] == [[0, 1, 2], [0]]


def test_a_copy_of_a_run_is_no_second_training(folders: list[Path], tmp_path: Path) -> None:
    twin = with_config(tmp_path / "twin", folders[0])
    names, groups = group_runs([load_run(folders[0]), load_run(twin)])
    assert names == ["baseline (a)", "baseline (twin)"]
    assert [len(group) for group in groups] == [1, 1]


def test_more_than_24_entries_are_refused(folders: list[Path], tmp_path: Path) -> None:
    run = load_run(folders[0])
    many = []
    for n in range(25):
        config = run.config.copy()
        config.optimizer.lr = 0.001 * (n + 1)
        many.append(type(run)(run.folder, run.model, config, run.metrics))
    assert len(group_runs(many[:24])[0]) == 24
    with pytest.raises(UserError, match="make 25 entries, and at most 24"):
        group_runs(many)


def test_a_sweep_folder_stands_for_its_runs_in_natural_order(
    folders: list[Path], tmp_path: Path
) -> None:
    for name in ("latent_dim=16", "latent_dim=2", "latent_dim=8"):
        with_config(tmp_path / "sweep" / name, folders[0])
    (tmp_path / "sweep" / "failed" / ".hydra").mkdir(parents=True)
    found = runs_to_compare([str(tmp_path / "sweep"), str(folders[1])])
    assert [run.folder.name for run in found] == [
        "latent_dim=2",
        "latent_dim=8",
        "latent_dim=16",
        "b",
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data__name": "mnist"}, "data.name is digits and mnist"),
        ({"data__val_size": 50}, "data.val_size is 100 and 50"),
        ({"data__val_seed": 1}, "data.val_seed is 0 and 1"),
    ],
)
def test_runs_on_other_data_are_refused_by_name(
    folders: list[Path], tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    other = with_config(tmp_path / "other", folders[0], **changes)
    with pytest.raises(UserError) as error:
        common_data(runs_to_compare([str(folders[0]), str(other)]))
    (problem,) = error.value.problems
    assert message in problem
    assert str(other) in problem


def test_another_image_size_is_refused(folders: list[Path]) -> None:
    runs = [load_run(folder) for folder in folders]
    runs[1].model.image_shape = (1, 32, 32)
    with pytest.raises(UserError, match=r"image shape is 1×28×28 and 1×32×32"):
        common_data(runs)


def test_data_of_another_project_is_not_built(folders: list[Path], tmp_path: Path) -> None:
    other = with_config(tmp_path / "other", folders[0], data___target_="os.system")
    with pytest.raises(UserError, match=r"os\.system"):
        common_data([load_run(other)])
