"""Errors as one line: exit code 2 for invalid settings or input, 1 for a failure of the machine."""

import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vae.runs.printable import printable


class UserError(Exception):
    """Overrides that cannot be run: one line per problem, each naming the override to change."""

    def __init__(self, *problems: str) -> None:
        self.problems: Sequence[str] = [
            printable(" ".join(problem.splitlines()), length=2000) for problem in problems
        ]
        super().__init__("\n".join(self.problems))


class RunError(Exception):
    """What the machine did: no network, a full disk, a file that cannot be read."""


def resolved(config: DictConfig) -> dict[str, Any]:
    """The settings as plain values, references followed, in the config too; UserError where one
    leads nowhere."""
    try:
        plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
        OmegaConf.resolve(config)
        return plain  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        raise UserError(f"{error.full_key}: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def report_errors(command: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a command: the project's own errors end it with their lines and their exit code, no
    traceback."""

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except UserError as error:
            for problem in error.problems:
                print(f"error: {problem}", file=sys.stderr)
            sys.exit(2)
        except RunError as error:
            print(f"error: {printable(error, length=2000)}", file=sys.stderr)
            sys.exit(1)
        except OSError as error:
            where, what = error.filename or "the machine", error.strerror or error
            print(f"error: {printable(f'{where}: {what}', length=2000)}", file=sys.stderr)
            sys.exit(1)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            sys.exit(130)

    return wrapped
