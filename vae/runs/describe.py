"""A type in words: what a setting must be, as its annotation says."""

import types
import typing
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Union

import annotated_types

BOUNDS = ("ge", "le", "gt", "lt")  # of annotated_types
PLAIN = {int: "an integer", float: "a number", str: "text", dict: "a mapping"}


def describe(annotation: Any) -> str:
    """`an integer from 1 to 4096`, `relu | silu`, `a list of integers, or null`."""
    if document := documentation(annotation):
        return document
    options = [*alternatives(annotation)]
    literals = list(dict.fromkeys(str(value) for value in choices(annotation)))
    if any(strip(option)[0] is bool for option in options):
        literals += ["true", "false"]
    words = [" | ".join(literals)] if literals else []
    words += [word for option in options if (word := one(option)) is not None]
    text = ", ".join(dict.fromkeys(words)) or "of another kind"
    return f"{text}, or null" if any(strip(o)[0] is type(None) for o in options) else text


def one(annotation: Any) -> str | None:
    """One alternative of a union in words; None for what `describe` says by itself."""
    kind, limits = strip(annotation)
    if document := documentation(annotation):
        return document
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal or kind in (bool, type(None)):
        return None
    if kind in (int, float):
        return PLAIN[kind] + in_range(limits)
    if kind in PLAIN:
        return PLAIN[kind]
    if isinstance(origin, type) and issubclass(origin, dict):
        return PLAIN[dict]
    if origin is tuple and Ellipsis not in arguments:
        return f"a list of {len(arguments)}: " + ", ".join(map(describe, arguments))
    if arguments and isinstance(origin, type):
        return f"a list{length(limits)} of {plural(describe(arguments[0]))}"
    return None  # a class of objects, which no setting is


def strip(annotation: Any) -> tuple[Any, list[Any]]:
    """A type without Annotated, and what that said about it."""
    if typing.get_origin(annotation) is Annotated:
        kind, *limits = typing.get_args(annotation)
        return kind, limits
    return annotation, []


def documentation(annotation: Any) -> str | None:
    limits = strip(annotation)[1]
    return next((x.documentation for x in limits if isinstance(x, annotated_types.DocInfo)), None)


def alternatives(annotation: Any) -> Iterator[Any]:
    """The members of a union, or the type itself; with a doc of its own a union stays whole."""
    kind, limits = strip(annotation)
    if typing.get_origin(kind) in (Union, types.UnionType) and not documentation(annotation):
        for member in typing.get_args(kind):
            yield from alternatives(member)
    else:
        yield Annotated[(kind, *limits)] if limits else kind


def choices(annotation: Any) -> Iterator[Any]:
    """The values of every Literal in a union."""
    for option in alternatives(annotation):
        kind = strip(option)[0]
        if typing.get_origin(kind) is Literal:
            yield from typing.get_args(kind)


def in_range(limits: list[Any]) -> str:
    """` from 1 to 9`, ` greater than 0 and less than 1`, ` of at least 2`, or nothing."""
    said = {name: getattr(x, name) for x in limits for name in BOUNDS if hasattr(x, name)}
    low, high, over, under = (said.get(name) for name in BOUNDS)
    if low is not None and high is not None:
        return f" from {low} to {high}"
    words = [f"greater than {over}"] if over is not None else []
    words += [f"at least {low}"] if low is not None else []
    words += [f"less than {under}"] if under is not None else []
    words += [f"at most {high}"] if high is not None else []
    return f" {' and '.join(words)}" if words else ""


def length(limits: list[Any]) -> str:
    least = next((x.min_length for x in limits if isinstance(x, annotated_types.MinLen)), None)
    most = next((x.max_length for x in limits if isinstance(x, annotated_types.MaxLen)), None)
    if least is not None and most is not None:
        return f" of {least} to {most}" if least != most else f" of {least}"
    return f" of at least {least}" if least else f" of at most {most}" if most else ""


def plural(words: str) -> str:
    """`integers from 1 to 9` for `an integer from 1 to 9`."""
    for kind in ("an integer", "a number"):
        if words.startswith(kind):
            return f"{kind.split()[1]}s{words.removeprefix(kind)}"
    return words
