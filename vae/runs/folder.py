"""Run folders: what a run leaves behind, and how it is opened again."""

import copy
import logging
import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn

from vae.models.vae import VAE
from vae.runs.checkpoints import BEST, LAST, check_shapes, model_state, read_checkpoint
from vae.runs.devices import device_name
from vae.runs.errors import UserError, first_line, resolved
from vae.runs.files import SETTINGS, atomic_write, read_metrics
from vae.runs.identity import may_change_on_resume
from vae.runs.keys import select, split_override
from vae.runs.printable import printable
from vae.runs.resumable import check_resumable, resolver_keys, use_prepared_root
from vae.runs.signatures import node_problems
from vae.runs.untrusted import as_texts, check_links, check_targets, read_settings, read_yaml

log = logging.getLogger(__name__)

PACKAGES = ("torch", "torchvision", "lightning", "hydra-core", "omegaconf", "tensorboard", "numpy")


@dataclass(frozen=True)
class Run:
    """A trained run: its model in eval mode, its resolved settings, and its final metrics."""

    folder: Path
    model: VAE
    config: DictConfig
    metrics: dict[str, float | None]  # None: not finite
    notes: tuple[str, ...] = ()  # what a reader of its metrics must know


def load_run(
    folder: str | Path,
    checkpoint: str | None = None,
    device: str = "cpu",
    allow: tuple[str, ...] = (),
) -> Run:
    """Open a run folder, wherever it was copied from.

    The weights are those of its best checkpoint, or of the last one where it never validated, which
    a note of the Run says. Only networks of this project and of torch.nn are built from its
    settings; name the modules of your own in `allow`. Raises UserError with one line for a folder
    that is no run or a checkpoint that cannot be used.
    """
    folder = Path(folder)
    config, notes = read_config(folder), []
    if checkpoint is None:
        checkpoint = BEST
        if not (folder / BEST).exists() and (folder / LAST).exists():
            checkpoint = LAST
            notes.append("it never validated: these are the weights of its last checkpoint")
            log.warning("%s: %s", folder, notes[0])
    node: Any = OmegaConf.to_container(config.model)
    try:
        check_targets(node, ("vae.", "torch.nn.", *allow), nn.Module, VAE)
    except UserError as error:
        raise UserError(f"{folder}: {error}") from error
    state = model_state(read_checkpoint(folder / checkpoint)["state_dict"])
    model = build_model(folder, node, state, bool(allow))
    model.name = printable(model.name, length=100)
    metrics = read_metrics(folder / "metrics.json")
    return Run(folder, model.to(device).eval(), config, metrics, tuple(notes))


def build_model(folder: Path, node: dict[str, Any], state: dict[str, Any], trusted: bool) -> VAE:
    """The model of these settings with these weights.

    It is first built without memory, on torch's device `meta`, and compared with the weights: so
    settings cannot ask for more than the checkpoint has. Classes that are `trusted` may not work
    there.
    """
    problems = [*node_problems("model", node)]
    if problems:
        raise UserError(*(f"{folder}: {problem}" for problem in problems))
    try:
        if not trusted:
            with torch.device("meta"), torch.no_grad():
                outline: VAE = instantiate(node, _convert_="all")
                check_shapes(outline, state)
        model: VAE = instantiate(node, _convert_="all")
        model.load_state_dict(state)
    except Exception as error:
        line = " ".join(str(error.__cause__ or error).split())
        raise UserError(f"{folder}: its checkpoint and its settings do not fit ({line})") from error
    return model


def open_runs(
    setting: str,
    folders: Any,
    allow: Any = (),
    problems: list[str] | None = None,
) -> list[Run]:
    """The runs of these folders, for a command whose setting named them.

    A folder that cannot be opened, or whose weights are not finite, gets a line that begins with
    the setting: in `problems`, where a command collects them, else in a UserError.
    """
    found: list[str] = []
    runs = []
    modules = (
        tuple(m for m in allow if isinstance(m, str)) if isinstance(allow, list | tuple) else ()
    )
    for folder in folders if isinstance(folders, list | tuple) else [folders]:
        if not isinstance(folder, str | Path) or not str(folder) or "\0" in str(folder):
            continue  # the command's own validation says so
        try:
            run = load_run(folder, allow=modules)
            if problem := divergence_problem(run):
                raise UserError(problem)
            runs.append(run)
        except UserError as error:
            found += [f"{setting}: {line}" for line in error.problems]
    if problems is not None:
        problems += found
    elif found:
        raise UserError(*found)
    return runs


def divergence_problem(run: Run) -> str | None:
    """The problem with weights that are not finite, or None."""
    if all(torch.isfinite(weight).all() for weight in run.model.parameters()):
        return None
    return f"{run.folder} holds weights that are not finite: its training diverged"


def read_config(folder: Path) -> DictConfig:
    """The settings that a run was trained with."""
    path = folder / SETTINGS
    if not path.is_file():
        raise UserError(f"{folder} is no run folder: it has no {SETTINGS}")
    check_links(folder)
    settings = read_settings(path)
    if not isinstance(settings.get("model"), dict):
        raise UserError(f"{path} is not the settings of a training run")
    return OmegaConf.create(settings)


def write_resolved_config(config: DictConfig, folder: Path) -> None:
    """Keep a run's settings with every reference and resolver replaced by its value.

    So opening the folder needs neither this machine's environment nor its Hydra.
    """
    plain = OmegaConf.create(resolved(config) | {"resume": None})
    (folder / SETTINGS).parent.mkdir(parents=True, exist_ok=True)
    atomic_write(folder / SETTINGS, OmegaConf.to_yaml(plain))


def saved_config(folder: Path, overrides: Sequence[str], today: DictConfig) -> DictConfig:
    """The settings of a run to resume, with the other overrides of the command line on top.

    `today` are the settings that this command line composes without the run: the values of its
    overrides, and of whole keys that came with a later version than the run's. A preset, such as
    +experiment=fast, has no value: it is no change where the run was started with it.
    """
    saved = read_config(folder)
    changes = {o: split_override(o)[0] for o in overrides if not o.startswith("resume=")}
    unresolved = resolver_keys(folder / SETTINGS)  # of a run that was killed before it began
    for key in unresolved:
        OmegaConf.update(saved, key, OmegaConf.select(today, key), merge=False)
    now, then = resolved(copy.deepcopy(today)), OmegaConf.to_container(saved)
    started_with = as_texts(read_yaml(folder / ".hydra" / "overrides.yaml"))
    presets = {o for o in started_with if split_override(o)[0].split(".")[0] not in now}
    changes = {  # without overrides that say what the run has already
        o: key
        for o, key in changes.items()
        if o not in presets and ((value := select(now, key)) is None or value != select(then, key))
    }
    fixed = [o for o, key in changes.items() if not may_change_on_resume(key)]
    refused = [f"{o} cannot be changed while resuming {folder}" for o in fixed]
    groups = [
        o
        for o, key in changes.items()
        if o not in fixed and (OmegaConf.is_dict(today.get(key)) or key.split(".")[0] not in today)
    ]
    refused += [f"{o}: while resuming {folder}, change single settings of it" for o in groups]
    if refused:
        raise UserError(*refused)
    config = OmegaConf.merge({key: today[key] for key in today if key not in saved}, saved)
    assert isinstance(config, DictConfig)
    for key in changes.values():  # what was taken away with ~ is null
        OmegaConf.update(config, key, OmegaConf.select(today, key), merge=False)
    plain: Any = OmegaConf.to_container(config)
    check_resumable(folder, plain, {*changes.values()})
    if "data.root" not in changes.values():
        use_prepared_root(config, today)
    if isinstance(config.model.get("name"), str):
        config.model.name = printable(config.model.name, length=100)
    return config


def discard_empty_run(folder: Path) -> None:
    """Take away the folder of a run that never began; a folder with anything more than its settings
    stays."""
    if folder.is_dir() and {path.name for path in folder.iterdir()} <= {
        ".hydra",
        ".lock",
        "train.log",
    }:
        shutil.rmtree(folder)


def load_data(config: DictConfig, root: str | None = None, allow: tuple[str, ...] = ()) -> Any:
    """The data module that a run was trained with, ready for testing.

    The files are read where the run had them, if they are there; else in `root`, or in this
    machine's folder of data ($VAE_DATA, or data/), and only there fetched. Raises UserError for
    settings that name anything but a data module of this project or of `allow`, RunError where the
    files cannot be had.
    """
    settings: Any = dict(OmegaConf.to_container(config)).get("data")  # type: ignore[arg-type]
    if not isinstance(settings, dict) or "_target_" not in settings:
        raise UserError("its settings name no data")
    check_targets(settings, ("vae.data.", *allow), L.LightningDataModule)
    own = "root" if "root" in settings else None
    passed: dict[str, Any] = {} if root is None else {"root": root}
    if problems := [*node_problems("data", settings)]:
        raise UserError(*problems)
    try:
        data = instantiate(settings, _convert_="all", **passed)
        if root is None and own and not getattr(data, "is_prepared", lambda: True)():
            data = instantiate(settings, _convert_="all", root=os.environ.get("VAE_DATA", "data"))
    except Exception as error:
        raise UserError(f"its data settings cannot be used ({first_line(error)})") from error
    data.prepare_data()
    data.setup("test")
    return data


def environment(seed: int, device: torch.device) -> dict[str, Any]:
    """What the metrics of a run depend on besides its settings."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=40"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
    )
    return {
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in PACKAGES},
        "commit": commit.stdout.strip() or None,
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "seed": seed,
    }
