"""What the commands share: a config by Hydra, errors in a line, `--help` within a second."""

import atexit
import functools
import gc
import importlib
import sys
from collections.abc import Callable
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore

from vae import config_folder
from vae.runs.errors import report_errors

# Hydra's --help copies its store of schemas, which is one for the process, for each config group
# that it lists: two thirds of its time.
ConfigStore.__deepcopy__ = lambda store, _memo: store  # type: ignore[attr-defined]


def command(name: str, *needed: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Makes main(config) the command whose settings are conf/<name>.yaml.

    `needed` names packages that take long to import: it waits for them only where it runs.
    """

    def decorate(main: Callable[..., Any]) -> Callable[..., Any]:
        with_config = hydra.main(version_base="1.3", config_path=config_folder(), config_name=name)

        @functools.wraps(main)
        def run(config: Any) -> Any:
            import_quickly(*needed)
            return main(config)

        decorated: Callable[..., Any] = with_config(report_errors(run))
        return decorated

    return decorate


def import_quickly(*packages: str) -> None:
    """Import packages and keep Python's garbage collector away from them, now and later.

    Modules stay, but the collector goes through all of their objects again and again as they come:
    a third of the time that importing torch and Lightning takes.
    """
    if all(package in sys.modules for package in packages):
        return  # freezing once more would keep what a multirun's last job left
    enabled = gc.isenabled()
    gc.disable()
    try:
        for package in packages:
            importlib.import_module(package)
    finally:
        gc.freeze()
        atexit.register(gc.unfreeze)  # some C++ parts complain of what is not collected at the end
        if enabled:
            gc.enable()
