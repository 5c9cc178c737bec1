"""Summarise a sweep once more: python -m vae.summary sweep=<folder of runs> [x=<swept key>]"""

from pathlib import Path

from omegaconf import DictConfig

from vae.command import command


@command("summary")
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
