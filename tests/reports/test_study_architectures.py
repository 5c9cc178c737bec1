"""Which runs of a study are trainings of one architecture, what it is called, what is refused."""

import json
from pathlib import Path

import pytest
from conftest import ROOT, settings
from test_sweep import write_run

from vae.reports.study.ladder import Architecture, read_architectures
from vae.reports.study.planned import alike, over_linear, width_steps
from vae.reports.study.write import depth_and_width
from vae.runs.errors import UserError

DEEP = ["model=deep", "model.encoder.hidden=[512,512]", "model.decoder.hidden=[512,512]"]
CONV = ["model=conv", "model.encoder.channels=[64,64]", "model.decoder.channels=[64,64]"]
SIGMOID = ["model=baseline", "model.decoder.output=sigmoid"]


def write_study(folder: Path, runs: list[list[str]]) -> Path:
    """Finished runs with these overrides, without networks."""
    for i, overrides in enumerate(runs):
        run = folder / str(i)
        write_run(run, settings(*overrides), overrides, 100.0 + i)
        sizes = {"model/encoder_parameters": 1000 * (i + 1), "model/decoder_parameters": 1}
        metrics = json.loads((run / "metrics.json").read_text()) | sizes
        (run / "metrics.json").write_text(json.dumps(metrics))
        (run / "checkpoints").mkdir()
        (run / "checkpoints" / "best.ckpt").touch()
    return folder


def read(folder: Path, *runs: list[str]) -> list[Architecture]:
    return read_architectures(str(write_study(folder, list(runs))))


def test_architectures_by_networks_and_seed(tmp_path: Path):
    """One architecture under two names is one; a seed counts once."""
    architectures = read(
        tmp_path,
        ["model=baseline", "seed=0"],
        ["model=baseline", "seed=1"],
        ["model=mlp", "model.depth=0", "seed=0"],
        ["model=mlp_2x64", "seed=0"],
        ["model=mlp", "model.width=64", "model.decoder.depth=0", "seed=0"],
        ["model=conv", "seed=0"],
    )
    assert {each.name: len(each.folders) for each in architectures} == {
        "linear": 2,
        "2 × 64": 1,
        "encoder 2 × 64": 1,
        "conv": 1,
    }


def test_networks_of_unlike_widths_are_no_trainings_of_one(tmp_path: Path):
    """[512, 256] and [512, 512], whose first seeds are the same."""
    runs = [["model=deep", "seed=0"], *([*DEEP, f"seed={seed}"] for seed in (0, 1))]
    deep, even = read(tmp_path, *runs)
    assert {each.name: [f.name for f in each.folders] for each in (deep, even)} == {
        "512-256": ["0"],
        "2 × 512": ["1", "2"],
    }
    assert (deep.ladder, even.ladder) == ("2 hidden layers, unequal widths", "2 hidden layers")
    assert [depth_and_width(each.encoder) for each in (deep, even)] == [[2, None], [2, 512]]
    assert alike([deep, even]) == [deep, even]  # each of one size, the decoder the encoder's mirror
    assert even.metrics[0]["val/elbo"] == 101.0


def test_networks_of_unlike_widths_make_no_step(tmp_path: Path):
    uneven = [f"model.{part}.hidden=[64,32,64]" for part in ("encoder", "decoder")]
    runs = [["model=deep", *uneven], *(["model=mlp", f"model.width={n}"] for n in (16, 64))]
    found = read(tmp_path, ["model=baseline"], *runs)
    assert [(s.a.name, s.b.name) for s in width_steps(found)] == [("2 × 16", "2 × 64")]
    assert [b.name for _, b in over_linear(found)] == ["64-32-64", "2 × 16", "2 × 64"]


def test_a_decoder_is_named_in_its_own_order(tmp_path: Path):
    hidden = "model.decoder.hidden=[512,256]"
    found = read(tmp_path, ["model=baseline", hidden], ["model=deep", hidden])
    assert [each.name for each in found] == ["decoder 512-256", "512-256 / 512-256"]
    assert not any(each.alike for each in found)


def test_without_hidden_layers_only_an_identity_output_is_linear(tmp_path: Path):
    found = read(tmp_path, SIGMOID, ["model=baseline"], ["model=mlp_1x64"])
    assert [each.name for each in found] == ["no hidden layers, sigmoid output", "linear", "1 × 64"]
    assert [(a.name, b.name) for a, b in over_linear(found)] == [("linear", "1 × 64")]
    (tmp_path / "alone").mkdir()
    encoder = ["model=deep", "model.decoder.hidden=[]"]
    (_, found) = read(tmp_path / "alone", ["model=baseline"], encoder)
    assert found.name == "512-256 / no hidden layers, sigmoid output"


def test_networks_that_are_not_fully_connected_are_told_apart_by_what_differs(tmp_path: Path):
    found = read(tmp_path, ["model=conv"], CONV, [*CONV, "seed=1"])
    assert {each.name: len(each.folders) for each in found} == {
        "conv, channels=[32,32]": 1,
        "conv, channels=[64,64]": 2,
    }
    assert {each.ladder for each in found} == {"conv"}


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (["model=deep", "model.sigma=0.5"], r"model\.sigma differs: 0\.25, 0\.5"),
        (["model=deep", "trainer.max_epochs=7"], r"trainer\.max_epochs differs: 30, 7"),
        (["model=deep", "scheduler=none"], r"scheduler\._target_ differs"),
        (["model=deep", "likelihood=learned_sigma"], r"model\.likelihood\.learned differs"),
        (["model=deep", "callbacks=ema"], r"callbacks\.\S+ differs"),
    ],
)
def test_runs_that_differ_in_more_than_their_networks_are_refused(
    tmp_path: Path, overrides: list[str], problem: str
):
    with pytest.raises(UserError, match=problem):
        read(tmp_path, ["model=baseline"], overrides)


def test_what_no_result_depends_on_may_differ(tmp_path: Path):
    watched = ["model=deep", "logger=csv", "threads=1", "trainer.log_every_n_steps=7"]
    assert len(read(tmp_path, ["model=baseline"], watched)) == 2


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ("encoder.activation=relu", "encoder.activation differs: silu at 1 × 64; relu at {}"),
        ("decoder.output=linear", "decoder.output differs: sigmoid at 1 × 64; linear at {}"),
        (
            "encoder.log_sd_range=[-7,2]",
            "encoder.log_sd_range differs: null at linear and 1 × 64; [-7, 2] at {}",
        ),
    ],
)
@pytest.mark.parametrize(("model", "name"), [("mlp_1x64", "1 × 64"), ("mlp_2x64", "2 × 64")])
def test_sizes_that_differ_in_more_than_their_size_are_refused(
    tmp_path: Path, setting: str, problem: str, model: str, name: str
):
    other = [f"model={model}", f"model.{setting}", "seed=1"]
    with pytest.raises(UserError) as error:
        read(tmp_path, ["model=baseline"], ["model=mlp_1x64"], other)
    assert error.value.problems == [f"runs: model.{problem.format(name)}"]


@pytest.mark.filterwarnings("ignore:(?s).*ConfigStore schema")
def test_the_published_study_keeps_its_names_and_ladders(tmp_path: Path):
    """Its folders are named by their overrides."""
    published = json.loads((ROOT / "docs/results/study.json").read_text())["points"]
    runs = [Path(each["folders"][0]).name.split(",") for each in published]
    sides = ("encoder", "decoder")
    same = [[f"+experiment=complexity_{side}", f"model.{side}.depth=0"] for side in sides]
    short = "trainer.max_epochs=10"
    found = read(tmp_path, *runs, *([*each, "seed=1", short] for each in same))
    described = [
        [each.name, each.ladder, *map(depth_and_width, (each.encoder, each.decoder))]
        for each in found
    ]
    keys = ("name", "ladder", "encoder", "decoder")
    assert described == [[each[key] for key in keys] for each in published]
    assert [len(each.folders) for each in found] == [2] + [1] * 16  # alone at depth 0: linear
