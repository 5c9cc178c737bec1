"""Settings become objects here, and everything wrong with them is told at once, by the override to
change."""

import difflib
import fnmatch
import functools
import inspect
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from hydra.errors import HydraException
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf

from vae.data.batches import PIXEL_TRANSFORMS
from vae.data.datamodule import ImageDataModule
from vae.models.networks import ACTIVATIONS, OUTPUTS
from vae.models.vae import VAE
from vae.runs.errors import UserError, first_line, resolved
from vae.runs.folder import discard_empty_run

Rule = tuple[Callable[[Any], bool], str]  # what a value must satisfy, and that in words


def integer(low: int, high: int) -> Rule:
    words = f"an integer from {low} to {high}"
    return lambda v: isinstance(v, int) and not isinstance(v, bool) and low <= v <= high, words


def number(low: float, high: float, words: str) -> Rule:
    """A finite number in the open interval (low, high)."""

    def holds(v: Any) -> bool:
        return (
            isinstance(v, int | float)
            and not isinstance(v, bool)
            and math.isfinite(v)
            and low < v < high
        )

    return holds, words


def optional(rule: Rule) -> Rule:
    return lambda v: v is None or rule[0](v), f"{rule[1]}, or null"


def one_of(*choices: Any) -> Rule:
    return lambda v: any(v == c and type(v) is type(c) for c in choices), " | ".join(
        str(c) for c in choices
    )


def widths(v: Any) -> bool:
    return isinstance(v, list) and len(v) <= 16 and all(integer(1, 8192)[0](width) for width in v)


def log_sd_range(v: Any) -> bool:
    bounded = isinstance(v, list) and len(v) == 2 and all(number(-50, 50, "")[0](end) for end in v)
    return v is None or (bounded and v[0] < v[1])


def betas(v: Any) -> bool:
    return (
        isinstance(v, list)
        and len(v) == 2
        and all(v_i == 0 or number(0, 1, "")[0](v_i) for v_i in v)
    )


def sample_sizes(v: Any) -> bool:
    whole = isinstance(v, list) and v != [] and all(integer(1, 10**6)[0](K) for K in v)
    return whole and v == sorted(set(v))


def text(v: Any) -> bool:
    return isinstance(v, str) and v != "" and "\0" not in v


# What an override may be, by key; the first pattern that fits counts. Keys of user-defined classes
# that no pattern names are checked against the signature alone.
RULES: dict[str, Rule] = {
    "runs": (
        lambda v: text(v) or (isinstance(v, list) and all(text(name) for name in v)),
        "[<run folder>,<run folder>]",
    ),
    "out": (text, "a folder"),
    "allow": (
        lambda v: isinstance(v, list) and all(map(text, v)),
        "a list of modules such as [mine.networks]",
    ),
    "seed": integer(0, 2**32 - 1),
    "threads": optional(integer(1, 1024)),
    "learning.compile": one_of(True, False),
    "learning.batches_per_block": integer(1, 60_000),
    "skip_bad_steps": one_of(True, False),
    "save_every_n_steps": integer(0, 10**9),
    "resume": (lambda v: v is None or text(v), "a run folder"),
    "model.name": (text, "text"),
    "model.latent_dim": integer(1, 4096),
    "model.sigma": optional(number(1e-4, 1e4, "a number greater than 0.0001 and less than 10000")),
    "model.likelihood.sigma": optional(
        number(1e-4, 1e4, "a number greater than 0.0001 and less than 10000")
    ),
    "model.likelihood.learned": one_of(True, False),
    "model.likelihood.grey": one_of(True, False),
    "model.*.latent_dim": integer(1, 4096),
    "model.*.hidden": (
        widths,
        "a list of at most 16 layer widths up to 8192, such as [512,256]; [] for none",
    ),
    "model.*.channels": (
        lambda v: widths(v) and len(v) in (1, 2),
        "a list of one or two numbers of channels up to 8192, such as [32,32]",
    ),
    "model.*.blocks": integer(0, 100),
    "model.*.activation": one_of(*ACTIVATIONS),
    "model.decoder.output": one_of(*OUTPUTS),
    "model.encoder.log_sd_range": (log_sd_range, "[low,high] with low < high, or null"),
    "data.name": (
        text,
        "a data set's name",
    ),  # which ones there are is known once the data's class is imported
    "data.root": (text, "a folder"),
    "data.pixels": one_of(*PIXEL_TRANSFORMS),
    "data.batch_size": integer(1, 60_000),
    "data.eval_batch_size": integer(1, 60_000),
    "data.val_size": integer(1, 59_999),
    "data.val_seed": integer(0, 2**32 - 1),
    "objective.beta": number(-1e-300, 1e6, "a number from 0 to 1000000"),
    "objective.warmup_steps": integer(0, 10**9),
    "objective.nats": number(-1e-300, 1e6, "a number from 0 to 1000000"),
    "objective.samples": integer(1, 10_000),
    "optimizer.lr": number(0, 1e3, "a number greater than 0 and less than 1000"),
    "optimizer.betas": (
        betas,
        "two numbers from 0 up to, but not including, 1, such as [0.9,0.99]",
    ),
    "optimizer.fused": one_of(True, False),
    "scheduler.milestones": (
        lambda v: (
            isinstance(v, list) and v == sorted(v) and all(integer(1, 10**9)[0](e) for e in v)
        ),
        "a rising list of epochs such as [15,25]",
    ),
    "scheduler.gamma": number(0, 1e3, "a number greater than 0 and less than 1000"),
    "optimizer.eps": number(0, 1, "a number greater than 0 and less than 1"),
    "scheduler.factor": number(0, 1e3, "a number greater than 0 and less than 1000"),
    "scheduler.total_iters": integer(0, 10**9),
    "trainer.accelerator": one_of("auto", "cpu", "gpu", "cuda", "mps"),
    "trainer.max_epochs": integer(-1, 10**9),
    "trainer.deterministic": one_of(True, False, "warn"),
    "trainer.enable_model_summary": one_of(True, False),
    "callbacks.*.every_n_epochs": integer(0, 10**9),
    "callbacks.chain.steps": integer(1, 100_000),
    "callbacks.progress_bar.refresh_rate": integer(0, 10**9),
    "logger.name": (lambda v: isinstance(v, str), "text"),
    "logger.version": (text, "text"),
    "logger.default_hp_metric": one_of(False),
    "logger.project": (text, "text"),
    "logger.offline": one_of(True, False),
    "logger.experiment_name": (text, "text"),
    "logger.tracking_uri": (text, "a database such as sqlite:///outputs/mlflow.db, or a server"),
}


# The settings of evaluate, all of them.
EVALUATE_RULES: dict[str, Rule] = {
    "run": (text, "a run folder, such as outputs/2030-01-31/12-00-00-deep"),
    "against": (lambda v: v is None or text(v), "a second run folder, or null"),
    "seed": integer(0, 2**32 - 1),
    "accelerator": one_of("auto", "cpu", "gpu", "cuda", "mps"),
    "allow": RULES["allow"],
    "data.root": (lambda v: v is None or text(v), "a folder, or null for the one that the run has"),
    "batch_size": integer(1, 60_000),
    "elbo.samples": integer(1, 1000),
    "iwae.images": integer(0, 10**6),
    "iwae.K": (sample_sizes, "a rising list of numbers of samples such as [1,10,100]"),
    "iwae.rows": integer(1, 10**6),
    "ais.images": integer(0, 10**6),
    "ais.chains": integer(2, 10_000),
    "ais.distributions": integer(1, 10**6),
    "ais.leapfrog": integer(1, 1000),
    "ais.start": one_of("prior", "posterior"),
    "ais.rows": integer(1, 10**6),
    "chain.chains": integer(0, 10**6),
    "chain.steps": integer(100, 10**6),
    "samples.n": integer(0, 10**6),
    "samples.kind": one_of("mean", "clipped", "noisy"),
    "samples.k": integer(1, 100),
    "classifier.folder": (text, "a folder"),
    "classifier.epochs": integer(1, 1000),
}


# The settings of export, all of them.
EXPORT_RULES: dict[str, Rule] = {
    "run": EVALUATE_RULES["run"],
    "out": (lambda v: v is None or text(v), "a folder, or null for export/ in the run's own"),
    "format": one_of("torch", "onnx"),
    "tolerance": number(0, 1, "a number greater than 0 and less than 1"),
    "allow": EVALUATE_RULES["allow"],
}


GROUPS = ("model", "objective", "data", "optimizer", "scheduler", "trainer", "logger", "learning")


# Arguments that train() passes itself, beside the settings.
GIVEN = {
    "trainer": {"callbacks", "logger", "plugins", "default_root_dir"},
    "logger": {"save_dir"},
    "data": {"seed"},
    "learning": {"model", "optimizer", "scheduler", "objective"},
}


class Builder:
    """Instantiates the nodes of a config and collects what is wrong with them.

    Call it with a node's key and the arguments that are not settings; `finish` then raises one
    UserError with every problem. A node with problems gives None.
    """

    def __init__(self, config: DictConfig) -> None:
        self.problems: list[str] = []
        plain: Any = OmegaConf.to_container(config)
        whole = [
            without_target(key, plain[key])
            for key in GROUPS
            if not isinstance(plain.get(key), dict | None)
        ]
        if whole:  # what refers into them could not be resolved
            raise UserError(*whole)
        given = {key for key, value in flatten(plain) if "${" not in str(value)}
        self.config = resolved(config)
        wrong = {
            key: line for key, value in flatten(self.config) if (line := out_of_rule(key, value))
        }
        own = {key: line for key, line in wrong.items() if key in given}
        self.problems += (
            own or wrong
        ).values()  # a reference repeats what is wrong with its source
        latents = self._node("model.latent_dim")
        for key, value in flatten(self.config):
            if (
                fnmatch.fnmatchcase(key, "model.*.latent_dim")
                and value != latents
                and not self.problems
            ):
                self.problems.append(
                    f"{key}={value} must be model.latent_dim={latents}, which it follows by itself"
                )
        known = {pattern.split(".")[0] for pattern in RULES}
        self.problems += [unknown(key, known) for key in self.config.keys() - known]
        self.problems += unavailable_accelerator(
            "trainer.accelerator", self.config.get("trainer", {}).get("accelerator")
        )

    def require(self, *keys: str) -> None:
        """Raise for keys that were taken away, or that are null and cannot be."""
        if gone := [f"{key}: is missing" for key in keys if self._node(key) is None]:
            raise UserError(*self.problems, *gone)

    def _node(self, key: str) -> Any:
        node: Any = self.config
        for part in key.split("."):
            node = node.get(part) if isinstance(node, dict) else None
        return node

    def __call__(self, key: str, **given: Any) -> Any:
        node = self._node(key)
        if node is None:  # switched off
            return None
        if not has_target(node):
            self.problems.append(without_target(key, node))
            return None
        unknown = list(unknown_keys(key, node, GIVEN.get(key.split(".")[0], set())))
        self.problems += unknown
        if unknown or any(problem.startswith(f"{key}.") for problem in self.problems):
            return None
        if key == "scheduler":  # Lightning's options, and what follows the length of the run
            options = ("interval", "frequency", "monitor")
            auto = {k: 1 for k, v in node.items() if v == "auto"}
            node = {k: v for k, v in (node | auto).items() if k not in options}
        try:
            made = instantiate(node, _convert_="all", **given)
        except Exception as error:  # a constructor's own refusal, Lightning's or torch's
            cause = (
                error.__cause__ if isinstance(error, HydraException) and error.__cause__ else error
            )
            line = first_line(cause)
            if key.split(".")[0] == "logger" and isinstance(cause, ModuleNotFoundError):
                extra = node["_target_"].rpartition(".")[2].removesuffix("Logger").lower()
                line = f"logger={extra} needs: pip install -e .[{extra}]"
            self.problems.append(
                line if line.startswith((f"{key}.", f"{key}=")) else f"{key}: {line}"
            )
            return None
        if isinstance(
            made, functools.partial
        ):  # of an optimizer or a scheduler, which lacks its first argument alone
            lacks = [
                p
                for p in list(inspect.signature(made).parameters.values())[1:]
                if p.default is p.empty
            ]
            self.problems += [
                f"{key}.{p.name}: is missing" for p in lacks if p.kind is p.POSITIONAL_OR_KEYWORD
            ]
        return made

    @staticmethod
    def instantiate(node: Any) -> Any:
        return instantiate(node, _convert_="all")

    def seed(self) -> None:
        """Seed every global generator, unless the seed is one of the problems."""
        if not any(problem.startswith("seed=") for problem in self.problems):
            L.seed_everything(self.config["seed"], verbose=False)

    def each(self, key: str) -> list[Any]:
        """The objects of a group of nodes, less those switched off."""
        nodes = self.config.get(key) or {}
        if not isinstance(nodes, dict):
            self.problems.append(f"{key}={nodes} must be a group of settings, or null for none")
            return []
        return [part for name in nodes if (part := self(f"{key}.{name}")) is not None]

    def finish(self, folder: Path) -> None:
        """Raise what was found, and take away the folder of a run that never began."""
        if self.problems:
            discard_empty_run(folder)
            raise UserError(*dict.fromkeys(self.problems))


def incompatibilities(model: VAE | None, data: ImageDataModule | None) -> list[str]:
    """What is wrong with parts that are right by themselves."""
    if (
        model is None
        or data is None
        or not model.likelihood.binary
        or data.transform == "binarised"
    ):
        return []
    line = f"data.pixels={data.transform}: likelihood=bernoulli wants data.pixels=binarised, or model.likelihood.grey=true"
    return [line]


def accelerators() -> dict[str, str]:
    """What an accelerator can be on this machine, and the torch device that each stands for."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    gpus = [device for device, ready in there.items() if ready]
    names = {"auto": (*gpus, "cpu")[0], "cpu": "cpu"} | ({"gpu": gpus[0]} if gpus else {})
    return names | {device: device for device in gpus}


def unavailable_accelerator(key: str, accelerator: Any) -> list[str]:
    """The problem with an accelerator that exists, but not on this machine."""
    available = accelerators()
    if accelerator not in ("gpu", "cuda", "mps") or accelerator in available:
        return []
    return [f"{key}={accelerator} is not here; here is: {', '.join(available)}"]


def problems_of(settings: dict[str, Any], rules: dict[str, Rule]) -> list[str]:
    """What is wrong with the settings of a command whose rules name all of them; raises where some
    are missing."""
    there = dict(flatten(settings))
    if gone := [f"{key}: is missing" for key in rules if key not in there]:
        raise UserError(*gone)
    problems = (
        out_of_rule(key, value, rules) if rule_of(key, rules) else unknown(key, rules)
        for key, value in there.items()
    )
    return [problem for problem in problems if problem is not None]


def unknown(key: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(key, list(known), 1)
    return f"{key}: unknown" + (f"; did you mean {near[0]}?" if near else "")


def out_of_rule(key: str, value: Any, rules: dict[str, Rule] = RULES) -> str | None:
    """The problem with a value, in one line, or None."""
    rule = rule_of(key, rules)
    if rule is None or rule[0](value):
        return None
    words = rule[1]
    near = difflib.get_close_matches(str(value), words.split(" | "), 1) if " | " in words else []
    hint = f"; did you mean {near[0]}?" if near else ""
    shown = value if str(value).isprintable() and value != "" else repr(value)
    return f"{key}={shown} must be {words}{hint}"


def rule_of(key: str, rules: dict[str, Rule] = RULES) -> Rule | None:
    return next(
        (rule for pattern, rule in rules.items() if fnmatch.fnmatchcase(key, pattern)), None
    )


def flatten(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of a nested dictionary; lists are values, and so is what stands where
    a rule is."""
    for key, value in node.items():
        if isinstance(value, dict) and rule_of(f"{prefix}{key}") is None:
            yield from flatten(value, f"{prefix}{key}.")
        elif not str(key).startswith("_"):
            yield f"{prefix}{key}", value


def unknown_keys(key: str, node: dict[str, Any], given: set[str]) -> Iterator[str]:
    """Keys that the class named by `_target_` does not take, with the likely spelling."""
    if "_target_" not in node:
        for name, child in node.items():
            if isinstance(child, dict):
                yield from unknown_keys(f"{key}.{name}", child, given)
        return
    try:
        signature = inspect.signature(get_object(node["_target_"]))
    except (HydraException, ImportError, ValueError, TypeError) as error:
        yield f"{key}._target_={node['_target_']}: {first_line(error)}"
        return
    names = signature.parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in names.values())
    for name, child in node.items():
        if key == "scheduler" and name in ("interval", "frequency", "monitor"):
            continue
        if not name.startswith("_") and name not in names and not takes_any:
            near = difflib.get_close_matches(name, set(names) - given, 1)
            yield f"{key}.{name}: unknown" + (f"; did you mean {key}.{near[0]}?" if near else "")
        elif (
            name in names
            and key != "learning"
            and is_module(names[name].annotation)
            and not has_target(child)
        ):
            yield without_target(f"{key}.{name}", child)
        elif has_target(child):
            yield from unknown_keys(f"{key}.{name}", child, set())


def has_target(node: Any) -> bool:
    return isinstance(node, dict) and "_target_" in node


def without_target(key: str, node: Any) -> str:
    return f"{key}={node!r} has no _target_, the class to make it of"


def is_module(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, torch.nn.Module)
