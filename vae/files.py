"""Small files of a run folder, written whole or not at all, read and written without torch."""

import json
import math
import os
from pathlib import Path
from typing import Any


def write_whole(path: Path, text: str) -> None:
    """Write a file that is there complete or as it was before."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """One key a line; a number that is not finite becomes null, as JSON has no other word for it."""
    lines = [f"  {json.dumps(key)}: {json.dumps(finite(value), allow_nan=False)}" for key, value in content.items()]
    write_whole(path, "{\n" + ",\n".join(lines) + "\n}\n")


def read_json(path: Path) -> dict[str, Any]:
    """Empty where there is no such file, or where it was damaged."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def finite(value: Any) -> Any:
    """None for the numbers that are not finite, at any depth of dictionaries and lists."""
    if isinstance(value, dict):
        return {key: finite(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [finite(child) for child in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
