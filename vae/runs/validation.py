"""Settings become objects here; what is wrong with them is reported all at once, by override."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from hydra.errors import HydraException
from hydra.utils import instantiate
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf

from vae.runs.devices import accelerator_problem
from vae.runs.errors import UserError, first_line, resolved
from vae.runs.folder import discard_empty_run
from vae.runs.identity import flatten
from vae.runs.keys import select
from vae.runs.settings import TrainSettings, settings_problems
from vae.runs.signatures import has_target, node_problems, shown, without_target
from vae.runs.third_party import SCHEDULER_OPTIONS, SchedulerOptions

# The groups of conf/train.yaml, and what each is made into where `_target_` names a class.
GROUPS: dict[str, type] = {
    "model": torch.nn.Module,
    "objective": object,
    "data": L.LightningDataModule,
    "optimizer": torch.optim.Optimizer,
    "scheduler": object,
    "learning": L.LightningModule,
    "trainer": L.Trainer,
    "logger": Logger,
    "callbacks": L.Callback,
}
MULTI_NODE_GROUPS = ("callbacks", "logger")  # groups of nodes
OPTIONAL_GROUPS = ("objective", "scheduler", "callbacks", "logger")  # groups that may be null

# Arguments that the project passes itself, and which setting to use instead.
PASSED_ARGUMENTS = {
    "trainer": {
        "callbacks": "callbacks are a group of their own: +callbacks.mine._target_=…",
        "logger": "loggers are a group of their own: logger=csv",
        "plugins": "the project passes a plugin that writes checkpoints atomically",
        "default_root_dir": "hydra.run.dir names the run folder",
    },
    "logger": {"save_dir": "loggers write into the run folder, hydra.run.dir"},
    "data": {"seed": "the seed of the run is seed=N"},
    "learning": {
        name: f"the group {name} says it"
        for name in ("model", "optimizer", "scheduler", "objective")
    },
}


class Builder:
    """Instantiates the nodes of a config and collects what is wrong with them.

    Call it with a node's key and the arguments that are not settings; `finish` then raises one
    UserError with every problem. A node with problems gives None.
    """

    def __init__(self, config: DictConfig) -> None:
        self.problems: list[str] = []
        plain: Any = OmegaConf.to_container(config)
        if whole := [*wrong_groups(plain)]:  # what refers into them could not be resolved
            raise UserError(*whole)
        references = {key for key, value in flatten(plain) if "${" in str(value)}
        self.config = resolved(config)
        for key in ("optimizer", "scheduler"):  # their first argument always comes later
            if has_target(self.config.get(key)):
                self.config[key]["_partial_"] = True
        self.problems += settings_problems(
            {key: value for key, value in self.config.items() if key not in GROUPS}, TrainSettings
        )
        self.checked: dict[str, list[str]] = {}
        for key in GROUPS:
            self.checked |= {name: [*lines] for name, lines in self._group_problems(key)}
        found = [line for lines in self.checked.values() for line in lines]
        own = [line for line in found if key_of(line) not in references]
        self.problems += own or found  # a reference repeats what is wrong with its source
        if not self.problems:
            self.problems += repeated_settings(self.config["model"])
        self.problems += accelerator_problem(
            "trainer.accelerator", self.config["trainer"].get("accelerator")
        )

    def _group_problems(self, key: str) -> Iterator[tuple[str, Iterator[str]]]:
        """The names of a group's nodes, and what is wrong with each."""
        node = self.config.get(key)
        if key in MULTI_NODE_GROUPS and isinstance(node, Mapping) and not has_target(node):
            for name, child in node.items():
                if child is not None:
                    yield f"{key}.{name}", problems_of_node(f"{key}.{name}", child, GROUPS[key])
        elif node is not None:
            yield key, problems_of_node(key, node, GROUPS[key])

    def require(self, *keys: str) -> None:
        """Raise for keys that were taken away, or that are null and cannot be."""
        if missing := [key for key in keys if select(self.config, key) is None]:
            reported = {key_of(problem) for problem in self.problems}
            more = [f"{key}: is missing" for key in missing if key not in reported]
            raise UserError(*self.problems, *more)

    def __call__(self, key: str, **passed: Any) -> Any:
        """The object of a node; None where it is switched off or something is wrong with it."""
        node = None if self.checked.get(key) else select(self.config, key)
        if node is None or any(key_of(p).startswith(f"{key}.") for p in self.problems):
            return None
        try:
            return instantiate(own_arguments(key, node), _convert_="all", **passed)
        except Exception as error:  # a constructor's own refusal, Lightning's or torch's
            self.problems.append(refusal(key, node, error))
            return None

    @staticmethod
    def instantiate(node: Any) -> Any:
        """The object of settings that were checked, the values within them as plain Python."""
        return instantiate(node, _convert_="all")

    def seed(self) -> None:
        """Seed every global generator, unless the seed is one of the problems."""
        if not any(key_of(problem) == "seed" for problem in self.problems):
            L.seed_everything(self.config["seed"], verbose=False)

    def each(self, key: str) -> list[Any]:
        """The objects of a group of nodes, or of one node, less those switched off."""
        node = self.config.get(key) or {}
        names = [key] if has_target(node) else [f"{key}.{name}" for name in node]
        return [part for part in map(self, names) if part is not None]

    def finish(self, folder: Path) -> None:
        """Raise what was found, and take away the folder of a run that never began."""
        if self.problems:
            discard_empty_run(folder)
            raise UserError(*dict.fromkeys(self.problems))


def wrong_groups(plain: Mapping[str, Any]) -> Iterator[str]:
    """Groups that are missing, or no group of settings at all."""
    for key in GROUPS:
        node = plain.get(key)
        if node is None and key not in OPTIONAL_GROUPS:
            yield f"{key}: is missing"
        elif node is not None and not isinstance(node, Mapping):
            yield without_target(key, node)


def problems_of_node(key: str, node: Any, kind: type) -> Iterator[str]:
    """What is wrong with a node of a group, a line each."""
    if not has_target(node):
        yield without_target(key, node)
        return
    group = key.split(".")[0]
    if group == "scheduler":
        options = {name: node[name] for name in SCHEDULER_OPTIONS if name in node}
        for line in settings_problems(options, SchedulerOptions):
            yield f"{key}.{line}"
    yield from node_problems(key, own_arguments(key, node), PASSED_ARGUMENTS.get(group, {}), kind)


def own_arguments(key: str, node: Mapping[str, Any]) -> dict[str, Any]:
    """A node less the keys that are for Lightning, besides a scheduler's own arguments."""
    options = SCHEDULER_OPTIONS if key == "scheduler" else ()
    return {name: value for name, value in node.items() if name not in options}


def repeated_settings(model: Mapping[str, Any]) -> list[str]:
    """Encoder and decoder follow the model's latent_dim and image_shape by references."""
    return [
        f"{shown_key}={shown(value)} must be model.{name}={shown(model[name])}, which it follows "
        "by itself"
        for key, value in flatten(model)
        for shown_key, name in [(f"model.{key}", key.rpartition(".")[2])]
        if name in ("latent_dim", "image_shape") and name in model and value != model[name]
    ]


def refusal(key: str, node: Mapping[str, Any], error: Exception) -> str:
    """What a constructor said against its arguments, in one line that names the setting."""
    hydras = isinstance(error, HydraException) and error.__cause__
    cause = error.__cause__ if hydras else error
    extra = str(node["_target_"]).rpartition(".")[2].removesuffix("Logger").lower()
    if isinstance(cause, ModuleNotFoundError) and extra in ("wandb", "mlflow"):
        return f"logger={extra} needs: pip install -e .[{extra}]"
    line = first_line(cause or error)
    return line if line.startswith((f"{key}.", f"{key}=")) else f"{key}: {line}"


def key_of(problem: str) -> str:
    """The key that a problem's line begins with."""
    return problem.split("=")[0].split(": ")[0]


def incompatibilities(model: Any, data: Any) -> list[str]:
    """What is wrong with a model and a data module that are right by themselves; either may be
    None."""
    pixels = getattr(data, "transform", None)
    if model is None or pixels in (None, "binarised") or not model.likelihood.binary:
        return []
    return [
        f"data.pixels={pixels}: likelihood=bernoulli wants data.pixels=binarised, "
        "or model.likelihood.grey=true"
    ]
