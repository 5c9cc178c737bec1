"""Small files of a run folder, read and written without torch."""

import json
import math
import os
from pathlib import Path
from typing import Any


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Whole or not at all; a number that is not finite becomes null, as JSON has no other word for it."""
    finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in content.items()}
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(finite, indent=2, allow_nan=False) + "\n")
    os.replace(partial, path)


def read_json(path: Path) -> dict[str, Any]:
    """Empty where there is no such file, or where it was damaged."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
