"""The HPARAMS tab: runs that differ look different, and what is compared comes first."""

import pytest
from conftest import settings
from omegaconf import OmegaConf

from vae.training.tensorboard import MAIN_COLUMNS, compared_settings


def columns(*overrides: str) -> dict[str, str | float]:
    plain = OmegaConf.to_container(settings(*overrides), resolve=True)
    return compared_settings(plain, [*overrides])


@pytest.mark.parametrize(
    ("overrides", "column", "value"),
    [
        (["model=deep", "model.encoder.hidden=[64]"], "hidden", "[64]"),
        (["optimizer=adamw", "optimizer.weight_decay=0.5"], "optimizer", "AdamW(weight_decay=0.5)"),
        (["likelihood=learned_sigma"], "likelihood", "Gaussian(learned=True)"),
        (["objective=beta", "objective.beta=3"], "objective", "BetaELBO(beta=3)"),
        (["seed=7"], "seed", 7),
        (["callbacks=[default,ema]"], "callbacks", None),
        (["trainer.gradient_clip_val=2"], "overrides", "trainer.gradient_clip_val=2"),
    ],
)
def test_a_run_that_differs_has_another_row(overrides, column, value):
    changed = columns(*overrides)
    assert column in changed, changed
    assert changed[column] != columns("model=deep").get(column)
    if value is not None:
        assert changed[column] == value


def test_what_is_compared_comes_first():
    found = [*columns("model=deep")]
    assert found[: len(MAIN_COLUMNS)] == [*MAIN_COLUMNS]
    assert {"model", "latent_dim", "sigma", "likelihood", "objective"} == {*MAIN_COLUMNS}


def test_what_watches_and_constants_stay_out():
    base = columns("model=deep")
    for override in ("trainer.profiler=simple", "threads=1", "callbacks=none"):
        assert columns("model=deep", override) == base
