"""Judge trained runs: python -m vae.evaluate run=<run folder> [any.key=value …]

python -m vae.evaluate runs=[<run folder>,…] or runs=<sweep's folder> judges many, and skips those
that were judged with these settings; compare=<folder> puts them on one page there afterwards.
"""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from vae.command import command
from vae.compare import compare_runs
from vae.runs.errors import RunError, UserError


@command("evaluate", "lightning.pytorch")
def main(config: DictConfig) -> None:
    evaluate(config)


def evaluate(config: DictConfig) -> dict[str, Any]:
    """Metrics of a run, written to its `evaluation.json` once all of them are there, and shown as a
    table; for `runs` a dictionary of them by folder. With `compare` the page of the runs, too.

    Raises UserError with every problem of the settings and the run folders at once, RunError where
    the data cannot be had or a file not be written.
    """
    # Heavy imports wait until a run starts, so that --help answers at once.
    from vae.reports.evaluation.load import load_and_validate
    from vae.reports.evaluation.measure import Evaluator
    from vae.reports.evaluation.table import table

    job = load_and_validate(config)
    evaluator = Evaluator(job.settings, job.against)
    if job.settings["run"] is not None:
        metrics = evaluator.evaluate(job.folders[0])
        print(table(metrics))
        print(f"written to {write(job.folders[0], metrics)}")
    else:
        metrics = evaluate_many(job, evaluator)
    if job.settings["compare"] is not None:
        folders, allow = [*map(str, job.folders)], tuple(job.settings["allow"])
        root = job.settings["data"]["root"]
        compare_runs(folders, Path(job.settings["compare"]), allow, root)
    return metrics


def evaluate_many(job: Any, evaluator: Any) -> dict[str, dict[str, Any]]:
    """Each run in turn, a line each; what is done stays done when the command is stopped."""
    from vae.reports.evaluation.load import earlier_metrics
    from vae.reports.evaluation.table import line, many_table

    for problem in job.left_out:
        print(f"left out: {problem}")
    found, failed = {}, []
    for i, folder in enumerate(job.folders, 1):
        place = f"[{i}/{len(job.folders)}] {folder}"
        metrics = earlier_metrics(folder, job.settings)
        if metrics:
            print(f"{place}: done before, {line(metrics)}", flush=True)
        else:
            try:
                metrics = evaluator.evaluate(folder)
                write(folder, metrics)
            except (UserError, RunError) as error:
                failed.append(f"{folder}: {error}")
                print(f"{place}: failed, {error}", flush=True)
                continue
            print(f"{place}: {line(metrics)}", flush=True)
        found[str(folder)] = metrics
    print(many_table(found))
    if failed:
        no_page = "" if job.settings["compare"] is None else "; so there is no page"
        raise RunError(f"{len(failed)} of {len(job.folders)} failed: {'; '.join(failed)}{no_page}")
    return found


def write(folder: Any, metrics: dict[str, Any]) -> Any:
    """evaluation.json, atomically; RunError where it cannot be written."""
    from vae.runs.files import write_json

    path = folder / "evaluation.json"
    try:
        write_json(path, metrics)
    except OSError as error:
        raise RunError(
            f"{path} cannot be written ({error.strerror}); the metrics are those above"
        ) from error
    return path


if __name__ == "__main__":
    main()
