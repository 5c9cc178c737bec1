"""Run folders: what a run leaves behind, and how it is opened again."""

import platform
import pydoc
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
from vae.runs.errors import UserError, resolved
from vae.runs.files import read_json

BEST, LAST = "checkpoints/best.ckpt", "checkpoints/last.ckpt"


FIXED = (
    "model",
    "likelihood",
    "data",
    "objective",
    "optimizer",
    "scheduler",
    "seed",
)  # what a checkpoint belongs to


PACKAGES = ("torch", "torchvision", "lightning", "hydra-core", "omegaconf", "tensorboard", "numpy")


@dataclass(frozen=True)
class Run:
    """A trained run: its model in eval mode, its resolved settings, and its final figures."""

    folder: Path
    model: VAE
    config: DictConfig
    metrics: dict[str, float | None]  # None: not finite


def load_run(
    folder: str | Path, checkpoint: str = BEST, device: str = "cpu", allow: tuple[str, ...] = ()
) -> Run:
    """Open a run folder, wherever it was copied from.

    Only networks of this project and of torch.nn are built from its settings; name the modules of
    your own in `allow`. Raises UserError with one line for a folder that is no run or a checkpoint
    that cannot be used.
    """
    folder = Path(folder)
    config = read_config(folder)
    try:
        resolved(config.model)
    except UserError as error:
        raise UserError(f"{folder}: {error}") from error
    check_targets(config.model, ("vae.", "torch.nn.", *allow))
    state = read_checkpoint(folder / checkpoint)["state_dict"]
    try:
        model: VAE = instantiate(config.model, _convert_="all")
        model.load_state_dict({key.removeprefix("model."): value for key, value in state.items()})
    except Exception as error:
        raise UserError(
            f"{folder}: its checkpoint and its settings do not fit ({error})"
        ) from error
    return Run(folder, model.to(device).eval(), config, read_json(folder / "metrics.json"))


def divergence_problem(run: Run) -> str | None:
    """The problem with weights that are not finite, or None."""
    if all(torch.isfinite(weight).all() for weight in run.model.parameters()):
        return None
    return f"{run.folder / BEST} holds weights that are not finite: its training divergence_problem"


def read_config(folder: Path) -> DictConfig:
    """The settings that a run was trained with."""
    path = folder / ".hydra" / "config.yaml"
    if not path.is_file():
        raise UserError(f"{folder} is no run folder: it has no .hydra/config.yaml")
    try:
        config = OmegaConf.load(path)
    except Exception as error:
        raise UserError(f"{path} cannot be read ({str(error).splitlines()[0]})") from error
    if not isinstance(config, DictConfig) or not isinstance(config.get("model"), DictConfig):
        raise UserError(f"{path} is not the settings of a training run")
    return config


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint's tensors and numbers; one that carries anything else is refused, and nothing in
    it runs."""
    if not path.is_file():
        raise UserError(f"{path} is missing: the run has not saved a checkpoint")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"{path} is damaged or holds more than tensors and numbers") from error
    version = checkpoint.get("vae_format") if isinstance(checkpoint, dict) else None
    if version != CHECKPOINT_FORMAT:
        raise UserError(
            f"{path} has checkpoint format {version}, this version reads {CHECKPOINT_FORMAT}"
        )
    return checkpoint


def saved_config(folder: Path, overrides: Sequence[str], today: DictConfig) -> DictConfig:
    """The settings of a run to resume, with the other overrides of the command line on top.

    `today` are the settings that this command line composes without the run: the values of its
    overrides, and of whole keys that came with a later version than the run's.
    """
    saved = read_config(folder)
    changes = {o: o.lstrip("+~").split("=")[0] for o in overrides if not o.startswith("resume=")}
    refused = [
        f"{o} cannot be changed while resuming {folder}"
        for o, k in changes.items()
        if k.split(".")[0] in FIXED
    ]
    whole = {
        o
        for o, key in changes.items()
        if OmegaConf.is_dict(today.get(key)) or key.split(".")[0] not in today
    }
    groups = [o for o, key in changes.items() if o in whole and key.split(".")[0] not in FIXED]
    refused += [f"{o}: while resuming {folder}, change single settings of it" for o in groups]
    if refused:
        raise UserError(*refused)
    config = OmegaConf.merge({key: today[key] for key in today if key not in saved}, saved)
    assert isinstance(config, DictConfig)
    for key in changes.values():  # what was taken away with ~ is null
        OmegaConf.update(config, key, OmegaConf.select(today, key), merge=False)
    return config


def checkpoint_to_resume(folder: Path) -> Path | None:
    """The last checkpoint of a run that was cut off, once it has been found sound; None for a fresh
    folder."""
    last = folder / LAST
    if not last.exists():
        return None
    read_checkpoint(last)
    return last


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
    """The data module that a run was trained with, ready for testing; from the folder `root` where
    one is given.

    Raises UserError for settings that name anything but a data module of this project or of
    `allow`, RunError where the files cannot be had.
    """
    settings = config.get("data")
    if not isinstance(settings, DictConfig):
        raise UserError("its settings name no data")
    check_targets(settings, ("vae.", *allow), L.LightningDataModule)
    try:
        data = instantiate(settings, _convert_="all", **({} if root is None else {"root": root}))
    except Exception as error:
        raise UserError(
            f"its data settings cannot be used ({' '.join(str(error).split())})"
        ) from error
    data.prepare_data()
    data.setup("test")
    return data


def check_targets(node: Any, allowed: tuple[str, ...], kind: type = nn.Module) -> None:
    """Raise UserError where a `_target_` in the settings is no network (or other kind) of the
    allowed modules."""
    if OmegaConf.is_list(node):
        for child in node:
            check_targets(child, allowed, kind)
    if not isinstance(node, DictConfig):
        return
    target = node.get("_target_")
    if target is not None:
        if not str(target).startswith(allowed):
            raise UserError(
                f"_target_: {target} is refused: a run folder may name classes of {', '.join(allowed)}"
            )
        try:
            found = pydoc.locate(str(target))
        except pydoc.ErrorDuringImport:
            found = None
        if found is None:
            raise UserError(f"_target_: {target} is not there any more")
        if not (isinstance(found, type) and issubclass(found, kind)):
            raise UserError(f"_target_: {target} is refused: it is no {kind.__name__}")
    for child in node.values():
        check_targets(child, allowed, kind)


def environment(seed: int, device: torch.device) -> dict[str, Any]:
    """What the figures of a run depend on beside its settings."""
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
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "seed": seed,
    }


CHECKPOINT_FORMAT = 1
