"""Every key of the settings, fed garbage: it builds, or one line names the key. FUZZ=2000 for a long session."""

import os
from pathlib import Path

import pytest
from conftest import settings
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from omegaconf import OmegaConf

from vae.errors import UserError
from vae.settings import Builder, leaves

MODELS = ("baseline", "deep")
KEYS = {model: [k for k, _ in leaves(OmegaConf.to_container(settings(f"model={model}")))] for model in MODELS}
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-3, 300),
    st.floats(),
    st.sampled_from(
        [0, 1, -1, 10**12, 1e-320, 1e308, float("inf"), float("nan"), "", "null", "'", '"', "${seed}", "${x}"]
    ),
    st.text(max_size=20),
)
VALUES = st.one_of(SCALARS, st.lists(SCALARS, max_size=4), st.dictionaries(st.text(max_size=5), SCALARS, max_size=2))


@pytest.mark.parametrize("model", MODELS)
def test_garbage_builds_or_is_told_in_a_line(model: str, tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("fuzz")

    @examples(
        max_examples=int(os.environ.get("FUZZ", "150")),
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.sampled_from(KEYS[model]), VALUES)
    def feed(key: str, value: object) -> None:
        config = settings_of(model)
        OmegaConf.set_struct(config, False)
        try:
            OmegaConf.update(config, key, value, merge=False)
        except Exception:  # not a value that YAML or an override could carry
            return
        problems: list[str] = []
        try:
            build(config, folder)
        except UserError as told:
            problems = list(told.problems)
        assert all("\n" not in line for line in problems)
        named = any(line.startswith(key.split(".")[0]) for line in problems)
        assert not problems or named or "${" in str(value), (key, value, problems)

    feed()


CACHE = {model: settings(f"model={model}") for model in MODELS}


def settings_of(model: str):
    return OmegaConf.create(OmegaConf.to_container(CACHE[model]))


def build(config, folder: Path) -> None:
    build = Builder(config)
    build.seed()
    for key in ("data", "model", "optimizer", "scheduler"):
        build(key)
    build("logger", save_dir=str(folder))
    callbacks = build.each("callbacks")
    build("trainer", callbacks=callbacks, logger=False, default_root_dir=str(folder))
    build.finish(folder)
