"""What the commands share: a config by Hydra, errors in a line, `--help` within a second."""

from collections.abc import Callable
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore

from vae import config_folder
from vae.runs.errors import report_errors

# Hydra's --help copies its store of schemas, which is one for the process, for each config group
# that it lists: two thirds of its time.
ConfigStore.__deepcopy__ = lambda store, _memo: store  # type: ignore[attr-defined]


def command(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Makes main(config) the command whose settings are conf/<name>.yaml."""

    def decorate(main: Callable[..., Any]) -> Callable[..., Any]:
        with_config = hydra.main(version_base="1.3", config_path=config_folder(), config_name=name)
        decorated: Callable[..., Any] = with_config(report_errors(main))
        return decorated

    return decorate
