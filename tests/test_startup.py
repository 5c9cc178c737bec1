"""What is imported before something is said or trained: seconds of every start."""

import gc
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from vae.command import import_quickly

HEAVY = {"torch", "lightning", "numpy", "pandas", "matplotlib", "pydantic", "tensorboard"}
HEAVY |= {"imageio", "PIL", "scipy", "optuna", "sqlalchemy", "joblib", "jinja2"}
# what a run needs in its steps, and what Lightning and torch import anyway
NEEDED = {"torch", "lightning", "numpy", "pydantic", "matplotlib", "PIL", "scipy"}


def imported(code: str) -> set[str]:
    """Heavy modules that are there once the code has run in a process of its own."""
    shown = "import sys; print('IMPORTED', *{m.split('.')[0] for m in sys.modules})"
    line = [sys.executable, "-c", f"{code}\n{shown}"]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert "IMPORTED" in done.stdout, done.stderr
    return {*done.stdout.rpartition("IMPORTED")[2].split()} & HEAVY


def test_help_imports_nothing_heavy() -> None:
    """It answers within a second because it waits for nothing."""
    call = "\n".join(
        [
            "import sys",
            "from hydra.core.global_hydra import GlobalHydra",
            "from vae import compare, evaluate, export, summary, train",
            "for command in (train.main, evaluate.main, compare.main, summary.main, export.main):",
            "    sys.argv = ['vae', '--cfg', 'job']",
            "    GlobalHydra.instance().clear()",
            "    try: command()",
            "    except SystemExit: pass",
        ]
    )
    assert imported(call) == set()


@pytest.mark.slow
def test_a_run_imports_what_it_uses(tmp_path: Path) -> None:
    """Up to its first step: neither tables nor loggers, encoders and sweepers that it has not."""
    arguments = ["data=digits", "trainer.accelerator=cpu", "logger=none", "callbacks=none"]
    call = "\n".join(
        [
            "import sys, vae.train, vae.training",
            "class FirstStep(Exception): pass",
            "def stop(*_): raise FirstStep",
            "vae.training.LitVAE.training_step = stop",
            f"sys.argv = ['vae.train', 'hydra.run.dir={tmp_path / 'run'}', *{arguments}]",
            "try: vae.train.cli()",
            "except (FirstStep, SystemExit): pass",
        ]
    )
    assert imported(call) <= NEEDED
    assert (tmp_path / "run" / "environment.json").is_file()  # it came as far as fitting


@pytest.mark.parametrize("enabled", [True, False])
def test_the_garbage_collector_is_as_it_was_after_the_imports(
    enabled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    (gc.enable if enabled else gc.disable)()
    try:
        before = gc.get_freeze_count()
        import_quickly("colorsys")
        assert gc.isenabled() == enabled
        assert "colorsys" in sys.modules
        frozen = gc.get_freeze_count()
        assert frozen > before
        kept = [[] for _ in range(1000)]
        import_quickly("colorsys")  # nothing new: what a multirun's last job left is not kept
        assert gc.get_freeze_count() == frozen
        assert len(kept) == 1000
    finally:
        gc.enable()


def test_what_a_sweep_that_is_cut_short_lists_is_light() -> None:
    """It is read as Python ends, when threads, and so pandas, can no longer be imported."""
    assert "pandas" not in imported("import vae.reports.sweep.runs")
