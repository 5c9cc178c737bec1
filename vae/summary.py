"""Summarise a sweep once more: python -m vae.summary sweep=<folder of runs> [x=<swept key>]"""

from pathlib import Path

import hydra
from omegaconf import DictConfig

from vae.errors import UserError, told_in_one_line


@hydra.main(version_base="1.3", config_path="../conf", config_name="summary")
@told_in_one_line
def main(config: DictConfig) -> None:
    if config.sweep is None:
        raise UserError("sweep=<folder> is missing: a folder of runs, such as outputs/sweeps/<date>/<time>")
    from vae.sweeps import summarise, table

    print(table(summarise(Path(config.sweep), config.x)))


if __name__ == "__main__":
    main()
