"""evaluation.json for the screen: every number with its error, and what it is and is not."""

from vae.reports.evaluation.likelihood_rows import (
    bdmc_rows,
    gap_rows,
    likelihood_rows,
    ppc_rows,
    refit_rows,
)
from vae.reports.evaluation.model_rows import against_rows, chain_rows, collapse_rows, sample_rows
from vae.reports.evaluation.rows import NONE, Metrics, known, number

PARTS = {  # a key that the part of the table needs, and its lines
    "test/elbo": likelihood_rows,
    "gap/log_p": gap_rows,
    "refit/sigma": refit_rows,
    "bdmc/gap": bdmc_rows,
    "ppc/log_p_samples": ppc_rows,
    "collapse/kl": collapse_rows,
    "chain/finite": chain_rows,
    "samples/fid": sample_rows,
    "against": against_rows,
}


def table(f: Metrics) -> str:
    """The metrics, fresh or read back, part by part; likelihoods in nats per image with standard
    errors over images."""
    head = f"{f['model']}: {f['latent_dim']} latents, {f['likelihood']}, "
    lines = ["", head + f"test split of {f['data']}, seed {f['seed']}"]
    lines += ["± is the standard error over images; it leaves out how trainings vary"]
    for key, rows in PARTS.items():
        if key in f:
            lines += ["", *rows(f)]
    return "\n".join(lines)


def line(f: Metrics) -> str:
    """One run in a line."""
    parts = [f"ELBO {cell(f, 'test/elbo')}", f"log p ≥ {cell(f, 'bound/log_p')}"]
    if f.get("bound/method") == "exact":
        parts[1] = f"log p = {cell(f, 'bound/log_p')}"
    parts += [f"Fréchet distance {cell(f, 'samples/fid')}"] if "samples/fid" in f else []
    return ", ".join([*parts, f"{number(f.get('time/seconds'), 0)} s"])


def cell(f: Metrics, key: str, digits: int = 2) -> str:
    value, error = f.get(key), f.get(f"{key}_se")
    return number(value, digits) + (f" ± {error:.{digits}f}" if known(error) else "")


COLUMNS = {
    "ELBO": "test/elbo",
    "less against's": "against/test/elbo",  # paired over images
    "refitted sigma": "refit/test_elbo",
    "log p, at least": "bound/log_p",
    "amortisation gap": "gap/amortisation",
    "Fréchet distance": "samples/fid",
}


def many_table(runs: dict[str, Metrics]) -> str:
    """A row a run; a column is left out where no run has it."""
    columns = {name: key for name, key in COLUMNS.items() if any(key in f for f in runs.values())}
    width = max([3, *(len(name) for name in runs)])
    lines = ["", f"{'run':<{width}}" + "".join(f"{name:>20}" for name in columns)]
    for name, f in runs.items():
        cells = (cell(f, key) if key in f else NONE for key in columns.values())
        lines.append(f"{name:<{width}}" + "".join(f"{one:>20}" for one in cells))
    return "\n".join(lines)
