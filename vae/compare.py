"""Runs side by side on one page: python -m vae.compare runs=[<run folder>,<run folder>]
[out=<folder>]"""

from pathlib import Path

import hydra
from omegaconf import DictConfig

from vae import config_folder
from vae.runs.errors import RunError, report_errors


@hydra.main(version_base="1.3", config_path=config_folder(), config_name="compare")
@report_errors
def main(config: DictConfig) -> None:
    compare(config)


def compare(config: DictConfig) -> Path:
    """Write `index.html` and `comparison.json` into the folder `out`; returns the page's path.

    Everything is computed from the kept checkpoints on the same images, codes and noise; the runs'
    own folders are only read. Raises UserError for folders that are no runs and for runs that do
    not compare.
    """
    # heavy imports wait until the command starts
    from vae.reports.comparison.cautions import cautions
    from vae.reports.comparison.measure import as_json, compare_runs
    from vae.reports.comparison.page import render
    from vae.reports.comparison.selection import common_data, open_runs
    from vae.reports.comparison.verdict import verdict
    from vae.runs.files import atomic_write, write_json
    from vae.runs.settings import CompareSettings, validated

    # 1. The runs, and whether they can be put side by side.
    settings = validated(config, CompareSettings)
    chosen = open_runs(settings["runs"], tuple(settings["allow"]))
    data = common_data(chosen, tuple(settings["allow"]))

    # 2. Every figure and picture, on the same inputs.
    compared = compare_runs(chosen, data)

    # 3. What they say, and what they do not.
    words = verdict(compared)
    limits = cautions(compared)

    # 4. The page, and all its figures as JSON.
    out = Path(settings["out"])
    try:
        out.mkdir(parents=True, exist_ok=True)
        atomic_write(out / "index.html", render(compared, data, words, limits))
        write_json(out / "comparison.json", as_json(compared, words, limits))
    except OSError as error:
        raise RunError(f"out={out}: the page cannot be written ({error.strerror})") from error
    for heading, sentences in words.items():
        print(f"{heading}: {' '.join(sentences)}")
    print(f"page: {out / 'index.html'}")
    return out / "index.html"


if __name__ == "__main__":
    main()
