"""Encoder and decoder for use without this project:

python -m vae.export run=<run folder> [out=<folder>] [format=torch|onnx]
"""

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from vae.command import command
from vae.runs.errors import RunError, UserError


@command("export", "lightning.pytorch")
def main(config: DictConfig) -> None:
    export(config)


def export(config: DictConfig) -> dict[str, Any]:
    """Write encoder, decoder and `export.json`, which tells what they take and give; returns its
    content.

    Files take their place only when all of them were read back and gave what the run's own networks
    give. Raises UserError for settings and runs that cannot be exported, RunError where nothing can
    be written.
    """
    from omegaconf import OmegaConf  # heavy imports wait until the command starts

    from vae.runs import files, portable

    # 1. The run, and what is exported of it.
    settings, run = portable.load_and_validate(config)
    model, suffix = run.model, {"torch": ".pt2", "onnx": ".onnx"}[settings["format"]]
    exported: dict[str, Any] = {
        "run": str(run.folder),
        "latent_dim": model.latent_dim,
        "sigma": model.sigma,
    }
    exported["likelihood"] = model.likelihood.label
    exported |= {
        "test/elbo": run.metrics.get("test/elbo"),
        "model": OmegaConf.to_container(run.config.model, resolve=True),
    }
    out = Path(settings["out"] or run.folder / "export")
    try:
        out.mkdir(parents=True, exist_ok=True)
        remove_partial(out)
        with tempfile.TemporaryDirectory(prefix=f".partial-{os.getpid()}-", dir=out) as partial:
            # 2. Each network written, read back and compared.
            for name, network in (
                ("encoder", portable.Encode(model)),
                ("decoder", portable.Decode(model)),
            ):
                exported[name] = portable.write(network, Path(partial) / f"{name}{suffix}")
                difference = exported[name]["largest_difference"]
                if not difference <= settings["tolerance"]:
                    raise UserError(
                        f"tolerance={settings['tolerance']}: the {name} written is off by "
                        f"{difference:.1e}"
                    )

            # 3. Only then do they take their place.
            files.write_json(Path(partial) / "export.json", exported)
            for path in sorted(Path(partial).iterdir()):
                os.replace(path, out / path.name)
    except OSError as error:
        raise RunError(f"out={out}: the networks cannot be written ({error.strerror})") from error
    for name in ("encoder", "decoder"):
        difference = exported[name]["largest_difference"]
        print(f"{out / exported[name]['file']}: read back, off by {difference:.1e} at most")
    return exported


def remove_partial(out: Path) -> None:
    """Take away what exports left that were killed; another that runs now keeps its own."""
    for partial in out.glob(".partial-*-*"):
        try:
            os.kill(int(partial.name.split("-")[1]), 0)
        except ProcessLookupError:
            shutil.rmtree(partial, ignore_errors=True)
        except (ValueError, OSError):
            continue


if __name__ == "__main__":
    main()
