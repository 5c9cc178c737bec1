"""Runs side by side on one page: python -m vae.compare runs=[<run folder>,<run folder>] [out=<folder>]"""

from pathlib import Path

import hydra
from omegaconf import DictConfig

from vae.errors import MachineError, UserError, told_in_one_line


@hydra.main(version_base="1.3", config_path="../conf", config_name="compare")
@told_in_one_line
def main(config: DictConfig) -> None:
    compare(config)


def compare(config: DictConfig) -> Path:
    """Write `index.html` and `comparison.json` into the folder `out`; returns the page's path.

    Everything is computed from the kept checkpoints on the same images, codes and noise; the runs' own folders are
    only read. Raises UserError for folders that are no runs and for runs that do not compare.
    """
    from vae import comparison, files, page, verdict  # heavy imports wait until the command starts
    from vae.settings import Builder

    # 1. The runs, and whether they can be put side by side.
    build = Builder(config)
    build.require("runs", "out", "allow")
    if build.problems:
        raise UserError(*build.problems)
    chosen = comparison.open_runs(config.runs, config.allow)
    data = comparison.common_data(chosen, config.allow)

    # 2. Every figure and picture, on the same inputs.
    compared = comparison.compare_runs(chosen, data)

    # 3. What they say, and what they do not.
    words = verdict.verdict(compared)
    limits = verdict.cautions(compared)

    # 4. The page, and all its figures as JSON.
    out = Path(config.out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        files.write_whole(out / "index.html", page.render(compared, data, words, limits))
        files.write_json(out / "comparison.json", comparison.as_json(compared, words, limits))
    except OSError as error:
        raise MachineError(f"out={out}: the page cannot be written ({error.strerror})") from error
    for heading, sentences in words.items():
        print(f"{heading}: {' '.join(sentences)}")
    print(f"page: {out / 'index.html'}")
    return out / "index.html"


if __name__ == "__main__":
    main()
