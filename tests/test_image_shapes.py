"""Images of any size and number of channels, from training to the page."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import composed
from omegaconf import OmegaConf

from vae.compare import compare
from vae.evaluate import evaluate
from vae.runs.folder import load_data, load_run
from vae.train import train

MODULE = '''
"""A coloured set of three discs, and scikit-learn's digits."""
import torch
from sklearn.datasets import load_digits

from vae.data import ImageDataModule


class Discs(ImageDataModule):
    """A disc on a ground, both of random colours: uint8 [N, 3, 32, 32], labelled by its radius."""

    def prepare_data(self):
        pass

    def read(self, train):
        count = 600 if train else 300
        rng = torch.Generator().manual_seed(int(train))
        x, y = torch.rand(2, count, 1, 1, generator=rng) * 16 + 8
        sizes = torch.randint(0, 3, (count,), generator=rng)
        row, column = torch.arange(32.0)[:, None], torch.arange(32.0)
        inside = (row - y) ** 2 + (column - x) ** 2 < ((3 + 2 * sizes) ** 2)[:, None, None]
        colours = torch.randint(0, 256, (2, count, 3, 1, 1), generator=rng)
        return torch.where(inside[:, None], *colours).to(torch.uint8), sizes.to(torch.uint8)


class Digits8(ImageDataModule):
    """1797 digits of 8 x 8 pixels, the last 297 for testing."""

    def prepare_data(self):
        pass

    def read(self, train):
        digits = load_digits()
        half = slice(0, 1500) if train else slice(1500, None)
        pixels = torch.tensor(digits.images[half] * 255 / 16).to(torch.uint8).unsqueeze(1)
        return pixels, torch.tensor(digits.target[half], dtype=torch.uint8)
'''
SETS = {  # class, image shape, images set aside, epochs
    "discs": ("Discs", [3, 32, 32], 100, 8),
    "digits8": ("Digits8", [1, 8, 8], 300, 40),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    """A short run of `deep` and of `conv` on each set."""
    folder = tmp_path_factory.mktemp("shapes")
    (folder / "shapes.py").write_text(MODULE)
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        patch.chdir(folder)
        for name, (kind, shape, val_size, epochs) in SETS.items():
            for model in ("deep", "conv"):
                run = folder / f"{name}-{model}"
                config = composed(
                    "train",
                    f"model={model}",
                    f"data._target_=shapes.{kind}",
                    f"data.name={name}",
                    f"data.image_shape={shape}",
                    f"data.val_size={val_size}",
                    "data.batch_size=50",
                    "model.latent_dim=8",
                    "model.sigma=0.1",
                    f"trainer.max_epochs={epochs}",
                    "trainer.accelerator=cpu",
                    "callbacks.chain.steps=20",
                )
                (run / ".hydra").mkdir(parents=True)
                OmegaConf.save(config, run / ".hydra" / "config.yaml")
                train(config, run)
                found[name, model] = run
        yield found


@pytest.mark.slow
@pytest.mark.parametrize("name", SETS)
def test_from_training_to_the_page(
    name: str, runs: dict[tuple[str, str], Path], open_page: Callable[[Path, int], Any]
):
    _, shape, _, _ = SETS[name]
    folders = [runs[name, model] for model in ("deep", "conv")]
    for folder in folders:
        metrics = json.loads((folder / "metrics.json").read_text())
        run = load_run(folder)
        test = load_data(run.config, allow=("shapes",)).images("test", 100)
        assert list(test.shape) == [100, *shape]
        assert run.model.sample(3).shape == (3, *shape)
        # It has learned: better than the closed form with no latents, the mean image alone.
        mean = test.mean(0, keepdim=True)
        error = (run.model.reconstruct(test) - test).square().mean()
        assert error < (mean - test).square().mean()
        pictures = {path.stem for path in (folder / "figures").glob("*.png")}
        assert {"reconstructions", "prior_samples", "chain", "posterior_collapse"} <= pictures
        # The whole evaluation, samples included, agrees with what training tested.
        judged = evaluate(
            composed(
                "evaluate", f"run={folder}", "allow=[shapes]", "iwae.images=50", "iwae.K=[1,10]",
                "gap.images=4", "gap.steps=30", "chain.chains=20", "chain.steps=100",
                "samples.n=200", "ppc.images=4", "classifier.epochs=1",
            )
        )  # fmt: skip
        assert judged["test/elbo"] == pytest.approx(metrics["test/elbo"], abs=1e-2)
        assert judged["iwae/K=10"] > judged["iwae/K=1"]
        assert torch.isfinite(torch.tensor(judged["samples/fid"]))
    out = folders[0].parent / f"page-{name}"
    page = compare(
        composed("compare", f"runs=[{folders[0]},{folders[1]}]", f"out={out}", "allow=[shapes]")
    )
    content = json.loads((out / "comparison.json").read_text())
    for width in (1300, 390):
        shown = open_page(page, width)
        assert shown.locator("#samples img").count() == 2
        hidden = "table => table.scrollWidth - table.parentElement.clientWidth"
        assert width < 1300 or shown.locator("table").first.evaluate(hidden) <= 0
    assert len(content["entries"]) == 2
