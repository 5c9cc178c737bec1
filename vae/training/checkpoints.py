"""How checkpoints are written: atomically, the best and the last, wherever the folder
is."""

import copy
import os
from collections import Counter
from functools import cached_property
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from vae.runs.errors import RunError


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes next to the old file, then takes its place in one step; a kill or a full disk leaves
    the old one.

    Where the best is also the last, the second of them is a link to the first: written once, kept
    once.
    """

    def __init__(self) -> None:
        super().__init__()
        self._newest: tuple[Path, Any] | None = (
            None  # the file written last, and how far the training was
        )

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        path = Path(path)
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        progress = checkpoint.get("loops")  # none in files of weights alone
        for state in checkpoint.get("lr_schedulers", []):  # MultiStepLR keeps a Counter
            state |= {k: dict(v) for k, v in state.items() if isinstance(v, Counter)}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if not (
                self._newest and self._newest[1] == progress and linked(self._newest[0], partial)
            ):
                with partial.open("wb") as file:
                    torch.save(checkpoint, file)
                    file.flush()
                    os.fsync(file.fileno())
            os.replace(partial, path)
            self._newest = path, copy.deepcopy(progress)
        except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
            partial.unlink(missing_ok=True)
            kept = "the previous checkpoint is intact" if path.exists() else "there was none before"
            raise RunError(
                f"{path} cannot be written ({str(error).splitlines()[0]}); {kept}"
            ) from error


def linked(file: Path, link: Path) -> bool:
    """Give a file a second name; False where that cannot be done, as on file systems without hard
    links."""
    try:
        os.link(file, link)
    except OSError:
        return False
    return True


class BestAndLast(ModelCheckpoint):
    """Keeps `best.ckpt`, by validation ELBO, and `last.ckpt`, of the latest epoch's end.

    A validation within an epoch may find the best weights too. What is resumed is `last.ckpt`
    alone: Lightning resumes exactly from the end of an epoch, not from within a validation.
    """

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

    @cached_property
    def state_key(self) -> str:
        """Lightning's own, which it would make again for every hook."""
        return super().state_key

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not self._should_skip_saving_checkpoint(trainer) and not trainer.is_last_batch:
            self.save_best(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self.save_best(trainer)
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))

    on_train_batch_end = L.Callback.on_train_batch_end  # nothing: no step's end saves

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Nothing: the last epoch's end has saved, also where the run ended within it."""

    def save_best(self, trainer: L.Trainer) -> None:
        """Save the weights where they are the best so far; not where nothing was validated."""
        candidates = self._monitor_candidates(trainer)
        if self.monitor in candidates:
            self._save_topk_checkpoint(trainer, candidates)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """What was best before, in the folder as it is called now: a copied run resumes like the
        original."""
        best = str(Path(str(self.dirpath)) / "best.ckpt")
        scores = dict.fromkeys(
            state_dict["best_k_models"] and [best], state_dict["best_model_score"]
        )
        here = {"dirpath": self.dirpath, "best_model_path": best, "best_k_models": scores}
        super().load_state_dict(
            {**state_dict, **here, "kth_best_model_path": best if scores else ""}
        )
