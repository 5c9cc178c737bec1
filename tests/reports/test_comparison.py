"""The page that puts runs side by side: its figures, its words, and the page itself in a real browser."""

import copy
import dataclasses
import html
import json
import re
import runpy
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from vae import comparison, verdict
from vae.analysis.chain import ChainTrace
from vae.compare import compare
from vae.models.likelihoods import Gaussian
from vae.reports.comparison.measure import Compared
from vae.runs.errors import UserError
from vae.runs.folder import load_run
from vae.train import train

ROOT = Path(__file__).parents[2]
MARKUP = "deep <img src=x onerror=\"document.title='x'\"> & <script>document.title='x'</script>"
EVALUATION = {
    "exact/log_p": 12.345678,
    "iwae/K=1000": -987.654321,
    "iwae/K=1000_se": 0.54321,
    "iwae/K=1000_ess": 1.5,
    "samples/fid": 41.25,
    "samples/fid_floor": 0.75,
    "samples/kid": 0.01234,
    "remark": "<b>bold</b>",
}


def settings(name: str, *overrides: str) -> DictConfig:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose(name, overrides=list(overrides))


def make_run(folder: Path, name: str | None = None, *overrides: str) -> Path:
    """A real run of ten epochs on the 400 digits, with its settings where load_run looks for them."""
    pictures = [
        f"~callbacks.{each}"
        for each in ("reconstructions", "prior_samples", "posterior_collapse", "chain")
    ]
    quick = [
        "data=digits",
        f"data.root={ROOT / 'data'}",
        "trainer.accelerator=cpu",
        "trainer.max_epochs=10",
        "data.batch_size=32",
    ]
    config = settings(
        "train", *quick, *pictures, "callbacks.elbo_curves.every_n_epochs=0", *overrides
    )
    config.logger = None
    if name is not None:
        config.model.name = name
    (folder / ".hydra").mkdir(parents=True)
    OmegaConf.save(config, folder / ".hydra" / "config.yaml")
    train(config, folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A baseline without an evaluation, and a deep pair with one and with markup in its name."""
    place = tmp_path_factory.mktemp("runs")
    baseline = make_run(place / "a", None, "model=baseline", "model.latent_dim=8")
    deep = make_run(place / "b", MARKUP, "model=deep", "model.latent_dim=8")
    (deep / "evaluation.json").write_text(json.dumps(EVALUATION))
    return [baseline, deep]


@pytest.fixture(scope="module")
def page(folders: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("page")
    return compare(settings("compare", f"runs=[{folders[0]},{folders[1]}]", f"out={out}"))


@pytest.fixture(scope="module")
def compared(folders: list[Path]) -> list[Compared]:
    runs = comparison.open_runs([str(folder) for folder in folders])
    return comparison.compare_runs(runs, comparison.common_data(runs))


def with_config(folder: Path, source: Path, **changes: Any) -> Path:
    """A copy of a run, its settings changed."""
    shutil.copytree(source, folder)
    config = OmegaConf.load(folder / ".hydra" / "config.yaml")
    for key, value in changes.items():
        OmegaConf.update(config, key.replace("__", "."), value)
    OmegaConf.save(config, folder / ".hydra" / "config.yaml")
    return folder


# --- figures ---------------------------------------------------------------------------------------------------


def test_figures_recomputed_from_the_checkpoint_equal_metrics_json(folders: list[Path]) -> None:
    run = load_run(folders[1])
    recomputed, per_image = comparison.elbo_figures(run, comparison.common_data([run]))
    for split, images in (("train", 400), ("val", 100), ("test", 300)):
        for term in comparison.TERMS:
            assert recomputed[f"{split}/{term}"] == pytest.approx(
                run.metrics[f"{split}/{term}"], abs=1e-3
            )
            values = per_image[f"{split}/{term}"]
            assert len(values) == images
            assert values.mean().item() == pytest.approx(run.metrics[f"{split}/{term}"], abs=1e-3)


def test_the_page_shows_metrics_json_and_evaluation_json(page: Path, folders: list[Path]) -> None:
    text = html.unescape(page.read_text(encoding="utf-8"))
    for place, folder in enumerate(folders):
        metrics = json.loads((folder / "metrics.json").read_text())
        for split in ("train", "val", "test"):
            table = (
                text.split(f'<table id="final-{split}">')[1]
                .split("</table>")[0]
                .split("<tbody>")[1]
            )
            row = table.split("</tr>")[place]
            shown = [float(value) for value in re.findall(r'data-value="([^"]+)"', row)]
            expected = [metrics[f"{split}/{term}"] for term in comparison.TERMS]
            assert [value for value in expected if value not in shown] == []
            words = [
                f"{metrics[f'{split}/{term}']:,.2f}".replace("-", "−") for term in comparison.TERMS
            ]
            assert all(f">{word} ± " in row for word in words)
    rows = dict(re.findall(r'<tr data-key="([^"]+)">(.*?)</tr>', text, flags=re.S))
    for key, value in EVALUATION.items():
        if not key.endswith("_se"):
            assert f'data-value="{value}"' in rows[key]
    assert "-987.65 ± 0.54" in rows["iwae/K=1000"]


def test_comparison_json_holds_the_figures_and_the_paired_difference(
    page: Path, compared: list[Compared]
) -> None:
    kept = json.loads((page.parent / "comparison.json").read_text())
    a, b = compared
    assert kept["runs"][1]["figures"]["test/elbo"] == b.run.metrics["test/elbo"]
    difference = b.per_image["test/elbo"] - a.per_image["test/elbo"]
    told = kept["runs"][1]["difference_to_reference"]["test/elbo"]
    assert told["mean"] == pytest.approx(
        b.run.metrics["test/elbo"] - a.run.metrics["test/elbo"], abs=2e-3
    )  # type: ignore[operator]
    assert told["se"] == pytest.approx(difference.std().item() / 300**0.5)
    assert (
        told["se"] < (a.figures["test/elbo_se"] ** 2 + b.figures["test/elbo_se"] ** 2) ** 0.5
    )  # pairing pays
    assert [row["epoch"] for row in kept["runs"][0]["curves"]] == list(range(1, 11))
    assert kept["runs"][1]["evaluation"] == EVALUATION
    assert len(kept["runs"][0]["chain_drift"]) == 101


def test_both_runs_start_their_chain_and_their_samples_from_the_same_codes(
    compared: list[Compared],
) -> None:
    for each in compared:
        torch.testing.assert_close(each.samples, each.course.frames[0])
    assert compared[0].course.drifts[0] == compared[1].course.drifts[0]


def test_a_missing_curve_and_a_metrics_json_of_another_checkpoint_are_told(
    folders: list[Path], tmp_path: Path
) -> None:
    copy = with_config(tmp_path / "copy", folders[0])
    (copy / "checkpoints" / "last.ckpt").unlink()
    metrics = json.loads((copy / "metrics.json").read_text())
    (copy / "metrics.json").write_text(json.dumps(metrics | {"val/elbo": metrics["val/elbo"] + 1}))
    (copy / "evaluation.json").write_text('{"samples/fid": 1')
    run = load_run(copy)
    data = comparison.common_data([run])
    (each,) = comparison.compare_runs([run], data)
    assert each.history == []
    assert [note.split(":")[0].split(" has ")[0].split(" cannot ")[0] for note in each.notes] == [
        "metrics.json",
        "no ELBO curves",
        "evaluation.json",
    ]


# --- words -----------------------------------------------------------------------------------------------------


def changed(each: Compared, **figures: float) -> Compared:
    figures = {key.replace("__", "/"): value for key, value in figures.items()}
    shift = (
        figures["test/elbo"] - each.per_image["test/elbo"].mean() if "test/elbo" in figures else 0.0
    )
    per_image = each.per_image | {"test/elbo": each.per_image["test/elbo"] + shift}
    return dataclasses.replace(each, figures=each.figures | figures, per_image=per_image)


def test_the_verdict_follows_the_figures(compared: list[Compared]) -> None:
    a, b = (
        dataclasses.replace(each, name=name)
        for each, name in zip(compared, ("A", "B"), strict=True)
    )
    assert verdict.elbo([changed(a, test__elbo=50.0), changed(b, test__elbo=10.0)])[0].startswith(
        "A has the higher"
    )
    told = verdict.elbo([changed(a, test__elbo=10.0), changed(b, test__elbo=50.0)])[0]
    assert told.startswith("B has the higher test ELBO: 50.00 against 10.00")
    assert "the paired difference is 40.00 ±" in told
    assert (
        "cannot be told apart"
        in verdict.elbo([changed(a, test__elbo=10.0), changed(b, test__elbo=10.01)])[0]
    )
    assert "A uses 5 of 8" in verdict.latents(changed(a, test__collapsed=3.0))
    below = verdict.against_linear(
        changed(b, train__elbo=b.oracle.train_elbo - 7), b.oracle.train_elbo
    )
    assert "7.00 nats below the best linear pair" in below
    assert "7.00 nats above" in verdict.against_linear(
        changed(b, train__elbo=b.oracle.train_elbo + 7), b.oracle.train_elbo
    )
    assert "something is wrong" in verdict.against_linear(
        changed(a, train__elbo=a.oracle.train_elbo + 1000), a.oracle.train_elbo
    )


def test_samples_are_judged_only_by_what_was_measured(compared: list[Compared]) -> None:
    a, b = (
        dataclasses.replace(each, name=name)
        for each, name in zip(compared, ("A", "B"), strict=True)
    )

    def said(of_a: dict[str, Any], of_b: dict[str, Any]) -> str:
        pair = [dataclasses.replace(a, evaluation=of_a), dataclasses.replace(b, evaluation=of_b)]
        return " ".join(verdict.samples(pair))

    assert said({}, {}).startswith("Not judged: no figures")
    assert said({}, {"samples/fid": 1.0}).startswith("Not judged for A: no figures")
    assert said({}, {"samples/fid": 1.0}) == said({"samples/fid": None}, {"samples/fid": 1.0})
    assert "samples of B are closer" in said({"samples/fid": 9.0}, {"samples/fid": 3.0})
    assert "samples of A are closer" in said({"samples/fid": 3.0}, {"samples/fid": 9.0})
    torn = said({"samples/fid": 3.0, "samples/kid": 2.0}, {"samples/fid": 9.0, "samples/kid": 1.0})
    assert "disagree" in torn


def test_the_chain_is_told_by_what_it_did(compared: list[Compared]) -> None:
    def course(drifts: list[float], finite_steps: int = 101, radius: float = 0.9) -> Compared:
        return dataclasses.replace(
            compared[0], name="A", course=ChainTrace([], drifts, finite_steps, radius)
        )

    assert "stays with the prior" in verdict.chain(course([0.5] * 101))
    assert "settle away" in verdict.chain(course([0.5] + [4.0] * 100))
    assert "keep moving away" in verdict.chain(course([0.5 + 0.1 * t for t in range(101)]))
    assert "from step 30 on" in verdict.chain(course([0.5] * 30 + [float("inf")] * 71, 30))
    assert "37% of the start" in (verdict.limit(course([0.5] * 101, radius=0.99)) or "")
    assert verdict.limit(course([0.5] * 101, radius=0.5)) is None
    assert "no limiting distribution" in (verdict.limit(course([0.5] * 101, radius=1.01)) or "")


def test_what_must_not_be_concluded(compared: list[Compared]) -> None:
    a, b = compared
    assert "rests on 1.5 effective of 1000 samples" in (verdict.bound(b) or "")
    assert "not measured" in (verdict.bound(a) or "")
    assert verdict.bound(dataclasses.replace(a, evaluation={"exact/gap": 0.2})) is None
    assert "Each setting was trained once" in verdict.seeds(compared)[0]
    assert verdict.seeds([a, a]) == []
    other = dataclasses.replace(
        a, run=dataclasses.replace(a.run, config=copy.deepcopy(a.run.config))
    )
    other.run.config.objective = {"_target_": "vae.models.IWAE", "samples": 5}
    assert "Each setting was trained once" in verdict.seeds([a, other])[0]
    assert not any("differs" in line for line in verdict.cautions(compared))
    wide = dataclasses.replace(
        b, run=dataclasses.replace(b.run, model=load_run(b.run.folder).model)
    )
    wide.run.model.likelihood = Gaussian(0.5)
    (line,) = [line for line in verdict.cautions([a, wide]) if line.startswith("sigma differs")]
    assert "366.4 at 0.25, -177.0 at 0.5" in line


# --- which runs ------------------------------------------------------------------------------------------------


def test_names_say_what_differs(folders: list[Path], tmp_path: Path) -> None:
    a = folders[0]
    runs = [load_run(folder) for folder in folders]
    assert comparison.names(runs) == ["baseline", MARKUP]
    other = load_run(
        with_config(tmp_path / "c", a, optimizer__lr=0.01, seed=3, trainer__log_every_n_steps=7)
    )
    assert comparison.names([runs[0], other]) == [
        "baseline, lr=0.001, seed=0",
        "baseline, lr=0.01, seed=3",
    ]
    twin = load_run(with_config(tmp_path / "twin", a))
    assert comparison.names([runs[0], twin]) == ["baseline (a)", "baseline (twin)"]


def test_a_sweep_folder_stands_for_its_runs_in_natural_order(
    folders: list[Path], tmp_path: Path
) -> None:
    for name in ("latent_dim=16", "latent_dim=2", "latent_dim=8"):
        with_config(tmp_path / "sweep" / name, folders[0])
    (tmp_path / "sweep" / "failed" / ".hydra").mkdir(parents=True)
    found = comparison.open_runs([str(tmp_path / "sweep"), str(folders[1])])
    assert [run.folder.name for run in found] == [
        "latent_dim=2",
        "latent_dim=8",
        "latent_dim=16",
        "b",
    ]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"data__name": "mnist"}, "data.name is digits in"),
        ({"data__val_size": 50}, "data.val_size is 100 in"),
        ({"data__val_seed": 1}, "data.val_seed is 0 in"),
    ],
)
def test_runs_on_other_data_are_refused_by_name(
    folders: list[Path], tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    other = with_config(tmp_path / "other", folders[0], **changes)
    with pytest.raises(UserError) as error:
        comparison.common_data(comparison.open_runs([str(folders[0]), str(other)]))
    (problem,) = error.value.problems
    assert told in problem
    assert str(other) in problem


def test_another_image_size_is_refused(folders: list[Path]) -> None:
    runs = [load_run(folder) for folder in folders]
    runs[1].model.mean_image = lambda z: torch.zeros(len(z), 1, 32, 32)  # type: ignore[method-assign]
    with pytest.raises(UserError, match=r"image size is 1×28×28 in .* and 1×32×32 in"):
        comparison.common_data(runs)


def test_data_of_another_project_is_not_built(folders: list[Path], tmp_path: Path) -> None:
    other = with_config(tmp_path / "other", folders[0], data___target_="os.system")
    with pytest.raises(UserError, match=r"os\.system"):
        comparison.common_data([load_run(other)])


def test_bad_input_is_told_in_a_line_each_and_leaves_nothing(
    folders: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "sys.argv", ["compare", f"runs=[{folders[0]},nowhere,{folders[0]}]", "out=page"]
    )
    with (
        pytest.raises(SystemExit) as stopped,
        pytest.warns(RuntimeWarning, match="found in sys.modules"),
    ):
        runpy.run_module(
            "vae.compare", run_name="__main__"
        )  # as `python -m`, without importing torch again
    assert stopped.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "error: runs: nowhere is no run folder: it has no .hydra/config.yaml",
        f"error: runs: {folders[0]} is named twice",
    ]
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "page").mkdir()  # an empty folder of the user's stays
    for wrong, line in (
        ([], "runs=[] makes 0 runs, and must make 2 to 24: runs=[<folder>,<folder>]"),
        (3, "runs=3 must be [<run folder>,<run folder>]"),
    ):
        with pytest.raises(UserError) as error:
            compare(DictConfig({"runs": wrong, "out": str(tmp_path / "page"), "allow": []}))
        assert error.value.problems == [line]
    assert [path.name for path in tmp_path.rglob("*")] == ["page"]


# --- the page in a browser -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no chromium on this machine")
    switches = "--headless --no-sandbox --disable-gpu --disable-background-networking"
    switches += " --disable-component-update --disable-sync"
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=program, args=switches.split())
        yield opened
        opened.close()


@pytest.fixture
def tab(browser: Any, page: Path) -> Iterator[Any]:
    """The page opened from its file; nothing may be requested or complained about while it is used."""
    tab = browser.new_page(viewport={"width": 1280, "height": 900})
    requested: list[str] = []
    complaints: list[str] = []
    tab.on("request", lambda request: requested.append(request.url))
    tab.on("console", lambda message: complaints.append(message.text))
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.goto(page.as_uri())
    yield tab
    tab.close()
    assert {url for url in requested if not url.startswith(("data:", "blob:"))} == {page.as_uri()}
    assert complaints == []


def until(tab: Any, condition: str, seconds: float = 15) -> None:
    """Playwright's own waiting evaluates text within the page, which the page's policy forbids."""
    end = time.monotonic() + seconds
    while not tab.evaluate(condition):
        assert time.monotonic() < end, f"not within {seconds} s: {condition}"
        time.sleep(0.05)


def test_every_picture_has_loaded(tab: Any) -> None:
    sizes = tab.evaluate(
        "[...document.images].map(i => [i.complete, i.naturalWidth, i.naturalHeight, i.alt.length])"
    )
    assert (
        len(sizes) == 2 + 1 + 2 + 2 + 1 + 2 + 1 + 2
    )  # curves, digits, histograms, spectrum, samples, drift, strips
    assert all(done and min(width, height, alt) > 0 for done, width, height, alt in sizes)


def test_both_videos_play_in_step_and_follow_the_slider(tab: Any) -> None:
    until(tab, "[...document.querySelectorAll('video')].every(v => v.readyState >= 2)")
    times = "[...document.querySelectorAll('video')].map(v => v.currentTime)"
    assert tab.evaluate(times) == [0, 0]
    tab.click("#play")
    until(tab, f"{times}.every(t => t > 0.5)")
    assert int(tab.inner_text("#at")) >= 4
    assert not any(tab.evaluate("[...document.querySelectorAll('video')].map(v => v.paused)"))
    tab.click("#play")
    first, second = tab.evaluate(times)
    assert abs(first - second) <= 0.3
    assert tab.evaluate("[...document.querySelectorAll('video')].every(v => v.paused && v.muted)")
    tab.evaluate(
        "s => { const e = document.querySelector('#step'); e.value = s; e.dispatchEvent(new Event('input')) }",
        40,
    )
    assert tab.evaluate(times) == [4.05, 4.05]
    assert tab.inner_text("#at") == "40"
    assert (
        tab.evaluate(
            "[...document.querySelectorAll('video')].map(v => [v.videoWidth, v.videoHeight])"
        )
        == [[238, 238]] * 2
    )


def test_the_table_sorts_on_a_click(tab: Any, compared: list[Compared]) -> None:
    column = tab.locator("#glance th", has_text="test ELBO")
    names = "[...document.querySelectorAll('#glance tbody th')].map(c => c.textContent)"
    ascending = [each.name for each in sorted(compared, key=lambda each: each.figures["test/elbo"])]
    column.locator("button").click()
    assert column.get_attribute("aria-sort") == "ascending"
    assert tab.evaluate(names) == ascending
    column.locator("button").press("Enter")
    assert column.get_attribute("aria-sort") == "descending"
    assert tab.evaluate(names) == ascending[::-1]


def test_markup_in_a_name_shows_as_text(tab: Any) -> None:
    assert MARKUP in tab.inner_text("#glance")
    assert MARKUP in tab.title()
    assert tab.locator("img[src=x]").count() == 0
    assert tab.locator("script").count() == 1
    assert "<b>bold</b>" in tab.inner_text("#evaluation")


def test_a_phone_scrolls_down_only(tab: Any) -> None:
    tab.set_viewport_size({"width": 390, "height": 800})
    assert tab.evaluate("document.documentElement.scrollWidth") == 390


def test_the_page_is_small_and_names_no_address(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert len(text) < 10e6
    assert re.findall(r'(?:src|href|action|url)\s*[=(]\s*["\']?(?!data:)\w+:', text) == []
