"""Settings against the signature of the class that they are for: names, types and bounds.

A node of settings with `_target_` is checked against the constructor of that class, the settings
of a command against a dataclass of theirs. pydantic checks the values, strictly, as if they were
JSON: an integer is a number, a list a tuple, and nothing else is taken for something else.
"""

import difflib
import functools
import inspect
import json
import re
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass
from typing import Any

import pydantic
from hydra.errors import HydraException
from hydra.utils import get_object

from vae.runs.describe import alternatives, choices, describe, strip
from vae.runs.errors import first_line
from vae.runs.printable import printable
from vae.runs.third_party import known_type

STRICT = pydantic.ConfigDict(strict=True, arbitrary_types_allowed=True, allow_inf_nan=False)
AUTO_ARGUMENTS = (
    "T_max",
    "total_steps",
    "warmup_steps",
    "total_iters",
)  # the arguments that may be "auto"
NONE_GIVEN: Mapping[str, str] = {}


@dataclass(frozen=True)
class Parameter:
    annotation: Any
    default: Any  # inspect.Parameter.empty where there is none

    @property
    def required(self) -> bool:
        return self.default is inspect.Parameter.empty


@dataclass
class Signature:
    """The parameters that a class or function takes by name; `open` where it takes any other."""

    parameters: dict[str, Parameter] = field(default_factory=dict)
    open: bool = False


def signature_of(target: Callable[..., Any]) -> Signature:
    """Of a function, or of a class: **kwargs of its constructor stand for those of its base.

    What the base needs counts as optional then, since the class may give it.
    """
    found, inherited = Signature(open=True), False
    calls: Iterable[Any] = [target]
    if isinstance(target, type):
        calls = [c.__dict__["__init__"] for c in target.__mro__ if "__init__" in c.__dict__]
    for call in calls:
        if not found.open or call is object.__init__:
            break
        try:
            parameters = [*inspect.signature(call).parameters.values()]
        except (TypeError, ValueError):  # written in C
            return found
        hints = hints_of(call)
        found.open = False
        for p in parameters[1:] if isinstance(target, type) else parameters:
            if p.kind is p.VAR_KEYWORD:
                found.open = True
            elif p.kind not in (p.VAR_POSITIONAL, p.POSITIONAL_ONLY):
                known = known_type(call, p.name, p.default)
                annotation = hints.get(p.name, Any) if known is None else known
                default = None if inherited and p.default is p.empty else p.default
                found.parameters.setdefault(p.name, Parameter(annotation, default))
        inherited = True
    return found


def hints_of(call: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(call, include_extras=True)
    except Exception:  # names that exist for type checkers alone
        return {}


def node_problems(
    key: str, node: Mapping[str, Any], passed: Mapping[str, str] = NONE_GIVEN, kind: type = object
) -> Iterator[str]:
    """What is wrong with a node of settings with `_target_`, a line each.

    `passed` are the arguments that come from elsewhere, and why no setting gives them. `kind` is
    what must come out, where `_target_` names a class.
    """
    name = node["_target_"]
    try:
        target = get_object(name)
    except (HydraException, ImportError, ValueError, TypeError, AttributeError) as error:
        yield f"{key}._target_={printable(name)}: {first_line(error)}"
        return
    if not callable(target) or (isinstance(target, type) and not issubclass(target, kind)):
        yield f"{key}._target_={printable(name)} must be a {kind.__name__}"
        return
    signature = signature_of(target)
    if node.get("_partial_"):  # the first argument comes later
        first = next(iter(signature.parameters), "")
        passed = {first: "the project passes it", **passed}
    settings = {str(k): value for k, value in node.items() if not str(k).startswith("_")}
    positional = len(node.get("_args_") or [])
    for parameter in [*signature.parameters][:positional]:
        passed = {parameter: "_args_ has it", **passed}
    yield from argument_problems(f"{key}.", settings, signature, passed, owner=printable(name))


def argument_problems(
    prefix: str,
    settings: Mapping[str, Any],
    signature: Signature,
    passed: Mapping[str, str] = NONE_GIVEN,
    owner: str = "",
) -> Iterator[str]:
    """Unknown, missing and wrong arguments, a line each; `owner` is the class that takes them."""
    parameters = signature.parameters
    for name, value in settings.items():
        if name in passed:
            yield f"{prefix}{name}: {passed[name]}"
        elif name in parameters:
            yield from value_problems(f"{prefix}{name}", value, parameters[name].annotation)
        elif signature.open:
            yield from value_problems(f"{prefix}{name}", value, Any)
        else:
            yield unknown(prefix, name, [p for p in parameters if p not in passed], owner)
    for name, parameter in parameters.items():
        if parameter.required and name not in settings and name not in passed:
            yield f"{prefix}{name}: is missing"


def value_problems(key: str, value: Any, annotation: Any) -> Iterator[str]:
    """What is wrong with one value: a node of its own, settings of a dataclass, or plain values."""
    bare = strip(annotation)[0]
    if is_dataclass(bare) and isinstance(bare, type):
        if isinstance(value, Mapping):
            yield from argument_problems(f"{key}.", value, signature_of(bare))
        else:
            yield f"{key}={shown(value)} must be a group of settings"
    elif has_target(value):
        classes = wanted_classes(annotation)
        yield from node_problems(key, value, kind=classes[0] if len(classes) == 1 else object)
    elif nodes := [*nodes_in(key, value)]:  # such as a list of layers: built before it is checked
        for inner, node in nodes:
            yield from node_problems(inner, node)
    elif wanted_classes(annotation) and value is not None:
        yield without_target(key, value)
    elif not is_valid(value, annotation) and not (
        key.rpartition(".")[2] in AUTO_ARGUMENTS and value == "auto"
    ):
        words = describe(annotation)
        near = difflib.get_close_matches(str(value), map(str, choices(annotation)), 1)
        yield f"{key}={shown(value)} must be {words}" + (
            f"; did you mean {near[0]}?" if near else ""
        )


def is_valid(value: Any, annotation: Any) -> bool:
    """Whether pydantic takes the value; True for what it cannot judge."""
    try:
        adapter = adapter_of(annotation)
    except TypeError:  # an annotation that cannot be hashed
        adapter = make_adapter(annotation)
    if adapter is None:
        return True
    try:
        adapter.validate_json(json.dumps(value, default=str))
    except (pydantic.ValidationError, ValueError, RecursionError):
        return False
    return True


def make_adapter(annotation: Any) -> pydantic.TypeAdapter[Any] | None:
    if annotation in (Any, inspect.Parameter.empty):
        return None
    try:
        return pydantic.TypeAdapter(annotation, config=STRICT)
    except Exception:  # an annotation that is none of pydantic's
        return None


adapter_of = functools.lru_cache(maxsize=1000)(make_adapter)


def wanted_classes(annotation: Any) -> list[type]:
    """The classes that an argument's objects have, where it takes no plain value but null."""
    options = [strip(option)[0] for option in alternatives(annotation)]
    options = [option for option in options if option is not type(None)]
    objects = [option for option in options if is_object_class(option)]
    return objects if len(objects) == len(options) else []


def is_object_class(kind: Any) -> bool:
    """A class whose objects no YAML holds, such as a Module."""
    if kind is Any or not isinstance(kind, type) or isinstance(kind, types.GenericAlias):
        return False
    if is_dataclass(kind):
        return False
    plain = kind.__module__.split(".")[0] in (
        "builtins",
        "pathlib",
        "datetime",
        "collections",
        "enum",
    )
    return not plain and not issubclass(kind, int | float | str | Sequence | Mapping)


def nodes_in(key: str, value: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Nodes with `_target_` within lists and mappings."""
    if has_target(value):
        yield key, value
    elif isinstance(value, Mapping):
        for name, child in value.items():
            yield from nodes_in(f"{key}.{name}", child)
    elif isinstance(value, list):
        for index, child in enumerate(value):
            yield from nodes_in(f"{key}[{index}]", child)


def has_target(node: Any) -> bool:
    return isinstance(node, Mapping) and "_target_" in node


def without_target(key: str, node: Any) -> str:
    return f"{key}={shown(node)} needs a _target_, the class to instantiate"


def unknown(prefix: str, name: str, known: Iterable[str], owner: str = "") -> str:
    key = printable(f"{prefix}{name}")
    if near := difflib.get_close_matches(name, list(known), 1):
        return f"{key}: unknown; did you mean {prefix}{near[0]}?"
    return f"{key}: unknown" + (
        f" to {owner}; leave it out, by ~{key} where a config has it" if owner else ""
    )


NUMBER = re.compile(r"[-+]?[\d.]+(e[-+]?\d+)?", re.IGNORECASE)


def shown(value: Any) -> str:
    """As an override writes it; text that looks like a number in quotes."""
    text = str(value)
    if isinstance(value, str) and NUMBER.fullmatch(value):
        text = repr(value)
    return printable(text if text.isprintable() and text else repr(value), length=200)
