"""Small files of a run folder, written atomically, read and written without torch."""

import contextlib
import itertools
import json
import math
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vae.runs.errors import UserError
from vae.runs.printable import printable

SETTINGS = ".hydra/config.yaml"  # of a run folder
MAX_JSON_BYTES = 32_000_000


def atomic_write(path: Path, content: str | bytes) -> None:
    """Write a file that is there complete or as it was before; text as UTF-8."""
    partial = path.with_name(f".{path.name}.partial")
    partial.unlink(missing_ok=True)  # of a process that was killed; or a link, not to be followed
    with partial.open("xb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
    os.replace(partial, path)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """One key a line; a number that is not finite becomes null, as JSON has no other word for
    it."""
    lines = [
        f"  {json.dumps(key)}: {json.dumps(finite(value), allow_nan=False)}"
        for key, value in content.items()
    ]
    atomic_write(path, "{\n" + ",\n".join(lines) + "\n}\n")


def read_json(path: Path) -> dict[str, Any]:
    """Empty where there is no such file, where it is damaged, too large, or a link elsewhere."""
    try:
        outside = path.parent.resolve() not in path.resolve().parents
        if outside or not path.is_file() or path.stat().st_size > MAX_JSON_BYTES:
            return {}
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def runs_below(folder: Path) -> list[Path]:
    """The run folders in a folder, at any depth, sorted; the folder itself where it is one."""
    return sorted(path.parents[1] for path in folder.glob(f"**/{SETTINGS}"))


def read_metrics(path: Path) -> dict[str, float | None]:
    """The numbers of a JSON file by their keys; None for those that are not finite.

    An integer larger than every float is not finite either.
    """
    return {
        printable(key): finite(value) if isinstance(value, float) else as_finite(value)
        for key, value in read_json(path).items()
        if value is None or (isinstance(value, int | float) and not isinstance(value, bool))
    }


def as_finite(value: int | None) -> int | None:
    return value if value is None or abs(value) < 1e300 else None


def finite_number(value: Any) -> float | None:
    """The value as a float; None for anything but a number, and where it is not finite, as an
    integer larger than every float."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if -1e300 < value < 1e300 else None


def finite(value: Any) -> Any:
    """None for the numbers that are not finite, at any depth of dictionaries and lists."""
    if isinstance(value, dict):
        return {key: finite(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [finite(child) for child in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def make_unique_folder(folder: Path) -> Path:
    """Make the folder, or the first of <folder>-2, <folder>-3 … that is not there yet."""
    for candidate in itertools.chain(
        [folder], (folder.with_name(f"{folder.name}-{n}") for n in itertools.count(2))
    ):
        with contextlib.suppress(FileExistsError):
            candidate.mkdir(parents=True)
            break
    return candidate


@contextlib.contextmanager
def folder_lock(folder: Path, setting: str = "hydra.run.dir", timeout: float = 0) -> Iterator[None]:
    """Hold a folder against other processes, which get a UserError; a process that is killed gives
    it back.

    Of one run's processes the first holds it, for all of them. Waits `timeout` seconds for another
    process to end, without limit where it is negative.
    """
    from filelock import FileLock, Timeout  # slow to import

    if not is_rank_zero():
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock", is_singleton=True)  # within a process it can be taken again
    try:
        lock.acquire(timeout=timeout, poll_interval=0.2)
    except Timeout:
        raise UserError(
            f"{setting}={folder}: another process is writing there; wait for its end or stop it"
        ) from None
    try:
        yield
    finally:
        lock.release()


def is_locked(folder: Path) -> bool:
    """Whether a process holds the folder; False where that cannot be found out."""
    from filelock import FileLock, Timeout

    if not (folder / ".lock").is_file():
        return False
    try:
        with FileLock(folder / ".lock").acquire(timeout=0):
            return False
    except Timeout:
        return True
    except OSError:
        return False


def is_rank_zero() -> bool:
    """Whether this is the process that writes files, by what launchers of several processes tell
    each of them."""
    return all(
        os.environ.get(name, "0") == "0"
        for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")
    )


def quote_override(key: str, folder: Path) -> str:
    """`key=<folder>` as a shell and Hydra read it."""
    return shlex.quote(hydra_override(key, folder))


def hydra_override(key: str, folder: Path | str) -> str:
    """`key=<folder>` as Hydra reads it: a sweep's folders have = and , in their names."""
    if re.fullmatch(r"[\w/.:+-]+", str(folder), re.ASCII):
        return f"{key}={folder}"
    quoted = str(folder).replace("'", "\\'")
    return f"{key}='{quoted}'"
