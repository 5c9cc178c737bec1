"""Checkpoint files."""

from pathlib import Path

import pytest
import torch

from vae.training.checkpoints import AtomicCheckpointIO


def test_the_best_that_is_also_the_last_is_written_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    best, last = (tmp_path / name for name in ("best.ckpt", "last.ckpt"))
    checkpoints = AtomicCheckpointIO()
    for epoch, path, links in (
        (1, best, 1),
        (1, last, 2),
        (2, last, 1),
        (2, best, 2),
        (3, best, 1),
    ):
        checkpoints.save_checkpoint({"epoch": epoch, "loops": {"fit_loop": {"epoch": epoch}}}, path)
        assert torch.load(path, weights_only=True)["epoch"] == epoch
        assert path.stat().st_nlink == links

    def unknown(*_: object) -> None:
        raise OSError("Operation not supported")

    monkeypatch.setattr("os.link", unknown)
    checkpoints.save_checkpoint({"epoch": 3, "loops": {"fit_loop": {"epoch": 3}}}, last)
    assert torch.load(last, weights_only=True)["epoch"] == 3
    assert last.stat().st_nlink == 1
    assert {path.name for path in tmp_path.iterdir()} == {"best.ckpt", "last.ckpt"}
