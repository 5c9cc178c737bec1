"""Checkpoints of a run folder: which there are, and how one is read and found to fit."""

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vae.models.vae import VAE
from vae.runs.errors import UserError
from vae.runs.keys import select
from vae.runs.untrusted import check_checkpoint, check_sizes

BEST, LAST = "checkpoints/best.ckpt", "checkpoints/last.ckpt"
CHECKPOINT_FORMAT = 1


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint's tensors and numbers; one that carries anything else is refused, and nothing in
    it runs."""
    if not path.is_file():
        raise UserError(f"{path} is missing: the run has not saved a checkpoint")
    check_checkpoint(path)
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"{path} is damaged or holds more than tensors and numbers") from error
    version = checkpoint.get("vae_format") if isinstance(checkpoint, dict) else None
    if version != CHECKPOINT_FORMAT:
        raise UserError(
            f"{path} has checkpoint format {version}, this version reads {CHECKPOINT_FORMAT}"
        )
    state = checkpoint.get("state_dict")
    if not isinstance(state, dict) or not all(torch.is_tensor(value) for value in state.values()):
        raise UserError(f"{path} holds no weights")
    check_sizes(path, checkpoint)
    return checkpoint


def checkpoint_to_resume(folder: Path) -> Path | None:
    """The last checkpoint of a run that was cut off, once it has been found sound; None for a fresh
    folder."""
    last = folder / LAST
    if not last.exists():
        return None
    read_checkpoint(last)
    return last


def model_state(state: dict[str, Any]) -> dict[str, Any]:
    """The model's own weights among those of a LightningModule, by the names that the model has."""
    own = {key: value for key, value in state.items() if key.startswith("model.")}
    return {key.removeprefix("model."): value for key, value in own.items()}


def check_checkpoints(
    model: nn.Module, max_epochs: int | None, max_steps: int, folder: Path
) -> None:
    """Raise UserError where a checkpoint of the folder is one of other networks than this model, or
    the last has more epochs or optimiser steps behind it than the run is to have (-1: no limit).

    Other weights, those of your own learning step, may not have been made yet.
    """
    for path in filter(Path.is_file, (folder / BEST, folder / LAST)):
        checkpoint = read_checkpoint(path)
        done = select(checkpoint.get("loops"), "fit_loop.epoch_progress.current.processed")
        too_long = max_epochs is not None and isinstance(done, int) and 0 <= max_epochs < done
        if too_long and path == folder / LAST:
            raise UserError(
                f"trainer.max_epochs={max_epochs}: {folder} has {done} epochs of training already"
            )
        steps = checkpoint.get("global_step")
        if path == folder / LAST and isinstance(steps, int) and 0 <= max_steps < steps:
            raise UserError(
                f"trainer.max_steps={max_steps}: {folder} has {steps} steps of training already"
            )
        for part in ("state_dict", "current_model_state"):  # and the weights behind an average
            if part not in checkpoint:
                continue
            mismatch = shape_mismatch(model, model_state(checkpoint[part]))
            if mismatch is not None:
                raise UserError(f"{path} is of other networks than the run's settings: {mismatch}")


def weights_digest(folder: Path) -> str:
    """SHA-256 of the checkpoint that a run is judged by: its last one where it never validated."""
    weights = folder / BEST if (folder / BEST).is_file() else folder / LAST
    return hashlib.sha256(weights.read_bytes()).hexdigest()


def shape_mismatch(module: nn.Module, state: dict[str, Any]) -> str | None:
    """The first weight that has another shape in `state` than in the module; None where all fit."""
    wanted = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    found = {key: tuple(value.shape) for key, value in state.items()}
    for key in [*wanted, *found]:
        if wanted.get(key) != found.get(key):
            return f"{key} is {found.get(key)} and must be {wanted.get(key)}"
    return None


def check_shapes(outline: VAE, state: dict[str, Any]) -> None:
    """Raise ValueError where weights, latents or images have other shapes than the settings say."""
    if (mismatch := shape_mismatch(outline, state)) is not None:
        raise ValueError(mismatch)
    images = outline.mean_image(torch.zeros(2, outline.latent_dim))
    if tuple(images.shape[1:]) != tuple(outline.image_shape):
        raise ValueError(f"images are {tuple(images.shape[1:])}, not {outline.image_shape}")
    q = outline.encode(torch.zeros(2, *outline.image_shape))
    if tuple(q.loc.shape) != (2, outline.latent_dim):
        raise ValueError(f"latents are {tuple(q.loc.shape[1:])}, not {outline.latent_dim}")
