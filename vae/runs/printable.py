"""Text from a run folder, made harmless before it reaches a terminal, a file name or a table.

A run folder may come from a stranger: its names may hold terminal escapes, line breaks, characters
that turn the direction of writing, path separators, or a formula for a spreadsheet.
"""

import unicodedata
from typing import Any

# Other: control (Cc), format such as bidirectional overrides (Cf), surrogate (Cs), private use
# (Co), unassigned (Cn); and the separators of lines (Zl) and paragraphs (Zp).
HIDDEN_CATEGORIES = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def printable(text: Any, length: int = 500) -> str:
    """The text with every hidden character as its escape, `\\x1b` or `\\u202e`, cut at `length`."""
    text = str(text)
    shown = "".join(
        character.encode("unicode_escape", "backslashreplace").decode()
        if unicodedata.category(character) in HIDDEN_CATEGORIES
        else character
        for character in text[:length]
    )
    return shown + "…" if len(text) > length else shown


def csv_cell(value: Any) -> Any:
    """A cell that a spreadsheet shows as text: what starts like a formula gets a ' in front.

    Numbers stay numbers.
    """
    if not isinstance(value, str):
        return value
    value = printable(value)
    return (
        f"'{value}" if value.lstrip()[:1] in ("=", "+", "-", "@", "＝", "＋", "－", "＠") else value
    )
