"""Compares trained runs on one page: python -m vae.compare runs=[<folder>,<folder>] [out=…].

`page=study` shows measures against the complexity of the networks instead.
"""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from vae.command import command
from vae.runs.errors import RunError


@command("compare", "lightning.pytorch")
def main(config: DictConfig) -> None:
    compare(config)


def compare(config: DictConfig) -> Path:
    """Write `index.html` and `comparison.json` into the folder `out`; returns the page's path.

    Everything is computed from the best checkpoints on the same images, latents and noise; the
    runs' own folders are only read. Raises UserError for folders that are no runs and for runs that
    do not compare.
    """
    # heavy imports wait until the command starts
    from vae.reports.comparison.as_json import as_json
    from vae.reports.comparison.cautions import cautions
    from vae.reports.comparison.entries import measure_entries
    from vae.reports.comparison.page import render
    from vae.reports.comparison.selection import common_data, runs_to_compare
    from vae.reports.comparison.verdict import verdict
    from vae.runs.files import atomic_write, write_json
    from vae.runs.settings import CompareSettings, validated

    # 1. The runs, and whether they can be compared.
    settings = validated(config, CompareSettings)
    if settings["page"] == "study":
        return study(settings)
    runs = runs_to_compare(settings["runs"], tuple(settings["allow"]))
    data = common_data(runs, tuple(settings["allow"]))

    # 2. Every metric and picture, on the same inputs; runs of one setting become one entry.
    entries = measure_entries(runs, data)

    # 3. What they say, and what they do not.
    sentences = verdict(entries)
    warnings = cautions(entries)

    # 4. The page, and all its metrics as JSON.
    out = Path(settings["out"])
    try:
        out.mkdir(parents=True, exist_ok=True)
        atomic_write(out / "index.html", render(entries, data, sentences, warnings))
        write_json(out / "comparison.json", as_json(entries, sentences, warnings))
    except OSError as error:
        raise RunError(f"out={out}: the page cannot be written ({error.strerror})") from error
    for heading, texts in sentences.items():
        print(f"{heading}: {' '.join(texts)}")
    print(f"page: {out / 'index.html'}")
    return out / "index.html"


def study(settings: dict[str, Any]) -> Path:
    """Write `study.html`, `study.json` and `study.md`; returns the page's path."""
    from vae.reports.study.write import write_study

    page, sentences = write_study(settings)
    for heading, texts in sentences.items():
        print(f"{heading} {' '.join(texts)}")
    print(f"page: {page}")
    return page


if __name__ == "__main__":
    main()
