"""Encoder and decoder as two files that run without this project.

The encoder takes images and gives mean and sd, the decoder takes latents and gives images. As
PyTorch's own .pt2, to be loaded by torch.export.load, or as .onnx; both take batches of any size,
on the CPU.
"""

import copy
import importlib.util
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.export import ExportedProgram

from vae.models.vae import VAE
from vae.runs.errors import UserError, first_line, resolved
from vae.runs.folder import Run, open_runs
from vae.runs.settings import ExportSettings, settings_problems

ONNX = ("onnx", "onnxruntime", "onnxscript")  # the extra `onnx`


class Encode(nn.Module):
    """Images [B, C, H, W] in [0, 1] to mean and sd of q(z|x), each [B, m]."""

    takes, gives = "images", ("mean", "sd")

    def __init__(self, model: VAE) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).cpu()
        self.model.decoder = None  # type: ignore[assignment]  # its weights have no place in the encoder's file
        self.example = torch.rand(2, *model.image_shape, generator=torch.Generator().manual_seed(0))
        self.other = torch.rand(5, *model.image_shape, generator=torch.Generator().manual_seed(1))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        posterior = self.model.encode(images)
        return posterior.loc, posterior.scale


class Decode(nn.Module):
    """Latents [B, m] to mean images f(z), [B, C, H, W]."""

    takes, gives = "latents", ("image",)

    def __init__(self, model: VAE) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).cpu()
        self.model.encoder = None  # type: ignore[assignment]
        self.example = torch.randn(2, model.latent_dim, generator=torch.Generator().manual_seed(0))
        self.other = torch.randn(5, model.latent_dim, generator=torch.Generator().manual_seed(1))

    def forward(self, latents: Tensor) -> tuple[Tensor, ...]:
        return (self.model.mean_image(latents),)


Network = Encode | Decode


def load_and_validate(config: DictConfig) -> tuple[dict[str, Any], Run]:
    """The settings and the run; UserError tells everything wrong with them at once."""
    settings = resolved(config)
    problems = settings_problems(settings, ExportSettings)
    missing = [name for name in ONNX if importlib.util.find_spec(name) is None]
    if settings.get("format") == "onnx" and missing:
        problems.append(
            f"format=onnx needs {', '.join(missing)}: pip install -e '.[onnx]', "
            "or take format=torch"
        )
    runs = open_runs("run", settings.get("run"), settings.get("allow"), problems=problems)
    if problems:
        raise UserError(*problems)
    return settings, runs[0]


def write(network: Network, path: Path) -> dict[str, Any]:
    """Write a network as .pt2 or .onnx, read it back, and tell what it takes, gives and how far it
    is off.

    `largest_difference` is over a batch of another size than the one that was traced. Raises
    UserError for a network that cannot be written so.
    """
    network.eval().requires_grad_(False)
    make, run = FORMATS[path.suffix]
    try:
        make(traced(network), network, path)
        read = run(path, network.other)
    except OSError:
        raise
    except Exception as error:  # what torch.export or ONNX have no words for
        what = type(network).__name__.lower()
        raise UserError(
            f"run: its networks cannot {what} as {path.suffix} ({first_line(error)})"
        ) from error
    right = network(network.other)
    differences = [(a - b).abs().max().item() for a, b in zip(right, read, strict=True)]
    shapes = {
        name: ["batch", *value.shape[1:]] for name, value in zip(network.gives, right, strict=True)
    }
    return {
        "file": path.name,
        "takes": {network.takes: ["batch", *network.other.shape[1:]]},
        "gives": shapes,
        "largest_difference": max(differences),
    }


def traced(network: Network) -> ExportedProgram:
    program = torch.export.export(
        network, (network.example,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},)
    )
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine
    return program


def write_torch(program: ExportedProgram, network: Network, path: Path) -> None:
    buffer = io.BytesIO()  # torch reports a full disk as a RuntimeError, Python as an OSError
    torch.export.save(program, buffer)
    path.write_bytes(buffer.getvalue())


def run_torch(path: Path, batch: Tensor) -> tuple[Tensor, ...]:
    return torch.export.load(path).module()(batch)


def write_onnx(program: ExportedProgram, network: Network, path: Path) -> None:
    takes, gives = [network.takes], list(network.gives)
    written = torch.onnx.export(
        program, dynamo=True, verbose=False, input_names=takes, output_names=gives
    )
    assert written is not None  # with dynamo
    written.save(path, external_data=False)


def run_onnx(path: Path, batch: Tensor) -> tuple[Tensor, ...]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return tuple(
        map(torch.from_numpy, session.run(None, {session.get_inputs()[0].name: batch.numpy()}))
    )


Writer = Callable[[ExportedProgram, Network, Path], None]


Reader = Callable[[Path, Tensor], tuple[Tensor, ...]]


FORMATS: dict[str, tuple[Writer, Reader]] = {
    ".pt2": (write_torch, run_torch),
    ".onnx": (write_onnx, run_onnx),
}
