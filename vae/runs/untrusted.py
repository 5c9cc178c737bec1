"""Files of a run folder that may come from a stranger: bounded, and nothing in them runs.

What is promised stands in SECURITY.md. What is refused raises UserError with one line that names
the file.
"""

import os
import pickletools
import pydoc
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from vae.runs.errors import UserError, first_line
from vae.runs.keys import select
from vae.runs.printable import printable

MAX_SETTINGS_BYTES = 1_000_000
MAX_DEPTH, MAX_REFERENCES = 20, 1000
# The folders that this project's commands read or write, a level deep; a logger keeps its own.
FOLDERS = (".", ".hydra", "checkpoints", "figures", "videos", "tensorboard", "csv", "export")
REFERENCE = re.compile(r"\$\{(\.*[\w.]*)\}")  # to another setting; what has a colon is a resolver

# What a checkpoint of tensors, numbers, text, lists and mappings needs of torch's weights_only.
GLOBALS = re.compile(
    r"collections OrderedDict|torch \w+Storage|torch (float|bfloat|int|uint|bool|complex)\d*"
    r"|torch\._utils _rebuild_(tensor_v2|parameter)|torch\.nn\.parameter Parameter"
)
CONSTRUCTIONS = (
    "DUP",
    "INST",
    "OBJ",
    "NEWOBJ",
    "NEWOBJ_EX",
    "STACK_GLOBAL",
    "EXT1",
    "EXT2",
    "EXT4",
)
SAFE_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times faster in C
MARK: Any = object()  # of the pickle machine
MAX_BUILDS = 100  # attributes given to an object: torch does so once for each state_dict


def check_links(folder: Path) -> None:
    """Raise UserError where a symbolic link leads out of the folder."""
    home = folder.resolve()
    for place in FOLDERS:
        if not (folder / place).is_dir():
            continue
        with os.scandir(folder / place) as entries:
            for entry in entries:
                path = Path(entry.path)
                if entry.is_symlink() and home not in path.resolve().parents:
                    raise UserError(f"{path} is a link that leads out of the run folder; copy it")


def read_settings(path: Path) -> dict[str, Any]:
    """Settings in YAML, references to one another followed.

    Environment variables and other resolvers are not: `${oc.env:NAME}` becomes the text
    `{oc.env:NAME}`.
    """
    try:
        if path.stat().st_size > MAX_SETTINGS_BYTES:
            raise UserError(f"{path} is larger than {MAX_SETTINGS_BYTES} bytes")
        text = path.read_text(encoding="utf-8")
        check_yaml(text)
        config = OmegaConf.create(text)  # refuses YAML's tags for objects
        plain: Any = OmegaConf.to_container(config, resolve=False)
    except UserError:
        raise
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({first_line(error)})") from error
    except Exception as error:  # OmegaConf's many
        raise UserError(f"{path} cannot be read ({first_line(error)})") from error
    if not isinstance(plain, dict):
        raise UserError(f"{path} holds no settings")
    return {str(key): resolve_references(plain, [str(key)], value) for key, value in plain.items()}


def read_yaml(path: Path) -> Any:
    """A YAML file's plain content; None where it is missing, damaged or unreasonably large."""
    try:
        if not path.is_file() or path.stat().st_size > MAX_SETTINGS_BYTES:
            return None
        text = path.read_text(encoding="utf-8")
        check_yaml(text)
        return yaml.load(text, SAFE_LOADER)
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return None


def as_texts(values: Any) -> list[str]:
    """The entries of a list as text; none of what is no list."""
    return [str(value) for value in values] if isinstance(values, list) else []


def check_yaml(text: str) -> None:
    """Raise ValueError for aliases, by which a kilobyte stands for gigabytes, and for depth."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise ValueError("it has YAML aliases, which settings do not need")
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise ValueError(f"it is nested more than {MAX_DEPTH} deep")


def resolve_references(plain: Mapping[str, Any], path: list[str], value: Any) -> Any:
    """A value with references to single settings replaced by what they stand for."""
    if isinstance(value, Mapping):
        return {
            k if type(k) is int else str(k): resolve_references(plain, [*path, str(k)], child)
            for k, child in value.items()
        }
    if isinstance(value, list):
        return [resolve_references(plain, [*path, str(i)], child) for i, child in enumerate(value)]
    for _ in range(MAX_DEPTH):
        match = REFERENCE.fullmatch(value) if isinstance(value, str) else None
        if match is None:
            break
        name = match[1].lstrip(".")
        dots = len(match[1]) - len(name)  # one dot: a sibling, two: of the parent
        path = [*path[: max(len(path) - dots, 0)], *name.split(".")] if dots else name.split(".")
        value = select(plain, ".".join(path))
    if isinstance(value, Mapping | list):
        short = isinstance(value, list) and len(value) <= MAX_REFERENCES
        value = value if short and not any(isinstance(v, list | Mapping) for v in value) else None
    if isinstance(value, list):
        return [strip_interpolations(child) for child in value]
    return strip_interpolations(value)


def strip_interpolations(value: Any) -> Any:
    """Text without an interpolation that OmegaConf would resolve."""
    return re.sub(r"\$+\{", "{", value) if isinstance(value, str) else value


def check_checkpoint(path: Path) -> None:
    """Raise UserError for a file that would unpack to more than its size, or hold more than data.

    torch writes its zip without compression, so the sizes that the zip declares are those of what
    is loaded; and its weights_only takes constructors of any size, which tensors do not need.
    """
    damaged = UserError(f"{path} is damaged or holds more than tensors and numbers")
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                raise UserError(f"{path} is compressed, as no checkpoint of this project is")
            if sum(entry.file_size for entry in entries) > path.stat().st_size:
                raise UserError(f"{path} declares more bytes than it has")
            for entry in entries:
                if entry.filename.endswith(".pkl"):
                    check_pickle(archive.read(entry))
    except UserError:
        raise
    except Exception as error:
        raise damaged from error


def check_pickle(data: bytes) -> None:
    """Raise ValueError where a pickle names anything but OrderedDicts and tensors, or repeats them.

    A pickle of a megabyte can have a large list copied a hundred thousand times, by OrderedDicts
    made from it. Those of torch are made empty, then filled. So the pickle's stack is followed as
    pickletools describes it: None stands for whatever is neither a name nor the empty tuple.
    """
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    builds = 0
    for opcode, argument, _ in pickletools.genops(data):
        name = opcode.name
        builds += name == "BUILD"
        if name in CONSTRUCTIONS or builds > MAX_BUILDS:
            raise ValueError(name)
        if name == "GLOBAL" and not GLOBALS.fullmatch(str(argument)):
            raise ValueError(str(argument))
        if name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            memo[len(memo) if name == "MEMOIZE" else int(str(argument))] = stack[-1]
            continue
        if name == "REDUCE" and stack[-2] == "collections OrderedDict" and stack[-1] != ():
            raise ValueError("an OrderedDict made of another object")
        before = opcode.stack_before
        if pickletools.markobject in before:
            while stack.pop() is not MARK:
                pass
            before = before[: before.index(pickletools.markobject)]
        for _ in before:
            stack.pop()
        for made in opcode.stack_after:
            stack.append(MARK if made is pickletools.markobject else None)
        if name in ("GET", "BINGET", "LONG_BINGET"):
            stack[-1] = memo[int(str(argument))]
        elif name == "GLOBAL":
            stack[-1] = argument
        elif name == "EMPTY_TUPLE":
            stack[-1] = ()


def check_sizes(path: Path, checkpoint: Mapping[str, Any]) -> None:
    """Raise UserError for tensors that take more memory, once copied, than the file has bytes.

    One number of a file, with a stride of 0, stands for a tensor of any size.
    """
    for name, tensor in tensors(checkpoint):
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise UserError(f"{path}: {printable(name)} is larger than what the file holds of it")
    weights = checkpoint["state_dict"].values()
    if sum(w.numel() * w.element_size() for w in weights) > path.stat().st_size:
        raise UserError(f"{path}: its weights are larger than the file")


def tensors(checkpoint: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Every tensor within mappings and lists, with the last key that leads to it."""
    pending: list[tuple[str, Any]] = [("", checkpoint)]
    seen = set()  # a list may contain itself
    while pending:
        name, node = pending.pop()
        if hasattr(node, "untyped_storage"):
            yield name, node
        elif isinstance(node, Mapping | list | tuple) and id(node) not in seen:
            seen.add(id(node))
            children = node.items() if isinstance(node, Mapping) else ((name, c) for c in node)
            pending += [(str(key), child) for key, child in children]


def check_targets(
    node: Any, allowed: tuple[str, ...], kind: type, outer: type | None = None
) -> None:
    """Raise UserError where a `_target_` is no class of the allowed modules and of this kind.

    `outer` is what the node's own `_target_` must make, where that is more than its parts.
    """
    if isinstance(node, list):
        for child in node:
            check_targets(child, allowed, kind)
    if not isinstance(node, Mapping):
        return
    target = node.get("_target_")
    if target is not None:
        name, wanted = printable(target), outer or kind
        if not isinstance(target, str) or not target.startswith(allowed):
            modules = ", ".join(allowed)
            raise UserError(
                f"_target_: {name} is refused: a run folder may name classes of {modules}"
            )
        try:
            found = pydoc.locate(target)
        except Exception:  # whatever the import of a module raises
            found = None
        if found is None:
            raise UserError(f"_target_: {name} does not exist any more")
        if not (isinstance(found, type) and issubclass(found, wanted)):
            raise UserError(f"_target_: {name} is refused: it is no {wanted.__name__}")
    for child in node.values():
        check_targets(child, allowed, kind)
