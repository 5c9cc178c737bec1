"""Types of settings that several commands share; those of one class stand in its constructor."""

from typing import Annotated, Literal

from annotated_types import Ge, Le, MinLen, Predicate, doc

Seed = Annotated[int, Ge(0), Le(2**32 - 1)]
Count = Annotated[int, Ge(0), Le(10**9)]
Positive = Annotated[int, Ge(1), Le(10**9)]
Accelerator = Literal["auto", "cpu", "gpu", "cuda", "mps"]


def is_path(text: str) -> bool:
    """Text that can name a file or folder."""
    return text != "" and "\0" not in text


RunFolder = Annotated[
    str, Predicate(is_path), doc("a run folder, such as outputs/2030-01-31/12-00-00-deep")
]
Folder = Annotated[str, Predicate(is_path), doc("a folder")]
Text = Annotated[str, MinLen(1)]
Modules = Annotated[list[Text], doc("a list of modules such as [mine.networks]")]
