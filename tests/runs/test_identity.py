"""Which settings make a run what it is: one table, tried on settings that Hydra composes."""

from typing import Any

import pytest
from conftest import settings
from omegaconf import OmegaConf

from vae.runs import identity


def plain(*overrides: str) -> dict[str, Any]:
    return OmegaConf.to_container(settings(*overrides), resolve=True)


@pytest.mark.parametrize(
    ("key", "may_change", "affects_result", "names_run"),
    [
        ("seed", False, True, False),
        ("model.latent_dim", False, True, True),
        ("model.encoder.hidden", False, True, True),
        ("model.likelihood._target_", False, True, True),
        ("optimizer.lr", False, True, True),
        ("objective._target_", False, True, True),
        ("trainer.max_epochs", True, True, True),
        ("trainer.gradient_clip_val", True, True, True),
        ("trainer.limit_train_batches", True, True, True),
        ("trainer.accelerator", True, False, False),
        ("trainer.enable_progress_bar", True, False, False),
        ("data.root", True, False, False),
        ("data.batch_size", False, True, True),
        ("data.pixels", False, True, True),
        ("logger.version", True, False, False),
        ("threads", True, False, False),
        ("model.name", False, False, False),
        ("a_key_of_tomorrow", False, True, True),
    ],
)
def test_the_table(key: str, may_change: bool, affects_result: bool, names_run: bool):
    assert identity.may_change_on_resume(key) is may_change
    assert identity.affects_result(key) is affects_result
    assert identity.names_run(key) is names_run


@pytest.mark.parametrize(
    ("override", "groups"),
    [
        (["seed=1"], 1),
        (["data.root=/elsewhere"], 1),
        (["trainer.accelerator=cpu"], 1),
        (["trainer.devices=[3]"], 1),
        (["callbacks=none"], 1),
        (["logger=none"], 1),
        (["threads=1"], 1),
        (["trainer.devices=2"], 2),
        (["likelihood=learned_sigma"], 2),
        (["objective=iwae"], 2),
        (["objective=beta"], 2),
        (["model.latent_dim=8"], 2),
        (["trainer.max_epochs=2"], 2),
        (["data.batch_size=64"], 2),
        (
            [
                "+callbacks.stop._target_=lightning.pytorch.callbacks.EarlyStopping",
                "+callbacks.stop.monitor=val/elbo",
            ],
            2,
        ),
    ],
)
def test_runs_repeat_one_training_if_only_the_seed_differs(override: list[str], groups: int):
    found = identity.group_trainings([plain(), plain("seed=2"), plain(*override)])
    assert found == ([[0, 1, 2]] if groups == 1 else [[0, 1], [2]])


def test_lists_are_values():
    runs = [
        plain("model=deep", f"model.encoder.hidden=[{width}]", f"seed={seed}")
        for width in (64, 128)
        for seed in (0, 1)
    ]
    assert identity.group_trainings(runs) == [[0, 1], [2, 3]]
    assert identity.name_runs(runs) == ["deep, hidden=[64]"] * 2 + ["deep, hidden=[128]"] * 2


def test_two_likelihoods_are_not_two_seeds():
    runs = [
        plain(f"model={model}", f"likelihood={likelihood}")
        for model in ("baseline", "deep")
        for likelihood in ("gaussian", "learned_sigma")
    ]
    assert identity.group_trainings(runs) == [[0], [1], [2], [3]]
    assert identity.name_runs(runs) == [
        "baseline",
        "baseline, learned=True",
        "deep",
        "deep, learned=True",
    ]


@pytest.mark.parametrize(
    ("runs", "names"),
    [
        ([["model=baseline"], ["model=deep"]], ["baseline", "deep"]),
        (
            [["model=baseline"], ["model=deep"], ["model=deep", "model.latent_dim=8"]],
            ["baseline, latent_dim=32", "deep, latent_dim=32", "deep, latent_dim=8"],
        ),
        ([["model.sigma=0.5"], []], ["baseline, sigma=0.5", "baseline, sigma=0.25"]),
        (
            [["objective=iwae"], ["objective=free_bits"], []],
            [
                "baseline, objective=IWAE, samples=5",
                "baseline, objective=FreeBits, nats=0.25",
                "baseline, objective=ELBO",
            ],
        ),
        (
            [
                ["model=deep", "model.encoder.hidden=[8]", "model.decoder.hidden=[8]"],
                ["model=deep", "model.encoder.hidden=[9]"],
            ],
            [
                "deep, encoder.hidden=[8], decoder.hidden=[8]",
                "deep, encoder.hidden=[9], decoder.hidden=[256,512]",
            ],
        ),
        ([["trainer.accelerator=cpu", "data.root=x"], ["seed=1"]], ["baseline", "baseline"]),
    ],
)
def test_names_tell_what_differs(runs: list[list[str]], names: list[str]):
    assert identity.name_runs([plain(*overrides) for overrides in runs]) == names


def test_seeds_and_folders_name_runs_when_asked():
    runs = [plain("seed=0"), plain("seed=1")]
    assert identity.name_runs(runs, seeds=True) == ["baseline, seed=0", "baseline, seed=1"]
    assert identity.name_runs(runs, folders=["a", "b\x1b[31m"]) == [
        "baseline (a)",
        "baseline (b\\x1b[31m)",
    ]


def test_what_differs_between_two_runs_of_a_sweep():
    before = plain("model.latent_dim=8", "trainer.accelerator=cpu")
    assert identity.different_results(before, plain("model.latent_dim=8", "data.root=x")) == []
    different = identity.different_results(before, plain("seed=1", "trainer.max_epochs=7"))
    follow = {"model.encoder.latent_dim", "model.decoder.latent_dim", "scheduler.T_max"}
    assert set(different) - follow == {"model.latent_dim", "trainer.max_epochs", "seed"}


def test_what_must_be_alike():
    shape = (1, 28, 28)
    first = identity.comparability(plain(), shape, density=True)
    same = plain("data.batch_size=64", "data.root=x", "model=deep", "data.eval_batch_size=10")
    assert identity.incomparable(first, identity.comparability(same, shape, density=True)) == []
    other = plain("data.pixels=binarised", "data.val_size=50")
    lines = identity.incomparable(first, identity.comparability(other, (1, 8, 8), density=False))
    assert sorted(lines) == [
        "data.pixels is grey and binarised",
        "data.val_size is 100 and 50",
        "image shape is 1×28×28 and 1×8×8",
        "the likelihood is a density and a probability",
    ]
