"""Settings as plain data: the value of a dotted key, and what an override names."""

from collections.abc import Mapping
from typing import Any


def select(settings: Any, key: str) -> Any:
    """The value of a dotted key in nested mappings; None where there is none."""
    for part in key.split("."):
        settings = settings.get(part) if isinstance(settings, Mapping) else None
    return settings


def split_override(override: str) -> tuple[str, str]:
    """Key and value, as text, of `key=value`, `+key=value`, `++key=value` or `~key`."""
    key, _, value = override.lstrip("+~").partition("=")
    return key, value
