"""Parts of a LitVAE as settings: what checkpoints keep under Lightning's own key."""

from collections.abc import Mapping
from typing import Any

from hydra.utils import get_object, instantiate

from vae.runs.errors import UserError

# a node with `_target_`, as Hydra instantiates it and checkpoints keep it
Settings = dict[str, Any]

TRUSTED = ("vae.models.", "vae.training.", "torch.nn.", "torch.optim.")


def is_settings(part: Any) -> bool:
    return isinstance(part, Mapping)


def from_settings(part: Any) -> Any:
    """The object of a node with `_target_`, or anything else as it is.

    Settings may come with a checkpoint, so only classes and functions of this project's models and
    training, torch.nn and torch.optim are built. Raises UserError for any other; pass objects of
    your own classes, as in `LitVAE.load_from_checkpoint(path, model=…)`.
    """
    if isinstance(part, str):
        raise TypeError(f"{part!r} is a name; pass the object, or settings with a _target_")
    if not is_settings(part):
        return part
    check_trusted(part)
    return instantiate(part, _convert_="all")


def check_trusted(node: Any) -> None:
    """Raise UserError where a `_target_` anywhere in the node is not trusted."""
    if isinstance(node, Mapping):
        target = str(node.get("_target_", TRUSTED[0]))
        if not target.startswith(TRUSTED):
            raise UserError(f"_target_: {target} is refused; pass the object instead")
        if "_target_" in node and not callable(get_object(target)):
            raise UserError(f"_target_: {target} is refused: it is no class or function")
        node = [*node.values()]
    if isinstance(node, list | tuple):
        for child in node:
            check_trusted(child)
