"""Whether the settings of a run folder may be resumed: what they name is built and writes files.

A resumed run builds optimizers, callbacks and loggers as its settings say, so these name classes of
torch, Lightning and this project, or of your own module that lies outside the run folder.
Nothing is imported before that has been checked. Everything raises UserError with one line a
problem.
"""

import importlib.util
import pydoc
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import lightning.pytorch as L
import torch
from hydra.utils import instantiate
from lightning.pytorch.loggers import Logger
from lightning.pytorch.profilers import Profiler
from lightning.pytorch.strategies import Strategy
from omegaconf import DictConfig, OmegaConf

from vae.models.objectives import ELBO, IWAE
from vae.runs.errors import UserError
from vae.runs.printable import printable

SCHEDULERS = (torch.optim.lr_scheduler.LRScheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)
STATEFUL_CLASSES = (
    *(torch.nn.Module, torch.optim.Optimizer, *SCHEDULERS, L.LightningDataModule),
    *(L.Trainer, L.Callback, Logger, Profiler, Strategy, ELBO, IWAE),
)


def check_resumable(folder: Path, settings: Mapping[str, Any], given: set[str]) -> None:
    """Raise UserError for settings of a run that name code or files of a stranger's choice.

    `given` are the keys that the command line sets: they are the user's own.
    """
    problems = []
    for key, value in walk(settings):
        if key in given:
            continue
        if key.rpartition(".")[2] == "_target_":
            problem = target_problem(folder, value)
        else:
            problem = path_problem(folder, key, value)
        if problem:
            problems.append(f"{printable(key)}={printable(value)} {problem}")
    if problems:
        raise UserError(*(f"resume={folder}: {problem}" for problem in problems))


def walk(node: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every text at any depth of mappings and lists, with its dotted key."""
    if isinstance(node, Mapping):
        for name, child in node.items():
            yield from walk(child, f"{key}.{name}" if key else str(name))
    elif isinstance(node, list):
        for index, child in enumerate(node):
            yield from walk(child, f"{key}.{index}")
    elif isinstance(node, str):
        yield key, node


def target_problem(folder: Path, target: str) -> str | None:
    """Why a class is not made; no module of the standard library or the folder is imported."""
    top = target.partition(".")[0]
    try:
        spec = importlib.util.find_spec(top)  # of a top-level module: imports nothing
    except (ImportError, ValueError):
        spec = None
    if spec is None:
        return "does not exist here"
    inside = spec.origin is not None and folder.resolve() in Path(spec.origin).resolve().parents
    if top in sys.stdlib_module_names or spec.origin is None or inside:
        return "is refused: it is of the standard library, the run folder, or no module"
    try:
        found = pydoc.locate(target)
    except Exception:  # whatever the import of a module raises
        found = None
    if found is None:
        return "does not exist here"
    own = top == "vae" and callable(found)
    if not own and not (isinstance(found, type) and issubclass(found, STATEFUL_CLASSES)):
        return (
            "is refused: it is no module, optimizer, schedule, callback, logger, data module or "
            "subclass of an objective"
        )
    return None


def path_problem(folder: Path, key: str, value: str) -> str | None:
    """Why a text that names a file elsewhere is refused; `data.root` is only read from."""
    if key in ("data.root", "model.name"):
        return None
    path = value.removeprefix("sqlite:///").removeprefix("file://")
    absolute = PurePosixPath(path).is_absolute() or PureWindowsPath(path).is_absolute()
    parts = {*PurePosixPath(path).parts, *PureWindowsPath(path).parts}
    home = folder.resolve()
    if ".." in parts or (absolute and home not in (home / path).resolve().parents):
        return f"leads out of the run folder; add {key}=<path> to the command if it is yours"
    return None


def resolver_keys(path: Path) -> Iterator[str]:
    """Settings that a run never got to write resolved: their values come from today's settings."""
    raw: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    for key, value in walk(raw):
        if "${" in value and ":" in value.partition("${")[2]:
            yield key


def use_prepared_root(config: DictConfig, today: DictConfig) -> None:
    """Take this machine's folder of data where the run's has no data: none is written there.

    Settings of data that cannot be used stay as they are; their validation says what is wrong.
    """
    root, node = OmegaConf.select(today, "data.root"), config.get("data")
    if root is None or not isinstance(node, DictConfig) or "root" not in node:
        return
    try:
        data = instantiate(node, _convert_="all")
    except Exception:  # whatever a constructor makes of them
        return
    if not getattr(data, "is_prepared", lambda: True)():
        config.data.root = root
