"""Keep what docs/results.md quotes: python docs/results/collect.py outputs/results/<name> …

Of each finished sweep <name>.json (metrics of every setting: mean, spread over trainings and
standard error of the mean, with command, seeds, epochs and times) and its picture. ± of a single
training is over images, where its evaluation.json has it.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from vae.reports.sweep.groups import Group, read
from vae.reports.sweep.runs import SweepRun, select
from vae.runs.files import read_json

HERE = Path(__file__).parent
METRICS = ("elbo", "log_likelihood", "kl", "collapsed", "inactive", "squared_error")
OTHERS = ("model/sigma", "oracle/sigma", "oracle/test_elbo", "oracle/collapsed", "oracle/kl")
PICTURES = ("rate_distortion", "summary")  # of a sweep: the first that it has
SINGLE = ("elbo_curves", "prior_samples")  # of a single run


def main(folder: Path) -> Path:
    summary = read(folder)
    runs = {run.folder: run for run in summary.runs}
    found = {
        "command": command(folder, summary.runs[0]),
        "states": summary.count_states(),
        "settings": [of_group(folder, group, runs) for group in summary.groups],
    }
    path = HERE / f"{folder.name}.json"
    path.write_text(json.dumps(found, indent=1) + "\n")
    for picture in pictures(folder, summary.runs):
        shutil.copyfile(picture, HERE / f"{folder.name}-{picture.name}")
    return path


def pictures(folder: Path, runs: list[SweepRun]) -> list[Path]:
    if len(runs) == 1:
        found = [folder / runs[0].folder / "figures" / f"{name}.png" for name in SINGLE]
        return [path for path in found if path.is_file()]
    found = [folder / f"{name}.png" for name in PICTURES]
    return [path for path in found if path.is_file()][:1]


def command(folder: Path, first: SweepRun) -> str:
    """Of the sweep, or of a single run, without what says where it ran."""
    sweep = folder / "multirun.yaml"
    overrides = first.overrides
    if sweep.is_file():
        overrides = OmegaConf.load(sweep).hydra.overrides.task
    kept = [o for o in overrides if not o.startswith("trainer.accelerator=")]
    return " ".join(["python -m vae.train -m", *kept])


def of_group(folder: Path, group: Group, runs: dict[str, SweepRun]) -> dict[str, Any]:
    """One setting: its metrics over trainings, and what evaluated trainings say besides."""
    members = [runs[name] for name in group.runs]
    keys = [f"{split}/{name}" for split in ("train", "val", "test") for name in METRICS]
    kept = [key for key in (*keys, *OTHERS) if group.mean.get(key) is not None]
    evaluations = [read_json(folder / name / "evaluation.json") for name in group.runs]
    return {
        "line": group.line,
        "x": group.x,
        "seeds": [run.settings["seed"] for run in members],
        "epochs": select(members[0].settings, "trainer.max_epochs"),
        "fit_seconds": [run.metrics.get("time/fit_seconds") for run in members],
        "threads": members[0].threads,
        "metrics": {
            key: {
                "mean": group.mean[key],
                "sd": group.standard_deviation.get(key),
                "se": group.standard_error.get(key),
            }
            for key in kept
        },
        "evaluations": [numbers(each) for each in evaluations if each],
    }


def numbers(evaluation: dict[str, Any]) -> dict[str, Any]:
    """The single numbers of an evaluation."""
    return {
        key: value
        for key, value in evaluation.items()
        if isinstance(value, int | float | str) and key not in ("run", "checkpoint")
    }


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(main(Path(name)))
