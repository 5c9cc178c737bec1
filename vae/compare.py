"""Compares trained runs on one page: python -m vae.compare runs=[<folder>,<folder>] [out=…].

`page=study` shows measures against the complexity of the networks instead.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from vae.command import command
from vae.runs.errors import RunError, UserError


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
    from vae.runs.settings import CompareSettings, validated

    settings = validated(config, CompareSettings)
    if settings["page"] == "study":
        return study(settings)
    allow, root = tuple(settings["allow"]), settings["data"]["root"]
    return compare_runs(settings["runs"], Path(settings["out"]), allow, root)


def compare_runs(
    named: Sequence[str] | str, out: Path, allow: tuple[str, ...] = (), root: str | None = None
) -> Path:
    """`compare` for the runs of these folders, with their data in `root` if it has moved."""
    from vae.reports.comparison.as_json import as_json
    from vae.reports.comparison.cautions import cautions
    from vae.reports.comparison.entries import measure_entries
    from vae.reports.comparison.page import render
    from vae.reports.comparison.selection import common_data, page_problem, runs_to_compare
    from vae.reports.comparison.verdict import verdict
    from vae.runs.files import atomic_write, write_json

    # 1. The runs, and whether they can be compared.
    if problem := page_problem("out", out):
        raise UserError(problem)
    runs = runs_to_compare(named, allow)
    data = common_data(runs, allow, root)

    # 2. Every metric and picture, on the same inputs; runs of one setting become one entry.
    entries = measure_entries(runs, data)

    # 3. What they say, and what they do not.
    sentences = verdict(entries)
    warnings = cautions(entries)

    # 4. The page, and all its metrics as JSON.
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
