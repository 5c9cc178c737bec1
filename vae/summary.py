"""Summarise a sweep once more: python -m vae.summary sweep=<folder of runs> [x=<swept key>]"""

from pathlib import Path

import hydra
from omegaconf import DictConfig

from vae import config_folder
from vae.runs.errors import report_errors


@hydra.main(version_base="1.3", config_path=config_folder(), config_name="summary")
@report_errors
def main(config: DictConfig) -> None:
    summary(config)


def summary(config: DictConfig) -> None:
    """Write the summary of the folder `sweep` into it and show its table; UserError where there are
    no runs in it."""
    from vae.reports.sweep.summary import summarise
    from vae.reports.sweep.table import table  # heavy imports wait until the command starts
    from vae.runs.settings import SummarySettings, validated

    settings = validated(config, SummarySettings)
    print(table(summarise(Path(settings["sweep"]), settings["x"])))


if __name__ == "__main__":
    main()
