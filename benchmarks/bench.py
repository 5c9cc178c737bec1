"""How fast training is, as ratios measured in one run: make bench (25 minutes on 2 cores)

Contestants train the same pair with the same optimiser on the same images at batch 128, each in a
process of its own, interleaved and repeated, so that a noisy machine is noisy for all:

  project   this project's fit with its default callbacks and logging fast      the same with
  +experiment=fast loop      a loop by hand over resident tensors compiled  the same loop, its step
  compiled pattern   the usual Lightning pattern: torchvision's loader with ToTensor, three figures
  logged a step,
            validated and saved each epoch as the project is
  pythae    pythae 0.1.2 at the nearest equal network (where it is installed)

Then project and loop in turns within one process, where the noise of the machine weighs least:
their ratio, pair by pair. Then the project's own rate over batch size, latent_dim, width, data set
size and devices. Writes bench.json and bench.png.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
EPOCHS = {
    "baseline": 10,
    "deep": 5,
}  # of the project, one round of pictures among them; 30 have one by default
CONTESTANTS = ("project", "loop", "fast", "compiled", "pattern", "pythae")
PAIRS = {"baseline": (6, 10), "deep": (6, 3)}  # so many, of so many epochs each
GROWTH = {
    "data.batch_size": (32, 128, 512, 2048, 8192),
    "model.latent_dim": (2, 8, 32, 128),
    "width": (64, 256, 1024),
    "images": (10_000, 30_000, 55_000),
}
DEVICES = (1, 2)


def compose(*overrides: str) -> Any:
    from hydra import compose, initialize_config_dir

    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("train", list(overrides))


def project(
    model: str, device: str, overrides: tuple[str, ...] = (), epochs: int | None = None
) -> dict[str, float]:
    """Seconds an epoch of the project's fit, everything included that a default run does while it
    fits."""
    from vae.train import train
    from vae.training.module import LitVAE

    steps: list[float] = []
    first_block = LitVAE.training_step

    def timed(task: LitVAE, *batch: Any) -> None:
        if not steps:
            steps.append(time.time() - float(os.environ["BENCH_STARTED"]))
        first_block(task, *batch)

    ends: list[float] = []
    epoch_end = LitVAE.on_train_epoch_end

    def ended(task: LitVAE) -> None:
        epoch_end(task)
        ends.append(time.perf_counter())

    LitVAE.training_step, LitVAE.on_train_epoch_end = timed, ended  # type: ignore[method-assign]
    epochs = epochs or EPOCHS[model]
    pictures = [
        f"callbacks.{name}.every_n_epochs={epochs // 2 + 1}"
        for name in ("reconstructions", "prior_samples")
    ]
    config = compose(
        f"model={model}",
        f"trainer.max_epochs={epochs}",
        f"trainer.accelerator={device}",
        *pictures,
        *overrides,
    )
    with tempfile.TemporaryDirectory() as folder:
        metrics = train(config, Path(folder))
    return {
        "seconds": metrics["time/fit_seconds"] / epochs,
        "later_seconds": (ends[-1] - ends[0])
        / max(1, epochs - 1),  # of the epochs beyond the first
        "test_elbo": metrics["test/elbo"],
        "first_step": steps[0],
    }


def fast(model: str, device: str) -> dict[str, float]:
    """Seconds an epoch beyond the first, in which the step is compiled; that one is told apart."""
    epochs = 1 + EPOCHS[model]
    found = project(model, device, ("+experiment=fast",), epochs)
    seconds = found["later_seconds"]
    return {
        **found,
        "seconds": seconds,
        "first_epoch": found["seconds"] * epochs - seconds * (epochs - 1),
    }


def pixels_and_pair(model: str, device: str) -> Any:
    from hydra.utils import instantiate

    config = compose(f"model={model}")
    data = instantiate(config.data)
    data.prepare_data()
    data.setup("fit")
    where = "cuda" if device == "gpu" else "cpu"
    pair = instantiate(config.model, _convert_="all").to(where)
    return (
        data.split_pixels("train").to(where),
        pair,
        instantiate(config.optimizer)(pair.parameters()),
    )


def loop(model: str, device: str, compiled: bool = False, epochs: int = 4) -> dict[str, float]:
    """Seconds an epoch beyond the first of a loop by hand; its sums are looked at once an epoch."""
    import torch

    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = (
        "0"  # Lightning's, which slows down every step of Adam on a CPU
    )
    pixels, pair, optimizer = pixels_and_pair(model, device)

    def objective(batch: Any) -> Any:
        terms, _ = pair.elbo_terms(
            batch.float().div_(255), torch.randn(len(batch), pair.latent_dim, device=batch.device)
        )
        return -terms.elbo.mean()

    step = torch.compile(objective) if compiled else objective
    seconds = []
    for _ in range(epochs + 1):
        started = time.perf_counter()
        total = torch.zeros((), device=pixels.device)
        for index in torch.randperm(len(pixels), device=pixels.device).split(128):
            loss = step(pixels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.detach()
        total.item()
        seconds.append(time.perf_counter() - started)
    return {"seconds": sum(seconds[1:]) / epochs, "first_epoch": seconds[0]}


def compiled(model: str, device: str) -> dict[str, float]:
    return loop(model, device, compiled=True)


def side_by_side(model: str, device: str) -> dict[str, float]:
    """Project over loop, in turns within this process."""
    pairs, epochs = PAIRS[model]
    times = [
        (
            project(model, device, (), epochs)["seconds"],
            loop(model, device, epochs=epochs)["seconds"],
        )
        for _ in range(pairs)
    ]
    ratios = spread([ours / by_hand for ours, by_hand in times])
    return {"seconds": statistics.median(ours for ours, _ in times), **ratios}


def pattern(model: str, device: str, epochs: int = 2) -> dict[str, float]:
    """The usual way: a dataset of PIL images, a transform an image, three figures logged a step."""
    import lightning.pytorch as L
    import torch
    from torchvision.datasets import MNIST
    from torchvision.transforms import ToTensor

    _, pair, _ = pixels_and_pair(model, "cpu")

    class Usual(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.pair = pair

        def training_step(self, batch: Any, _: int) -> Any:
            terms, _ = self.pair.elbo_terms(batch[0])
            self.log("train/elbo", terms.elbo.mean(), prog_bar=True)
            self.log("train/log_likelihood", terms.log_likelihood.mean())
            self.log("train/kl", terms.kl.sum(1).mean())
            return -terms.elbo.mean()

        def validation_step(self, batch: Any, _: int) -> None:
            terms, _ = self.pair.elbo_terms(batch[0])
            self.log("val/elbo", terms.elbo.mean(), prog_bar=True)
            self.log("val/log_likelihood", terms.log_likelihood.mean())
            self.log("val/kl", terms.kl.sum(1).mean())

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters(), lr=1e-3)

    images = MNIST(os.environ.get("VAE_DATA", "data"), transform=ToTensor())
    parts = [
        torch.utils.data.Subset(images, places) for places in (range(55_000), range(55_000, 60_000))
    ]
    loaders = [torch.utils.data.DataLoader(part, 128, shuffle=part is parts[0]) for part in parts]
    with tempfile.TemporaryDirectory() as folder:
        trainer = L.Trainer(
            accelerator=device,
            devices=1,
            max_epochs=epochs,
            default_root_dir=folder,
            enable_model_summary=False,
        )
        started = time.perf_counter()
        trainer.fit(Usual(), *loaders)
    return {"seconds": (time.perf_counter() - started) / epochs}


def pythae(model: str, device: str, epochs: int = 2) -> dict[str, float]:
    """pythae's trainer with an encoder and a decoder of the same layers; its loss differs in the
    constant alone."""
    import torch
    from pythae.models import VAE, VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder
    from pythae.trainers import BaseTrainer, BaseTrainerConfig

    pixels, pair, _ = pixels_and_pair(model, "cpu")

    class Encoder(BaseEncoder):
        def __init__(self) -> None:
            BaseEncoder.__init__(self)
            self.layers = pair.encoder

        def forward(self, x: Any) -> Any:
            mean, log_sd = self.layers(x)
            return ModelOutput(embedding=mean, log_covariance=2 * log_sd)

    class Decoder(BaseDecoder):
        def __init__(self) -> None:
            BaseDecoder.__init__(self)
            self.layers = pair.decoder

        def forward(self, z: Any) -> Any:
            return ModelOutput(reconstruction=self.layers(z))

    config = VAEConfig(input_dim=(1, 28, 28), latent_dim=pair.latent_dim)
    with tempfile.TemporaryDirectory() as folder:
        settings = BaseTrainerConfig(
            output_dir=folder,
            num_epochs=epochs,
            per_device_train_batch_size=128,
            learning_rate=1e-3,
            no_cuda=device == "cpu",
        )
        images = pixels.float() / 255
        from pythae.data.datasets import BaseDataset

        dataset = BaseDataset(images, torch.zeros(len(images)))
        trainer = BaseTrainer(VAE(config, Encoder(), Decoder()), dataset, training_config=settings)
        started = time.perf_counter()
        trainer.train()
    return {"seconds": (time.perf_counter() - started) / epochs}


def alone(contestant: str, model: str, device: str, overrides: list[str]) -> dict[str, float]:
    """One measurement in this process, with what it took beside."""
    imported = time.perf_counter()
    import hydra  # noqa: F401
    import lightning.pytorch  # noqa: F401
    import torch  # noqa: F401

    imported = time.perf_counter() - imported
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    measured = (
        project(model, device, tuple(overrides), 1)
        if overrides
        else globals()[contestant](model, device)
    )
    measured["peak_memory_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    measured["memory_above_imports_mb"] = measured["peak_memory_mb"] - memory / 1024
    measured["import_seconds"] = imported
    return measured


def measure(contestant: str, model: str, device: str, *overrides: str) -> dict[str, float] | None:
    """One measurement in a process of its own; None where the contestant is not installed."""
    command = [
        sys.executable,
        __file__,
        "--alone",
        contestant,
        "--model",
        model,
        "--device",
        device,
        *overrides,
    ]
    environment = {**os.environ, "BENCH_STARTED": str(time.time())}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        print(
            f"{contestant} {model}: left out ({done.stderr.strip().splitlines()[-1:]})", flush=True
        )
        return None
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    print(
        f"{contestant:>9} {model:<9} {' '.join(overrides)} {found['seconds']:.2f} s an epoch",
        flush=True,
    )
    return found


def growth(device: str) -> dict[str, Any]:
    """Images a second of the deep pair's fit, one epoch each, one setting changed at a time."""
    rates: dict[str, Any] = {}
    for key, values in GROWTH.items():
        rates[key] = {}
        for value in values:
            images, overrides = 55_000, [f"{key}={value}"]
            if key == "width":
                overrides = [
                    f"model.encoder.hidden=[{value},{value}]",
                    f"model.decoder.hidden=[{value},{value}]",
                ]
            if key == "images":
                images, overrides = (
                    value,
                    [f"data.val_size={60_000 - value}", "+trainer.limit_val_batches=5"],
                )
            found = measure("project", "deep", device, *overrides)
            rates[key][value] = found and images / found["seconds"]
    rates["devices"] = {count: over_devices(device, count) for count in DEVICES}
    return rates


def over_devices(device: str, count: int) -> float | None:
    """Images a second of the deep pair over several devices, 128 images a step together; on a CPU a
    core each."""
    with tempfile.TemporaryDirectory() as folder:
        options = [
            f"trainer.accelerator={device}",
            f"trainer.devices={count}",
            f"data.batch_size={128 // count}",
        ]
        options += [
            "trainer=ddp",
            "trainer.max_epochs=2",
            "model=deep",
            "callbacks=none",
            "logger=none",
            "threads=1",
        ]
        command = [sys.executable, "-m", "vae.train", *options, f"hydra.run.dir={folder}/run"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if done.returncode != 0:
            print(
                f"{count} devices: left out ({done.stderr.strip().splitlines()[-1:]})", flush=True
            )
            return None
        rate: float = json.loads(Path(folder, "run", "metrics.json").read_text())[
            "time/images_per_second"
        ]
    print(f"  project deep      {count} device(s) {rate:,.0f} images/s", flush=True)
    return rate


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def summary(runs: dict[str, dict[str, list[dict[str, float]]]]) -> dict[str, Any]:
    """Per model: seconds an epoch, images a second and memory of each contestant, and the ratios of
    medians."""
    result: dict[str, Any] = {}
    for model, contestants in runs.items():
        seconds = {
            name: spread([run["seconds"] for run in found])
            for name, found in contestants.items()
            if found
        }
        result[model] = {
            "seconds_per_epoch": seconds,
            "images_per_second": {name: 55_000 / s["median"] for name, s in seconds.items()},
            "peak_memory_mb": {
                n: spread([r["peak_memory_mb"] for r in f]) for n, f in contestants.items() if f
            },
            "memory_above_imports_mb": {
                n: spread([r["memory_above_imports_mb"] for r in f])
                for n, f in contestants.items()
                if f
            },
            # from the command to the first optimiser step, less what importing torch, Lightning and
            # Hydra takes
            "start_up_seconds": spread(
                [r["first_step"] - r["import_seconds"] for r in contestants["project"]]
            ),
            "ratio_to_loop": {
                name: s["median"] / seconds["loop"]["median"] for name, s in seconds.items()
            },
            "ratio_to_project": {
                name: s["median"] / seconds["project"]["median"] for name, s in seconds.items()
            },
        }
    return result


def draw(result: dict[str, Any], path: Path) -> None:
    from vae.plots.images import TRAIN, VAL, new_figure, png

    growth = result["growth_images_per_second"]
    figure = new_figure(
        11,
        7 if growth else 4,
        f"batch 128, medians and ranges of {result['repeats']} rounds ({result['machine']})",
    )
    above = figure.add_gridspec(
        1, 2, left=0.08, right=0.98, bottom=0.56 if growth else 0.13, top=0.89, wspace=0.25
    )
    below = figure.add_gridspec(
        1, max(1, len(growth)), left=0.08, right=0.98, bottom=0.08, top=0.42, wspace=0.25
    )
    most = max((rate for rates in growth.values() for rate in rates.values() if rate), default=1.0)
    for place, (key, rates) in enumerate(growth.items()):
        axes = figure.add_subplot(below[place])
        there = {int(value): rate for value, rate in rates.items() if rate}
        axes.plot(list(there), list(there.values()), color=VAL, marker="o", markersize=4)
        axes.set_xscale("log", base=2)
        axes.set_xticks(list(there), [f"{value:,}" for value in there], rotation=30, fontsize=8)
        axes.minorticks_off()
        axes.set_ylim(0, 1.1 * most)
        axes.set_title(key.rpartition(".")[2], fontsize=10)
        axes.set_ylabel("images a second, deep" if place == 0 else "")
        axes.tick_params(labelleft=place == 0, labelsize=8)
    for place, (model, found) in enumerate(result["models"].items()):
        axes = figure.add_subplot(above[place])
        names = list(found["seconds_per_epoch"])[::-1]
        values = [found["seconds_per_epoch"][name] for name in names]
        medians = [v["median"] for v in values]
        errors = [
            [v["median"] - v["min"] for v in values],
            [v["max"] - v["median"] for v in values],
        ]
        colours = [VAL if name in ("project", "fast") else TRAIN for name in names]
        axes.barh(names, medians, xerr=errors, color=colours)
        axes.set_title(f"{model}: seconds for an epoch of 55 000 images", fontsize=10)
    path.write_bytes(png(figure))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu", choices=("cpu", "gpu"))
    parser.add_argument("--out", type=Path, default=Path("outputs/bench"))
    parser.add_argument("--skip-growth", action="store_true")
    parser.add_argument("--alone", choices=(*CONTESTANTS, "side_by_side"))
    parser.add_argument("--model", default="deep", choices=tuple(EPOCHS))
    arguments, overrides = parser.parse_known_args()
    if arguments.alone:
        print(json.dumps(alone(arguments.alone, arguments.model, arguments.device, overrides)))
        return
    runs: dict[str, dict[str, list[dict[str, float]]]] = {
        m: {c: [] for c in CONTESTANTS} for m in EPOCHS
    }
    for _ in range(arguments.repeats):
        for model, contestants in runs.items():
            for contestant, found in contestants.items():
                run = measure(contestant, model, arguments.device)
                if run is not None:
                    found.append(run)
    result = {
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, {arguments.device}",
        "repeats": arguments.repeats,
        "models": summary(runs),
        "project_to_loop_in_turns": {
            model: measure("side_by_side", model, arguments.device) for model in EPOCHS
        },
        "growth_images_per_second": {} if arguments.skip_growth else growth(arguments.device),
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "bench.json").write_text(json.dumps(result, indent=2) + "\n")
    draw(result, arguments.out / "bench.png")
    for model, pairs in result["project_to_loop_in_turns"].items():
        assert pairs is not None
        print(
            model,
            f"in turns: {pairs['median']:.2f} ({pairs['min']:.2f} to {pairs['max']:.2f}) "
            "of the loop by hand",
        )
    for model, found in result["models"].items():
        print(
            model,
            {name: f"{ratio:.2f}" for name, ratio in found["ratio_to_loop"].items()},
            "of the loop by hand",
        )
    print(f"written to {arguments.out}")


if __name__ == "__main__":
    main()
