"""Every key of the settings, fed garbage, through whole runs: each runs, or one line names the key
and nothing is left.

FUZZ=2000 for a long session: that many inputs in all.
"""

import itertools
import os
import runpy
import shutil
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import composed, settings
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf

import vae
from vae.compare import compare
from vae.evaluate import evaluate
from vae.reports.sweep.groups import read
from vae.reports.sweep.table import table
from vae.runs.errors import RunError, UserError
from vae.runs.files import read_json
from vae.runs.folder import saved_config
from vae.runs.validation import flatten
from vae.summary import summary
from vae.train import train

INPUTS = int(os.environ.get("FUZZ", "120"))
SECONDS = 60  # an input may take, on a machine that others use too
MODELS = ("baseline", "deep")
QUICK = ["trainer.max_epochs=1", "trainer.accelerator=cpu", "model.latent_dim=2"]
NO_PICTURES = ["callbacks=none"]
SMALL = {
    "baseline": QUICK,
    "deep": [*QUICK, "model.encoder.hidden=[8]", "model.decoder.hidden=[8]"],
}
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-3, 300),
    st.floats(),
    st.sampled_from(
        [
            0,
            1,
            -1,
            10**12,
            1e-320,
            1e308,
            float("inf"),
            float("nan"),
            "",
            "null",
            "'",
            '"',
            "${seed}",
            "${x}",
            "${",
            "???",
        ]
    ),
    st.text(max_size=20),
)
VALUES = st.one_of(
    SCALARS,
    st.lists(SCALARS, max_size=4),
    st.dictionaries(st.text(max_size=5), SCALARS, max_size=2),
)
GONE = object()  # in place of a value: the key is taken away, as ~key does
PICTURES = ["callbacks.chain.steps=5"]
TRAIN = {m: OmegaConf.to_container(settings(f"model={m}", *SMALL[m], *PICTURES)) for m in MODELS}
# Settings that are legal and would take this test hours, or many processes: the most that it runs.
MAX_VALUES = {
    "trainer.max_epochs": 3,
    "trainer.devices": 1,
    "threads": 2,
    "model.latent_dim": 300,
    "model.encoder.latent_dim": 300,
    "model.decoder.latent_dim": 300,
    "model.encoder.hidden": 1000,
    "model.decoder.hidden": 1000,
    "callbacks.chain.steps": 20,
    "compile": 0,
    "classifier.epochs": 1,
    "chain.chains": 100,
    "chain.steps": 100,
    "elbo.samples": 20,
    "iwae.images": 20,
    "iwae.K": 1000,
    "ais.images": 5,
    "ais.chains": 20,
    "ais.distributions": 20,
    "ais.leapfrog": 20,
}


def garbage(
    keys: list[str], share: float
) -> Callable[[Callable[[str, Any], None]], Callable[[], None]]:
    """A share of the inputs, each a key and a value for it, the same ones every time."""
    options = {
        "phases": [Phase.generate],
        "deadline": None,
        "derandomize": True,
        "database": None,
        "suppress_health_check": list(HealthCheck),
    }
    values = st.one_of(VALUES, VALUES, VALUES, st.just(GONE))
    return lambda feed: examples(max_examples=max(1, round(INPUTS * share)), **options)(
        given(st.sampled_from(keys), values)(feed)
    )


def keys_of(config: dict[str, Any]) -> list[str]:
    """Every setting, and every group of them."""
    settings = [key for key, _ in flatten(config)]
    groups = {
        ".".join(parts[:n])
        for key in settings
        for parts in [key.split(".")]
        for n in range(1, len(parts))
    }
    return [*settings, *sorted(groups)]


def with_garbage(plain: Any, key: str, value: Any) -> DictConfig | None:
    """The settings with a value that an override could carry; None for one that it could not, or
    that takes hours."""
    amount = (
        sum(v for v in value if isinstance(v, int | float)) if isinstance(value, list) else value
    )
    if key in MAX_VALUES and isinstance(amount, int | float) and not amount <= MAX_VALUES[key]:
        return None
    if key == "trainer.devices" and (
        isinstance(value, list) or str(value).strip().lstrip("+-").isdigit()
    ):
        return None
    config = OmegaConf.create(plain)
    try:
        if value is GONE:
            parent, _, name = key.rpartition(".")
            (OmegaConf.select(config, parent) if parent else config).pop(name)
        else:
            OmegaConf.update(config, key, value, merge=False)
            OmegaConf.create(OmegaConf.to_yaml(config))
    except Exception:
        return None
    return config


@contextmanager
def time_limit() -> Iterator[None]:
    def late(*_: Any) -> None:
        raise TimeoutError(f"not done after {SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def lines(work: Callable[[], Any]) -> list[str]:
    """What was wrong where it did not end well; any other exception than the project's own is a
    failure."""
    try:
        with time_limit():
            work()
    except UserError as error:
        return list(error.problems)
    except RunError as error:
        return [f"the machine: {error}"]
    return []


def feed_to(work: Callable[[], Any], key: str, value: Any) -> bool:
    """Whether it refused, which it must do in lines that name the key."""
    messages = lines(work)
    assert all(line and "\n" not in line for line in messages)
    names = (key, key.split(".")[0], "the machine")
    assert not messages or any(line.startswith(names) or key in line for line in messages), (
        key,
        value,
        messages,
    )
    return bool(messages)


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_garbage_trains_or_is_told_in_a_line(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """And what it leaves behind opens, is resumed and is summed up, or says why not."""
    monkeypatch.chdir(tmp_path)  # where a folder's name is garbage
    numbers = itertools.count()
    plain = OmegaConf.to_container(settings(f"model={model}", *SMALL[model], *NO_PICTURES))

    @garbage(keys_of(TRAIN[model]), 0.35)
    def feed(key: str, value: Any) -> None:
        config = with_garbage(TRAIN[model] if key.startswith("callbacks") else plain, key, value)
        if config is None:
            return
        number = next(numbers)
        run = tmp_path / str(number) / "run"
        (run / ".hydra").mkdir(parents=True)
        OmegaConf.save(config, run / ".hydra" / "config.yaml")
        refused = feed_to(lambda: train(config, run), key, value)
        dry = key == "trainer.fast_dev_run" and value  # keeps nothing
        assert refused or dry or read_json(run / "metrics.json")
        if run.exists() and not dry:
            later: list[Callable[[], Any]] = [
                lambda: vae.load_run(run),
                lambda: table(read(run.parent)),
            ]
            if refused or number % 4 == 0:
                later.append(lambda: train(saved_config(run, [], OmegaConf.create(plain)), run))
            untrained = refused or not [*run.glob("checkpoints/*.ckpt")]  # max_epochs=0
            for work in later:
                messages = lines(work)
                assert not messages or (untrained and all("\n" not in m for m in messages)), (
                    key,
                    value,
                    messages,
                )
        shutil.rmtree(run.parent)

    threads = torch.get_num_threads()
    feed()
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two small runs."""
    runs = [tmp_path_factory.mktemp("runs") / model for model in MODELS]
    for model, run in zip(MODELS, runs, strict=True):
        config = settings(f"model={model}", *SMALL[model], *NO_PICTURES)
        (run / ".hydra").mkdir(parents=True)
        OmegaConf.save(config, run / ".hydra" / "config.yaml")
        train(config, run)
    return list(map(str, runs))


def command(name: str, *overrides: str) -> dict[str, Any]:
    return OmegaConf.to_container(composed(name, *overrides))


def fed(plain: dict[str, Any], keys: list[str], share: float, work: Callable[[Any], Any]) -> int:
    """How many inputs a command took or refused as it must; fails at the first other one."""
    inputs = 0

    @garbage(keys, share)
    def feed(key: str, value: Any) -> None:
        nonlocal inputs
        config = with_garbage(plain, key, value)
        if config is not None:
            feed_to(lambda: work(config), key, value)
            inputs += 1

    feed()
    return inputs


@pytest.mark.slow
def test_garbage_is_evaluated_or_told_in_a_line(
    trained: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    quick = [
        f"run={trained[0]}",
        f"against={trained[1]}",
        "accelerator=cpu",
        "chain.chains=2",
        "chain.steps=100",
    ]
    quick += [
        "iwae.images=3",
        "iwae.K=[1,2]",
        "samples.n=10",
        "classifier.epochs=1",
        "ais.images=1",
    ]
    quick += ["ais.chains=2", "ais.distributions=2", "ais.leapfrog=1"]
    plain = command("evaluate", *quick)

    assert fed(plain, keys_of(plain), 0.15, evaluate) > 0


def test_garbage_is_compared_or_told_in_a_line(
    trained: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    plain = {"runs": trained, "page": "comparison", "out": "page", "allow": []}
    plain |= {"data": {"root": None}}

    assert fed(plain, list(plain), 0.1, compare) > 0


def test_garbage_is_summed_up_or_told_in_a_line(
    trained: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    plain = {"sweep": str(Path(trained[0]).parent), "x": None}

    assert fed(plain, list(plain), 0.05, summary) > 0


@pytest.mark.parametrize(
    ("code", "line", "overrides"),
    [
        (2, "error: model.sigma='σ must be a number", ["train", r"model.sigma='\'σ'"]),
        (2, "error: seed: Interpolation key 'x' not found", ["train", "seed=${x}"]),
        (1, "mismatched input", ["train", "model.sigma=a=b"]),  # Hydra's grammar, in its words
        (2, "error: data=null: name one of conf/data", ["train", "data=null"]),
        (2, "error: resume=no/where is no run folder", ["train", "resume=no/where"]),
        (2, "error: run: é is no run folder", ["evaluate", "run='é'"]),
        (2, "error: runs: a,b=c is no run folder", ["compare", "runs=['a,b=c']"]),
        (2, 'error: sweep="it\'s": no runs in it', ["summary", "sweep='\"it\\'s\"'"]),
    ],
)
def test_quotes_on_the_command_line(
    code: int,
    line: str,
    overrides: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    """As `python -m`, without importing torch again."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", overrides)
    with pytest.raises(SystemExit) as stopped, warnings.catch_warnings(action="ignore"):
        runpy.run_module(f"vae.{overrides[0]}", run_name="__main__", alter_sys=True)
    said = capsys.readouterr().err
    assert (stopped.value.code, "Traceback" in said) == (code, False), said
    assert line in said
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
