"""What the documents show: commands compose, code runs, links lead somewhere, tables are
complete."""

import inspect
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import ROOT, composed, settings, timeless_metrics
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from vae.training.history import read_history

DOCUMENTS = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"))
}
OWN = "docs/extending.md"  # names what a reader adds first; a test of its own runs it
COMMAND = re.compile(
    r"(?:python -m vae\.|\bvae-)(train|evaluate|compare|summary|export)\b([^\n`|#]*)"
)


def commands(text: str) -> Iterator[tuple[str, list[str]]]:
    """Name and overrides of every command line; placeholders such as <run folder> become a name."""
    for name, rest in COMMAND.findall(text.replace("\\\n", " ")):
        yield name, shlex.split(re.sub(r"<[^>]*>", "placeholder", rest).replace("…", ""))


def single_job(overrides: list[str]) -> list[str]:
    """The overrides of the first job of a sweep, Hydra's own left out."""
    parsed = OverridesParser.create().parse_overrides(
        [o for o in overrides if not o.startswith(("-", "hydra"))]
    )
    return [
        f"{o.input_line.split('=')[0]}={next(o.sweep_string_iterator())}"
        if o.is_sweep_override()
        else str(o.input_line)
        for o in parsed
    ]


def test_the_documents_are_there():
    assert {"README.md", "CONTRIBUTING.md", "CHANGELOG.md"} <= {*DOCUMENTS}
    pages = ("extending", "running", "metrics", "results", "benchmarks")
    assert {f"docs/{page}.md" for page in pages} <= {*DOCUMENTS}
    assert len(DOCUMENTS["README.md"].splitlines()) <= 190


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_link_and_picture_leads_somewhere(name: str):
    for link in re.findall(r"\]\(([^)\s]+)\)", DOCUMENTS[name]):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / name).parent / path if path else ROOT / name
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
            slugs = [re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings]
            assert anchor in slugs, link


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_make_target_exists(name: str):
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for target in re.findall(r"(?:^|`)make ([a-z-]+)", DOCUMENTS[name], re.MULTILINE):
        assert target in targets


@pytest.mark.parametrize("name", [name for name in DOCUMENTS if name != OWN])
def test_every_command_composes(name: str):
    """Each command line is a set of overrides that Hydra takes: names, groups and grammar."""
    for command, overrides in commands(DOCUMENTS[name]):
        composed(command, *single_job(overrides))


def test_ruff_of_pre_commit_is_the_tested_one():
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    (version,) = re.findall(r"rev: v([\d.]+)", hooks)
    assert f"\nruff=={version}\n" in (ROOT / "constraints.txt").read_text()


def test_every_file_of_the_tree_in_the_readme_exists():
    (tree,) = re.findall(r"```\nvae/\n(.*?)```", DOCUMENTS["README.md"], re.DOTALL)
    stack = [ROOT / "vae"]
    names = []
    for line in tree.splitlines():
        prefix, found = re.match(r"([│ ├└─]*)((?:[\w.]+/? ?)+?)(?:\s{2,}.*)?$", line).groups()
        depth = len(prefix) // 4
        del stack[depth:]
        for name in found.split():
            path = stack[-1] / name
            assert path.exists(), path
            names.append(path)
        if found.endswith("/"):
            stack.append(path)
    folders = {path for path in (ROOT / "vae").iterdir() if (path / "__init__.py").exists()}
    assert folders <= {*names}


# Every key of metrics.json, evaluation.json and history.csv is in docs/metrics.md, and vice versa.


def documented(section: str) -> set[str]:
    text = DOCUMENTS["docs/metrics.md"].split(f"\n## {section}\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (`.*?) \|", text, re.MULTILINE)
    keys = {key for row in rows for key in re.findall(r"`([^`]+)`", row)}
    return keys | {*re.findall(r"`([\w/]+)`", text.split("|")[0])}


def pattern(key: str) -> "re.Pattern[str]":
    """<split> is a split, <K> a number, any other <…> anything; a sample metric may have a
    floor."""
    known = {"split": "(train|val|test)", "K": r"\d+"}
    parts = re.split(r"<(\w+)>", key)
    text = "".join(
        re.escape(part) if i % 2 == 0 else known.get(part, ".+") for i, part in enumerate(parts)
    )
    return re.compile(text + ("(_floor)?" if key.startswith("samples/") else ""))


def compare_with_page(section: str, keys: set[str]) -> None:
    patterns = {key: pattern(key) for key in documented(section)}
    names = [{key, re.sub("_se$", "", key)} for key in keys]  # an error needs no row of its own

    def fits(p: "re.Pattern[str]", name: set[str]) -> bool:
        return any(p.fullmatch(each) for each in name)

    missing = [min(name) for name in names if not any(fits(p, name) for p in patterns.values())]
    assert not missing, f"docs/metrics.md lacks {sorted(missing)}"
    unused = {name for name, p in patterns.items() if not any(fits(p, each) for each in names)}
    assert not unused, f"docs/metrics.md has {sorted(unused)}, which no run writes"


@pytest.mark.slow
def test_every_key_of_real_runs_is_documented_and_the_other_way_round(tmp_path: Path):
    """A linear and a deep run, a learned sigma, dequantised pixels; everything evaluated."""
    from vae.evaluate import evaluate
    from vae.train import train

    runs = {
        "linear": ["+model.encoder.log_sd_range=[-3.0,0.0]"],  # so that its chain has a law
        "deep": ["model=deep", "data.pixels=dequantised"],
        "learned": ["likelihood=learned_sigma", "skip_bad_steps=true"],
    }
    small = ["iwae.images=20", "iwae.K=[1,10]", "gap.images=4", "gap.steps=20", "gap.K=10"]
    small += ["ais.images=3", "ais.distributions=10", "ais.chains=4", "classifier.epochs=1"]
    small += ["bdmc.images=2", "bdmc.distributions=10", "bdmc.chains=2", "ppc.images=4"]
    small += ["chain.chains=20", "chain.steps=100", "samples.n=100", "accelerator=cpu"]
    small += [f"classifier.folder={tmp_path / 'classifiers'}"]
    keys: dict[str, set[str]] = {"metrics.json": set(), "evaluation.json": set()}
    history: set[str] = set()
    for name, overrides in runs.items():
        folder = tmp_path / name
        short = ["trainer.max_epochs=8", "trainer.accelerator=cpu", "callbacks.chain.steps=20"]
        config = settings(*overrides, *short, "model.latent_dim=4")
        (folder / ".hydra").mkdir(parents=True)
        OmegaConf.save(config, folder / ".hydra" / "config.yaml", resolve=True)
        train(config, folder)
        against = [f"against={tmp_path / 'linear'}"] if name == "learned" else []
        evaluate(composed("evaluate", f"run={folder}", *small, *against))
        for file, found in keys.items():
            found |= {*json.loads((folder / file).read_text())}
        history |= {*read_history(folder)[0]}
    for section, found in (*keys.items(), ("history.csv", history)):
        compare_with_page(section, found)


# Every argument of Lightning's Trainer is in the table of docs/running.md.


def test_every_argument_of_the_trainer_is_documented():
    import lightning.pytorch as L

    text = DOCUMENTS["docs/running.md"].split("## Lightning's Trainer")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (.*?) \|", text, re.MULTILINE)
    documented = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert documented == {*inspect.signature(L.Trainer.__init__).parameters} - {"self"}


# docs/extending.md, word for word.


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with conf/ and the files that the page shows."""
    folder = tmp_path_factory.mktemp("extended")
    shutil.copytree(ROOT / "conf", folder / "conf")
    blocks = r"^`([\w./]+)`:\n\n```(?:yaml|python)\n(.*?)```"
    for name, text in re.findall(blocks, DOCUMENTS[OWN], re.DOTALL | re.MULTILINE):
        (folder / name).write_text(text)
    return folder


@pytest.mark.slow
def test_what_the_page_adds_runs_as_it_stands(extended: Path, monkeypatch: pytest.MonkeyPatch):
    """Every training command, in order; then the commands that open such runs later."""
    import vae
    from vae.compare import compare
    from vae.evaluate import evaluate
    from vae.runs.errors import UserError
    from vae.train import train

    monkeypatch.chdir(extended)
    monkeypatch.syspath_prepend(extended)
    runs: dict[str, Path] = {}
    with initialize_config_dir(str(extended / "conf"), version_base="1.3"):
        shown = "\n".join(re.findall(r"```bash\n(.*?)```", DOCUMENTS[OWN], re.DOTALL))
        for command, overrides in commands(shown):
            if command == "train":
                name = overrides[0].split("=")[1]
                runs[name] = extended / "outputs" / name
                config = compose("train", [*overrides, "trainer.accelerator=cpu"])
                (runs[name] / ".hydra").mkdir(parents=True)
                OmegaConf.save(config, runs[name] / ".hydra" / "config.yaml")
                metrics = train(config, runs[name])
                assert metrics["val/elbo"] > -200, overrides  # untrained it is below −1000
        with pytest.raises(UserError, match=r"residual\.ResidualEncoder is refused"):
            vae.load_run(runs["residual"])
        run = vae.load_run(runs["residual"], allow=("residual",))
        assert type(run.model.encoder).__name__ == "ResidualEncoder"
        quick = ["iwae.images=0", "chain.chains=0", "samples.n=0", "allow=[residual]"]
        found = evaluate(compose("evaluate", [f"run={runs['residual']}", *quick]))
        assert found["test/elbo"] == pytest.approx(run.metrics["test/elbo"], abs=1e-3)
        both = f"runs=[{runs['residual']},{runs['laplace']}]"
        page = compare(compose("compare", [both, "allow=[residual,laplace]", "out=page"]))
    assert "Laplace" in page.read_text()
    history = read_history(runs["smooth"])
    assert history[-1]["val/elbo"] > history[0]["val/elbo"]


@pytest.mark.slow
def test_the_learning_step_resumes_sweeps_and_is_judged(
    extended: Path, monkeypatch: pytest.MonkeyPatch
):
    """What the page promises of a learning step of one's own."""
    from vae.compare import compare
    from vae.evaluate import evaluate
    from vae.train import train

    monkeypatch.chdir(extended)
    monkeypatch.syspath_prepend(extended)

    def config(command: str, *overrides: str) -> DictConfig:
        with initialize_config_dir(str(extended / "conf"), version_base="1.3"):
            return compose(command, [*overrides])

    # Resumed after two of four epochs it ends as the run that was left alone, bit for bit.
    plain = ["learning=smooth", "data=digits", "callbacks=none", "scheduler=none"]
    cpu = [*plain, "trainer.accelerator=cpu"]
    for folder, lengths in (("whole", [4]), ("resumed", [2, 4])):
        for epochs in lengths:
            chosen = config("train", *cpu, f"trainer.max_epochs={epochs}")
            (Path(folder) / ".hydra").mkdir(parents=True, exist_ok=True)
            OmegaConf.save(chosen, Path(folder) / ".hydra" / "config.yaml")
            train(chosen, Path(folder))
    assert timeless_metrics(Path("whole")) == timeless_metrics(Path("resumed"))

    # A sweep over the new setting has a row for each of its values.
    sweep = [*cpu, "trainer.max_epochs=20", "learning.penalty=0,100", "hydra.sweep.dir=swept"]
    sweep += ["hydra.sweep.subdir=${hydra.job.num}"]
    done = subprocess.run(
        [sys.executable, "-m", "vae.train", "-m", "--config-dir=conf", *sweep],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(extended)])},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    runs = {
        float(OmegaConf.load(path).learning.penalty): path.parents[1]
        for path in Path("swept").glob("*/.hydra/config.yaml")
    }
    assert {*runs} == {0.0, 100.0}
    rows = [line for line in done.stdout.splitlines() if "penalty" in line]
    assert rows, done.stdout

    # The penalty does what it is for, and evaluation and page know such runs.
    slopes = {penalty: slope_under_prior(vae_model(run)) for penalty, run in runs.items()}
    assert slopes[100.0] < 0.8 * slopes[0.0]
    quick = ["iwae.images=0", "chain.chains=0", "samples.n=0", "gap.images=0", "ppc.images=0"]
    for run in runs.values():
        found = evaluate(config("evaluate", f"run={run}", *quick))
        assert found["test/elbo"] == pytest.approx(timeless_metrics(run)["test/elbo"], abs=1e-3)
    both = ",".join(str(run) for run in runs.values())
    assert "penalty" in compare(config("compare", f"runs=[{both}]", "out=both")).read_text()


@pytest.mark.slow
def test_a_metric_and_a_setting_are_added_where_the_page_says(tmp_path: Path):
    """The edits of the page in a copy of the project: the metric is everywhere, the setting is
    checked and used."""
    shown = r"^`([\w./]+)`, after `([^`]+)`:\n\n```\w+\n(.*?)```"
    edits = re.findall(shown, DOCUMENTS[OWN], re.DOTALL | re.MULTILINE)
    assert len({path for path, _, _ in edits}) == 5
    for name in ("vae", "conf", "docs"):
        shutil.copytree(ROOT / name, tmp_path / name)
    for path, line, text in edits:
        old = (tmp_path / path).read_text()
        before = next(
            each for each in old.splitlines() if each.startswith(line) or each.strip() == line
        )
        (tmp_path / path).write_text(old.replace(before + "\n", f"{before}\n{text}", 1))

    def run(*overrides: str) -> "subprocess.CompletedProcess[str]":
        short = ["data=digits", "callbacks=none", "trainer.max_epochs=1", "trainer.accelerator=cpu"]
        command = [sys.executable, "-m", "vae.train", *short, "hydra.run.dir=run", *overrides]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=200)

    refused = run("matmul_precision=best")
    assert refused.returncode == 2
    assert "error: matmul_precision=best must be highest | high | medium" in refused.stderr
    done = run("matmul_precision=high")
    assert done.returncode == 0, done.stderr
    metrics = timeless_metrics(tmp_path / "run")
    for split in ("train", "val", "test"):
        kl, largest = metrics[f"{split}/kl"], metrics[f"{split}/largest_kl"]
        assert kl / 32 <= largest <= kl
    row = read_history(tmp_path / "run")[0]
    assert row["val/largest_kl"] == pytest.approx(metrics["val/largest_kl"])


def vae_model(folder: Path):
    import vae

    return vae.load_run(folder).model


def slope_under_prior(model) -> float:
    """E‖∂f/∂z‖² by finite differences at 256 samples of the prior."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(256, model.latent_dim, generator=generator)
    step = 1e-2 * torch.randn(z.shape, generator=generator)
    change = model.mean_image(z + step) - model.mean_image(z)
    return (change.square().sum() / 256 / 1e-4).item()


# --- docs/results.md ------------------------------------------------------------------------------

NUMBER = re.compile(r"[−-]?\d[\d,]*(?:\.\d+)?")


def result_rows() -> Iterator[tuple[list[str], str]]:
    """The experiments that a row of the table names, and what it says was measured."""
    for line in DOCUMENTS["docs/results.md"].splitlines():
        cells = [cell.strip() for cell in line.split(" | ")]
        if line.startswith("| `") and len(cells) > 5:
            yield re.findall(r"`([a-z0-9_]+)`", cells[0]), cells[5]


def numbers_in(value: object) -> Iterator[float]:
    if isinstance(value, dict | list):
        for child in value.values() if isinstance(value, dict) else value:
            yield from numbers_in(child)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield float(value)


def test_the_table_of_results_has_every_experiment():
    named = {name for names, _ in result_rows() for name in names}
    files = {path.stem for path in (ROOT / "conf" / "experiment").glob("*.yaml")}
    assert files - {"fast", "search"} <= named


def test_every_number_of_the_table_of_results_was_measured():
    """To the digits that are printed, in the file of the experiment under docs/results/."""
    for names, measured in result_rows():
        files = [ROOT / "docs" / "results" / f"{name}.json" for name in names]
        known = [n for f in files if f.is_file() for n in numbers_in(json.loads(f.read_text()))]
        texts = NUMBER.findall(re.sub(r"`[^`]*`|\([^)]*\)|L_[\d,]+", "", measured))
        assert known or not texts, f"{names}: no docs/results/*.json"
        for text in texts:
            digits = len(text.partition(".")[2])
            value = float(text.replace("−", "-").replace(",", ""))
            close = any(abs(abs(n) - abs(value)) <= 0.5000001 * 10**-digits for n in known)
            assert close, f"{names}: {text} is in no file of docs/results/"


def texts_in(value: object) -> Iterator[str]:
    if isinstance(value, dict | list):
        for child in value.values() if isinstance(value, dict) else value:
            yield from texts_in(child)
    elif isinstance(value, str):
        yield value


def test_the_files_of_results_name_no_folder_of_a_machine_and_every_picture_is_shown():
    folder = ROOT / "docs" / "results"
    texts = [t for path in folder.glob("*.json") for t in texts_in(json.loads(path.read_text()))]
    assert texts
    assert not [text for text in texts if text.startswith(("/", "~")) or "\\" in text]
    shown = re.findall(r"\(results/([\w-]+\.png)\)", DOCUMENTS["docs/results.md"])
    assert {*shown} == {path.name for path in folder.glob("*.png")}
