"""Losses and gradients that are not finite: a run stops and names the cause, or skips the step."""

import math
from typing import Any

import lightning.pytorch as L
import torch
from torch.optim import Optimizer

from vae.runs.errors import RunError
from vae.training.module import LitVAE

ADVICE = "a lower optimizer.lr or a larger model.sigma may help"
SKIPPING = "; skip_bad_steps=true leaves such steps out"


class FiniteCheck(L.Callback):
    """Raises RunError at the first loss that is not finite, or skips and counts such steps.

    On a CPU the loss is looked at before each backward pass. Elsewhere that would hold up the
    device, so the means since the last validation are looked at instead, unless steps are to be
    skipped. Processes of a distributed run never part ways by skipping: there it raises.
    """

    def __init__(self, skip: bool = False) -> None:
        self.skip = skip
        self.skipped_steps, self.good_steps = 0, 0
        self.bad_loss = False  # since the last optimiser step

    def every_step(self, trainer: L.Trainer) -> bool:
        on_cpu = trainer.strategy.root_device.type == "cpu"
        return trainer.world_size == 1 and (on_cpu or self.skip)

    def on_before_backward(
        self, trainer: L.Trainer, pl_module: L.LightningModule, loss: torch.Tensor
    ) -> None:
        if not self.every_step(trainer):
            return
        if math.isfinite(loss.item()):
            self.good_steps += 1
        elif self.skips(pl_module):
            self.bad_loss = True
            pl_module.terms = {}  # type: ignore[assignment]
            # the means of training are over the steps that were taken
        else:
            raise RunError(describe_nonfinite(trainer, pl_module))

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer
    ) -> None:
        """Without gradients an optimizer leaves weights and its own state alone."""
        if not (self.skip and self.every_step(trainer)):
            return
        gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
        bad = self.bad_loss or not all(bool(g.isfinite().all()) for g in gradients)
        self.bad_loss = False
        if gradients and bad:
            self.skipped_steps += 1
            for p in pl_module.parameters():
                p.grad = None

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        if self.skip and self.every_step(trainer):
            self.report_skipped(pl_module, "the last validation")
        elif not self.every_step(trainer) and isinstance(pl_module, LitVAE):
            pl_module.train_metric.fold()
            sums = [total[0] for total in pl_module.train_metric.sums.values()]
            if sums and not torch.stack(sums).isfinite().all():
                raise RunError(describe_nonfinite(trainer, pl_module))

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Of a run without validations."""
        if self.skip and self.every_step(trainer) and not trainer.enable_validation:
            self.report_skipped(pl_module, "the epoch began")

    def report_skipped(self, pl_module: L.LightningModule, since: str) -> None:
        """Log how many steps were skipped; RunError where those since the last report all were."""
        if not self.good_steps:
            raise RunError(f"every step since {since} was skipped; {ADVICE}")
        self.good_steps = 0
        pl_module.log("train/skipped_steps", float(self.skipped_steps))

    def state_dict(self) -> dict[str, Any]:
        return {"skipped_steps": self.skipped_steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.skipped_steps = state_dict["skipped_steps"]

    def skips(self, pl_module: L.LightningModule) -> bool:
        """Whether a bad step may be skipped: not where the weights themselves are lost."""
        return self.skip and all(bool(p.isfinite().all()) for p in pl_module.parameters())


def describe_nonfinite(trainer: L.Trainer, pl_module: L.LightningModule) -> str:
    """The first quantity that is not finite, in the order in which they depend on each other."""
    causes = []
    if isinstance(pl_module, LitVAE):
        for part in ("encoder", "decoder", "likelihood"):
            weights = getattr(pl_module.model, part).parameters()
            if not all(bool(w.isfinite().all()) for w in weights):
                causes.append(f"the gradient of the {part} was")
        terms = {"log_likelihood": "log-likelihood", "kl": "KL", "objective": "objective"}
        for name, words in terms.items():
            if name in pl_module.terms and not pl_module.terms[name].isfinite().all():
                causes.append(f"the {words} is")
    where = f"step {trainer.global_step}, epoch {trainer.current_epoch + 1}"
    cause = causes[0] if causes else "the loss is"
    return f"{where}: {cause} not finite. The last checkpoint, if any, is good; {ADVICE}{SKIPPING}"
