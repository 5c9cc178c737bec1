"""How checkpoints are written: whole or not at all, the best and the last, wherever the folder is."""

import os
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from vae.errors import MachineError


class WholeCheckpointIO(TorchCheckpointIO):
    """Writes beside the old file, then takes its place in one step; a kill or a full disk leaves the old one."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        path = Path(path)
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        except (OSError, RuntimeError) as error:  # torch tells a full disk as a RuntimeError
            partial.unlink(missing_ok=True)
            kept = "the one before is whole" if path.exists() else "there was none before"
            raise MachineError(f"{path} cannot be written ({str(error).splitlines()[0]}); {kept}") from error


class BestAndLast(ModelCheckpoint):
    """Keeps `best.ckpt`, by validation ELBO, and `last.ckpt`, every epoch."""

    def __init__(self, folder: Path) -> None:
        super().__init__(
            dirpath=folder / "checkpoints",
            filename="best",
            monitor="val/elbo",
            mode="max",
            save_last=True,
            save_on_train_epoch_end=True,
            auto_insert_metric_name=False,
            enable_version_counter=False,
        )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """What was best before, in the folder as it is called now: a copied run goes on like the original."""
        best = str(Path(str(self.dirpath)) / "best.ckpt")
        scores = dict.fromkeys(state_dict["best_k_models"] and [best], state_dict["best_model_score"])
        here = {"dirpath": self.dirpath, "best_model_path": best, "best_k_models": scores}
        super().load_state_dict({**state_dict, **here, "kth_best_model_path": best if scores else ""})
