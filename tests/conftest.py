"""Shared by the tests: settings composed in process, the digits of the repository, one short real
run.

Torch and Lightning are imported where they are used: the process that hands the tests out to others
reads this file too, and needs neither.
"""

from __future__ import annotations

import gc
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run side by side, one a core
gc.disable()  # until all is imported

import copy
import functools
import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest
from hydra import compose, initialize_config_dir
from hydra._internal.config_repository import ConfigRepository
from hydra.utils import instantiate
from omegaconf import DictConfig

if TYPE_CHECKING:
    import lightning.pytorch as L
    import torch

    from vae.data.datamodule import ImageDataModule
    from vae.models.vae import VAE

ROOT = Path(__file__).parents[1]


def pytest_configure(config: pytest.Config) -> None:
    """Tests compute on the CPU, also on a machine with a GPU; `make test-gpu` runs the others."""
    if config.option.markexpr != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_collection_finish() -> None:
    """What was imported stays: no search for garbage goes through it again."""
    gc.freeze()
    gc.enable()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # some C++ parts complain of what is not collected at the end


def settings(*overrides: str) -> DictConfig:
    """The settings that `python -m vae.train` would have with these overrides, on the repository's
    digits."""
    return composed("train", "data=digits", f"data.root={ROOT / 'data'}", *overrides)


def composed(command: str, *overrides: str) -> DictConfig:
    """The settings that `python -m vae.<command>` would have with these overrides."""
    return copy.deepcopy(composed_once(command, overrides))


@functools.cache
def composed_once(command: str, overrides: tuple[str, ...]) -> DictConfig:
    """Hydra takes thirty times as long to compose settings as copying them does, most of it to read
    the same files again."""
    with (
        initialize_config_dir(str(ROOT / "conf"), version_base="1.3"),
        mock.patch.object(ConfigRepository, "load_config", read_once),
    ):
        return compose(command, [*overrides])


READ: dict[Any, Any] = {}
LOAD = ConfigRepository.load_config


def read_once(repository: ConfigRepository, config_path: str) -> Any:
    """What Hydra finds in a config file, kept beyond one compose."""
    key = (config_path, *(source.path for source in repository.get_sources()))
    if key not in READ:
        READ[key] = LOAD(repository, config_path)
    return copy.deepcopy(READ[key])  # Hydra sets values in it


def run_vae(command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`python -m vae.<command> <arguments>` in a process of its own, with one thread."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    for rank in ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_PORT"):
        environment.pop(rank, None)
    line = [sys.executable, "-m", f"vae.{command}", *arguments]
    return subprocess.run(
        line, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200
    )


def train_run(folder: Path, config: DictConfig) -> dict[str, float]:
    """The metrics of a run in a new folder, with its settings where a command leaves them."""
    from omegaconf import OmegaConf

    from vae.train import train

    (folder / ".hydra").mkdir(parents=True)
    OmegaConf.save(config, folder / ".hydra" / "config.yaml")
    return train(config, folder)


def timeless_metrics(folder: Path) -> dict[str, float]:
    """The metrics of a run but for those that depend on how fast it was."""
    metrics = json.loads((folder / "metrics.json").read_text())
    return {key: value for key, value in metrics.items() if not key.startswith("time/")}


def build_model(*overrides: str, seed: int = 0) -> VAE:
    import torch

    torch.manual_seed(seed)
    return instantiate(settings(*overrides).model, _convert_="all")


def quiet_trainer(**options: Any) -> L.Trainer:
    """A Trainer of one's own on a CPU that leaves nothing on the screen or the disk."""
    import lightning.pytorch as L

    quiet = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
    )
    return L.Trainer(accelerator="cpu", **quiet | options)  # type: ignore[arg-type]


def set_linear(model: VAE, weights: dict[str, torch.Tensor]) -> VAE:
    """The linear VAE with the weights of `PPCA.weights()`, its log sd constant, in float64."""
    import torch

    model = model.double()
    m = model.latent_dim
    head, pixels = model.encoder.layers[0], model.decoder.layers[0]
    with torch.no_grad():
        head.weight[:m], head.weight[m:] = weights["V"], 0
        head.bias[:m], head.bias[m:] = weights["c"], weights["log_sd"]
        pixels.weight.copy_(weights["W"])
        pixels.bias.copy_(weights["b"])
    return model


def at_optimum(images: torch.Tensor, m: int, sigma: float) -> VAE:
    """A linear encoder and decoder at the pPCA solution of images [N, C, H, W], in float32."""
    from vae.models.networks import Decoder, Encoder
    from vae.models.vae import VAE
    from vae.theory.ppca import PPCA, Spectrum

    weights = PPCA(Spectrum.from_images(images), m, sigma).weights()
    shape = tuple(images.shape[1:])
    model = VAE(
        Encoder(m, image_shape=shape), Decoder(m, image_shape=shape), m, sigma, image_shape=shape
    )
    return set_linear(model, weights).float().requires_grad_(False).eval()


@pytest.fixture
def open_page() -> Iterator[Callable[[Path, int], Any]]:
    """Opens an HTML file in Chromium at a width; a page has failed where a picture is broken, the
    console said something, or it is wider than the window."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("needs Chromium")
    flags = ("no-sandbox", "disable-gpu", "disable-background-networking", "disable-sync")
    flags += ("disable-component-update",)
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=program, args=["--headless", *(f"--{flag}" for flag in flags)]
        )

        def open_page(path: Path, width: int) -> Any:
            page = browser.new_page(viewport={"width": width, "height": 900})
            said: list[str] = []
            page.on("console", lambda message: said.append(message.text))
            page.goto(path.resolve().as_uri())
            broken = "[...document.images].filter(i => !i.complete || !i.naturalWidth).length"
            assert page.evaluate(broken) == 0
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            assert said == []
            return page

        yield open_page
        browser.close()


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    """A command called in process leaves Hydra's handlers behind, with an output that pytest closes
    after the test."""
    root, handlers, level = logging.root, [*logging.root.handlers], logging.root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture(scope="session")
def digits() -> ImageDataModule:
    data = instantiate(settings().data)
    data.prepare_data()
    data.setup("test")
    return data


@pytest.fixture(scope="session")
def mnist() -> ImageDataModule:
    """The full MNIST, all 60 000 training images but for 5 000; fetched into data/ when it is not
    there."""
    data = instantiate(settings("data=mnist", f"data.root={ROOT / 'data'}").data)
    data.prepare_data()
    data.setup("test")
    return data


FIGURES = ("reconstructions", "prior_samples", "posterior_collapse", "elbo_curves", "chain")
NO_PICTURES = [f"callbacks.{name}=null" for name in FIGURES]
NO_PICTURES += ["trainer.accelerator=cpu", "model.latent_dim=4"]


class ShortRun:
    """Two epochs of the baseline on the repository's digits, every callback on."""

    def __init__(self, folder: Path, overrides: Sequence[str]) -> None:
        self.folder, self.config = folder, settings(*overrides)
        self.metrics = train_run(folder, self.config)


@pytest.fixture(scope="session")
def short_run(tmp_path_factory: pytest.TempPathFactory) -> ShortRun:
    overrides = ["trainer.max_epochs=2", "model.latent_dim=4", "trainer.accelerator=cpu"]
    overrides += [
        f"callbacks.{name}.every_n_epochs=1" for name in ("elbo_curves", "prior_samples", "chain")
    ]
    return ShortRun(tmp_path_factory.mktemp("run") / "baseline", overrides)
