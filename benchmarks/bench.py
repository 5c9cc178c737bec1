"""How fast training is, as ratios measured in one process: make bench (40 minutes on 2 cores)

Contestants train the same networks by Adam on the same 55 000 images at batch 128. After each
epoch of a contestant comes one of a loop by hand, and the epoch's ratio is to the mean of the
loop's before and after it, so that a noisy machine is noisy for both:

  project   this project's fit as it is by default: validation, checkpoints, callbacks, TensorBoard
  fast      the same with +experiment=fast; on a GPU its step is a CUDA graph
  replayed  on a GPU, the default with its step as a CUDA graph
  compiled  the loop with torch.compile
  pattern   the usual Lightning pattern: torchvision's loader with ToTensor, three metrics a step
  pythae    pythae 0.1.2 with the same layers, without validation (where it is installed)

The loop gathers its batches as the project does, has the same validation each epoch and the same
fused Adam; the last two have torch's default. First epochs, in which steps are compiled, are not
counted, and no pictures are made. Then the project's rate over batch size, latent_dim, width,
number of images and devices, each several times; and from the command to the first step, and a
sweep of eight runs, serial and by joblib. Writes bench.json and bench.png.
"""

import argparse
import contextlib
import io
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
EPOCHS = {"baseline": 10, "deep": 6}  # counted in a round
GROWTH = {
    "data.batch_size": (32, 128, 512, 2048, 8192),
    "model.latent_dim": (2, 8, 32, 128),
    "width": (64, 256, 1024),
    "images": (10_000, 30_000, 55_000),
}
DEVICES = (1, 2)
BATCH = 128


def compose(*overrides: str) -> Any:
    from hydra import compose, initialize_config_dir

    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("train", list(overrides))


# --- epochs in turns ------------------------------------------------------------------------------


class Turns:
    """Epochs of a contestant and of the loop by hand, one after the other, each timed by itself."""

    def __init__(self, by_hand: Callable[[], float]) -> None:
        self.by_hand = by_hand  # trains for an epoch and returns its seconds
        self.own: list[float] = []
        self.loop: list[float] = []
        self.started: float | None = None
        by_hand()  # its first one, not counted

    def ended(self, *_: Any, **__: Any) -> None:
        """Called as the contestant ends an epoch; its first one is not counted."""
        if self.started is not None:
            self.own.append(time.perf_counter() - self.started)
        self.loop.append(self.by_hand())
        self.started = time.perf_counter()

    def ratios(self) -> list[float]:
        around = zip(self.loop, self.loop[1:], strict=False)
        return [2 * own / sum(pair) for own, pair in zip(self.own, around, strict=True)]


def by_hand(model: str, device: str, compiled: bool = False) -> Callable[[], float]:
    """A loop by hand, an epoch a call, validation included; its sums are looked at once."""
    import torch

    # Lightning sets it too, and Adam asks for CUDA at every step
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "0"
    train, val, networks, optimizer = parts(model, device)

    def elbo(x: Any) -> Any:
        eps = torch.randn(len(x), networks.latent_dim, device=x.device)
        return networks.elbo_terms(x, eps)[0].elbo.mean()

    step = torch.compile(elbo) if compiled else elbo

    def epoch() -> float:
        started = time.perf_counter()
        total = torch.zeros((), device=train.device)
        for index in torch.randperm(len(train), device=train.device).split(BATCH):
            loss = -step(train.index_select(0, index) / 255)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.detach()
        with torch.no_grad():
            validated = sum(elbo(part / 255) for part in val.split(1000))
        total.item(), validated.item()
        return time.perf_counter() - started

    return epoch


# --- the contestants ------------------------------------------------------------------------------


def fit(model: str, device: str, *overrides: str, epochs: int = 1) -> float:
    """Seconds an epoch of the project's fit, with everything that a default run does in an epoch
    without pictures."""
    from vae.train import train

    drawn = ("reconstructions", "prior_samples")
    pictures = [f"callbacks.{name}.every_n_epochs=0" for name in drawn]
    settings = (f"model={model}", f"trainer.max_epochs={epochs}", f"trainer.accelerator={device}")
    config = compose(*settings, *pictures, *overrides)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        return train(config, Path(folder))["time/fit_seconds"] / epochs


def project(model: str, device: str, turns: Turns, *overrides: str) -> None:
    from vae.training import LitVAE

    epoch_end = LitVAE.on_train_epoch_end

    def ended(module: LitVAE) -> None:
        epoch_end(module)
        turns.ended()

    LitVAE.on_train_epoch_end = ended  # type: ignore[method-assign]
    try:
        fit(model, device, *overrides, epochs=EPOCHS[model] + 1)
    finally:
        LitVAE.on_train_epoch_end = epoch_end  # type: ignore[method-assign]


def fast(model: str, device: str, turns: Turns) -> None:
    graph = ("learning.compile=false", "learning.cuda_graph=true") if device == "gpu" else ()
    project(model, device, turns, "+experiment=fast", *graph)


def replayed(model: str, device: str, turns: Turns) -> None:
    """As it is by default, but for its step, a CUDA graph."""
    project(model, device, turns, "learning.cuda_graph=true")


def parts(model: str, device: str) -> Any:
    """Pixels of training and validation, the networks and their optimizer."""
    import torch
    from hydra.utils import instantiate

    config = compose(f"model={model}")
    data = instantiate(config.data)
    data.prepare_data()
    data.setup("fit")
    where = torch.device("cuda" if device == "gpu" else "cpu")
    networks = instantiate(config.model, _convert_="all").to(where)
    optimizer = instantiate(config.optimizer)(networks.parameters())
    return *(data.split_pixels(s).to(where) for s in ("train", "val")), networks, optimizer


def compiled(model: str, device: str, turns: Turns) -> None:
    epoch = by_hand(model, device, compiled=True)
    for _ in range(EPOCHS[model] + 1):
        epoch()
        turns.ended()


def pattern(model: str, device: str, turns: Turns) -> None:
    """The usual way: a dataset of PIL images, a transform an image, three metrics logged a step."""
    import lightning.pytorch as L
    import torch
    from torchvision.datasets import MNIST
    from torchvision.transforms import ToTensor

    *_, networks, _ = parts(model, "cpu")

    class Usual(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.networks = networks

        def terms(self, batch: Any, split: str) -> Any:
            terms, _ = self.networks.elbo_terms(batch[0])
            self.log(f"{split}/elbo", terms.elbo.mean(), prog_bar=True)
            self.log(f"{split}/log_likelihood", terms.log_likelihood.mean())
            self.log(f"{split}/kl", terms.kl.sum(1).mean())
            return terms

        def training_step(self, batch: Any, _: int) -> Any:
            return -self.terms(batch, "train").elbo.mean()

        def validation_step(self, batch: Any, _: int) -> None:
            self.terms(batch, "val")

        def on_train_epoch_end(self) -> None:
            turns.ended()

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters(), lr=1e-3)

    images = MNIST(os.environ.get("VAE_DATA", "data"), transform=ToTensor())
    places = (range(55_000), range(55_000, 60_000))
    subsets = [torch.utils.data.Subset(images, chosen) for chosen in places]
    loaders = [torch.utils.data.DataLoader(s, BATCH, shuffle=s is subsets[0]) for s in subsets]
    with tempfile.TemporaryDirectory() as folder:
        trainer = L.Trainer(
            accelerator=device,
            devices=1,
            max_epochs=2,
            default_root_dir=folder,
            enable_model_summary=False,
            enable_progress_bar=False,
        )
        trainer.fit(Usual(), *loaders)


def pythae(model: str, device: str, turns: Turns) -> None:
    """pythae's trainer with an encoder and a decoder of the same layers; its loss differs in the
    constant alone."""
    import torch
    from pythae.data.datasets import BaseDataset
    from pythae.models import VAE, VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder
    from pythae.trainers import BaseTrainer, BaseTrainerConfig
    from pythae.trainers.training_callbacks import TrainingCallback

    pixels, _, networks, _ = parts(model, "cpu")

    class Encoder(BaseEncoder):
        def __init__(self) -> None:
            BaseEncoder.__init__(self)
            self.layers = networks.encoder

        def forward(self, x: Any) -> Any:
            mean, log_sd = self.layers(x)
            return ModelOutput(embedding=mean, log_covariance=2 * log_sd)

    class Decoder(BaseDecoder):
        def __init__(self) -> None:
            BaseDecoder.__init__(self)
            self.layers = networks.decoder

        def forward(self, z: Any) -> Any:
            return ModelOutput(reconstruction=self.layers(z))

    class EpochEnd(TrainingCallback):
        def on_epoch_end(self, *_: Any, **__: Any) -> None:
            turns.ended()

    config = VAEConfig(input_dim=(1, 28, 28), latent_dim=networks.latent_dim)
    with tempfile.TemporaryDirectory() as folder:
        settings = BaseTrainerConfig(
            output_dir=folder,
            num_epochs=2,
            per_device_train_batch_size=BATCH,
            learning_rate=1e-3,
            no_cuda=device == "cpu",
        )
        dataset = BaseDataset(pixels.float() / 255, torch.zeros(len(pixels)))
        theirs = VAE(config, Encoder(), Decoder())
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            BaseTrainer(theirs, dataset, None, settings, [EpochEnd()]).train()


CONTESTANTS: dict[str, Callable[[str, str, Turns], None]] = {
    "project": project,
    "replayed": replayed,
    "fast": fast,
    "compiled": compiled,
    "pattern": pattern,
    "pythae": pythae,
}


# --- the measurements -----------------------------------------------------------------------------


def spread(values: list[float]) -> dict[str, float]:
    """The median, the quartiles around it and the number of values."""
    several = values * 2 if len(values) == 1 else values
    first, _, third = statistics.quantiles(several, n=4, method="inclusive")
    middle = statistics.median(values)
    return {"median": middle, "low": first, "high": third, "n": len(values)}


def in_turns(model: str, device: str, rounds: int) -> dict[str, dict[str, dict[str, float]]]:
    """Seconds an epoch of each contestant and of the loop beside it, and their ratios; each round
    begins with another contestant."""
    seconds: dict[str, list[float]] = {}
    loop: dict[str, list[float]] = {}
    ratios: dict[str, list[float]] = {}
    for i in range(rounds):
        order = [*CONTESTANTS.items()]
        for name, contestant in order[i % len(order) :] + order[: i % len(order)]:
            turns = Turns(by_hand(model, device))
            try:
                contestant(model, device, turns)
            except ImportError as error:
                del CONTESTANTS[name]
                print(f"{name}: left out ({error})", flush=True)
                continue
            loop.setdefault(name, []).extend(turns.loop)
            seconds.setdefault(name, []).extend(turns.own)
            ratios.setdefault(name, []).extend(turns.ratios())
            found = statistics.median(turns.own), statistics.median(turns.ratios())
            print(f"{name:>9} {model:<9} {found[0]:.2f} s, {found[1]:.2f} × loop", flush=True)
    return {
        "seconds_per_epoch": {name: spread(found) for name, found in seconds.items()},
        "seconds_of_loop_beside": {name: spread(found) for name, found in loop.items()},
        "ratio_to_loop": {name: spread(found) for name, found in ratios.items()},
    }


def growth(device: str, rounds: int) -> dict[str, Any]:
    """Images a second of the deep model's fit, one epoch each, one setting changed at a time."""
    rates: dict[str, dict[int, list[float]]] = {key: {} for key in (*GROWTH, "devices")}
    for _ in range(rounds):
        for key, values in GROWTH.items():
            for value in values:
                images, overrides = 55_000, [f"{key}={value}"]
                if key == "width":
                    parts = ("encoder", "decoder")
                    overrides = [f"model.{part}.hidden=[{value},{value}]" for part in parts]
                if key == "images":
                    images = value
                    overrides = [f"data.val_size={60_000 - value}", "trainer.limit_val_batches=5"]
                rate = images / fit("deep", device, *overrides)
                rates[key].setdefault(value, []).append(rate)
                print(f"  {key}={value}: {rate:,.0f} images/s", flush=True)
        for count in DEVICES:
            if (rate_of := over_devices(device, count)) is not None:
                rates["devices"].setdefault(count, []).append(rate_of)
    return {
        key: {value: spread(found) for value, found in one.items()} for key, one in rates.items()
    }


def over_devices(device: str, count: int) -> float | None:
    """Images a second of the deep model over several devices, 128 images a step together; on a CPU
    a core each."""
    with tempfile.TemporaryDirectory() as folder:
        options = (f"trainer.accelerator={device}", f"trainer.devices={count}", "trainer=ddp")
        options += (f"data.batch_size={BATCH // count}", "trainer.max_epochs=2", "model=deep")
        options += ("callbacks=none", "logger=none", "threads=1", f"hydra.run.dir={folder}/run")
        command = [sys.executable, "-m", "vae.train", *options]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if done.returncode != 0:
            print(f"{count} devices: left out ({done.stderr.strip()[-200:]})", flush=True)
            return None
        metrics = json.loads(Path(folder, "run", "metrics.json").read_text())
    return metrics["time/images_per_second"]


FIRST_STEP = """
import os
import lightning.pytorch as L
class End(L.Callback):
    def on_train_batch_start(self, *_):
        os._exit(0)
"""


def seconds_of(arguments: list[str], environment: Any = None) -> float:
    """How long a Python process with these arguments takes."""
    line = [sys.executable, *arguments]
    started = time.time()
    subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, check=True)
    return time.time() - started


def start_up(device: str) -> dict[str, float]:
    """Seconds from the command to the first step, to the answer of --help, and of the imports."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "first_step.py").write_text(FIRST_STEP)
        environment = os.environ | {"PYTHONPATH": folder}
        end = "+callbacks.end={_target_: first_step.End}"
        arguments = (f"trainer.accelerator={device}", f"hydra.run.dir={folder}/run", end)
        commands = {
            "first_step": ["-m", "vae.train", *arguments],
            "imports": ["-c", "import os, torch, lightning.pytorch, hydra; os._exit(0)"],
            "help": ["-m", "vae.train", "--help"],
        }
        seconds: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(3):
            for name, command in commands.items():
                shutil.rmtree(f"{folder}/run", ignore_errors=True)
                seconds[name].append(seconds_of(command, environment))
    found = {name: statistics.median(values) for name, values in seconds.items()}
    return {**found, "above_imports": found["first_step"] - found["imports"]}


def sweep_seconds(device: str) -> dict[str, float]:
    """Seconds of a sweep of eight equal runs, one after the other and two at a time by joblib."""
    one_by_one = ["-m", "vae.train", "--multirun", "seed=range(8)", "trainer.max_epochs=15"]
    launchers = {"serial": [], "joblib": ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]}
    seconds = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, launcher in launchers.items():
            where = [f"trainer.accelerator={device}", f"hydra.sweep.dir={folder}/{name}"]
            seconds[name] = seconds_of([*one_by_one, *launcher, *where])
    return {**seconds, "ratio": seconds["joblib"] / seconds["serial"]}


# --- the picture ----------------------------------------------------------------------------------


def draw(result: dict[str, Any], path: Path) -> None:
    """Epochs of each contestant in times of the loop's above, the rate over each setting below."""
    from vae.plots.images import new_figure, png
    from vae.plots.palette import TRAIN, VAL

    rates = result["growth_images_per_second"]
    title = (
        f"batch {BATCH}, medians and quartiles of {result['rounds']} rounds ({result['machine']})"
    )
    figure = new_figure(11, 7 if rates else 4, title)
    bottom, top = (0.56, 0.89) if rates else (0.13, 0.83)
    sides = {"left": 0.08, "right": 0.98, "wspace": 0.25}
    above = figure.add_gridspec(1, 2, bottom=bottom, top=top, **sides)
    below = figure.add_gridspec(1, max(1, len(rates)), bottom=0.08, top=0.42, **sides)
    for place, (model, found) in enumerate(result["models"].items()):
        axes = figure.add_subplot(above[place])
        names = list(found["ratio_to_loop"])[::-1]
        values = [found["ratio_to_loop"][name] for name in names]
        colours = [VAL if name in ("project", "replayed", "fast") else TRAIN for name in names]
        axes.barh(names, [v["median"] for v in values], xerr=errors(values), color=colours)
        axes.axvline(1, color="black", linewidth=1)
        axes.set_title(f"{model}: an epoch in times of the loop by hand", fontsize=10)
    most = max((rate["high"] for one in rates.values() for rate in one.values()), default=1.0)
    for place, (key, one) in enumerate(rates.items()):
        axes = figure.add_subplot(below[place])
        settings, values = [int(value) for value in one], [*one.values()]
        medians = [v["median"] for v in values]
        axes.errorbar(settings, medians, yerr=errors(values), color=VAL, marker="o", markersize=4)
        axes.set_xscale("log", base=2)
        axes.set_xticks(settings, [f"{value:,}" for value in settings], rotation=30, fontsize=8)
        axes.minorticks_off()
        axes.set_ylim(0, 1.1 * most)
        axes.set_title(key.rpartition(".")[2], fontsize=10)
        axes.set_ylabel("images a second, deep" if place == 0 else "")
        axes.tick_params(labelleft=place == 0, labelsize=8)
    path.write_bytes(png(figure))


def errors(values: list[dict[str, float]]) -> list[list[float]]:
    """From the medians down and up to the quartiles, as matplotlib takes them."""
    below = [v["median"] - v["low"] for v in values]
    return [below, [v["high"] - v["median"] for v in values]]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu", choices=("cpu", "gpu"))
    parser.add_argument("--out", type=Path, default=Path("outputs/bench"))
    parser.add_argument("--contestants", nargs="+", choices=CONTESTANTS)
    parser.add_argument("--models", nargs="+", default=[*EPOCHS], choices=EPOCHS)
    parser.add_argument("--skip-growth", action="store_true", help="no rates over settings")
    arguments = parser.parse_args()
    possible = {*CONTESTANTS} - ({"replayed"} if arguments.device == "cpu" else set())
    chosen = {*(arguments.contestants or possible)}
    if chosen - possible:
        parser.error("--contestants replayed needs --device gpu")
    for name in {*CONTESTANTS} - chosen:
        del CONTESTANTS[name]
    import torch

    from vae.train import flush_denormals

    flush_denormals()  # as the command does, here for all contestants
    device, rounds = arguments.device, arguments.rounds
    threads = torch.get_num_threads()
    where = torch.cuda.get_device_name() if device == "gpu" else device
    result = {
        "machine": f"{os.cpu_count()} cores, {threads} threads, {platform.machine()}, {where}",
        "torch": torch.__version__,
        "rounds": rounds,
        "start_up_seconds": start_up(device),
        "sweep_seconds": sweep_seconds(device),
        "models": {model: in_turns(model, device, rounds) for model in arguments.models},
        "growth_images_per_second": {} if arguments.skip_growth else growth(device, 3),
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "bench.json").write_text(json.dumps(result, indent=2) + "\n")
    draw(result, arguments.out / "bench.png")
    for model, found in result["models"].items():
        ratios = {
            name: f"{r['median']:.2f} ({r['low']:.2f} to {r['high']:.2f})"
            for name, r in found["ratio_to_loop"].items()
        }
        print(model, "in times of the loop by hand:", ratios)
    print(f"written to {arguments.out}")


if __name__ == "__main__":
    main()
