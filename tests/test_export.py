"""The export command: its files give what the run's networks give, without this project."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, composed
from conftest import settings as train_settings
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from vae.export import export
from vae.runs.checkpoints import BEST
from vae.runs.errors import RunError, UserError
from vae.runs.folder import load_run
from vae.runs.portable import ONNX

MODELS = ("baseline", "deep", "conv", "mlp")
# each test of a second model takes five seconds
FAST_AND_SLOW = [MODELS[0], *(pytest.param(name, marks=pytest.mark.slow) for name in MODELS[1:])]
without_onnx = [name for name in ONNX if importlib.util.find_spec(name) is None]


def settings(*overrides: str) -> DictConfig:
    return composed("export", *overrides)


def a_run(folder: Path, name: str, *overrides: str) -> Path:
    """A run folder of this model, untrained."""
    config = train_settings(f"model={name}", "model.latent_dim=6", *overrides)
    (folder / ".hydra").mkdir(parents=True)
    (folder / "checkpoints").mkdir()
    (folder / ".hydra" / "config.yaml").write_text(OmegaConf.to_yaml(config))
    torch.manual_seed(1)
    state = {
        f"model.{key}": value
        for key, value in instantiate(config.model, _convert_="all").state_dict().items()
    }
    torch.save({"state_dict": state, "vae_format": 1}, folder / BEST)
    (folder / "metrics.json").write_text('{"test/elbo": 12.5}')
    return folder


@pytest.mark.parametrize("name", FAST_AND_SLOW)
def test_both_networks_run_without_this_project(tmp_path, name):
    run = a_run(tmp_path / "run", name)
    found = export(settings(f"run={run}"))
    out, model = run / "export", load_run(run).model
    assert sorted(path.name for path in out.iterdir()) == [
        "decoder.pt2",
        "encoder.pt2",
        "export.json",
    ]
    assert json.loads((out / "export.json").read_text()) == found
    assert (found["latent_dim"], found["test/elbo"], found["model"]["name"]) == (
        6,
        12.5,
        model.name,
    )
    assert found["sigma"] == model.sigma
    assert found["decoder"]["takes"] == {"latents": ["batch", 6]}
    assert found["encoder"]["gives"] == {"mean": ["batch", 6], "sd": ["batch", 6]}
    assert not any("encoder" in key for key in torch.export.load(out / "decoder.pt2").state_dict)
    for path in out.glob("*.pt2"):
        assert str(ROOT).encode() not in path.read_bytes()  # no path of this machine

    x, z = torch.rand(9, 1, 28, 28), torch.randn(9, 6)
    torch.save((x, z), tmp_path / "given")
    alone = """if True:
        import sys
        sys.modules |= dict.fromkeys(("vae", "lightning", "hydra"))  # importing one of them fails
        import torch
        x, z = torch.load("given")
        files = [f"run/export/{name}.pt2" for name in ("encoder", "decoder")]
        encode, decode = (torch.export.load(file).module() for file in files)
        assert decode(z[:1])[0].shape == (1, 1, 28, 28)
        torch.save((*encode(x), *decode(z)), "got")
    """
    subprocess.run([sys.executable, "-I", "-c", alone], cwd=tmp_path, check=True)
    mean, sd, image = torch.load(tmp_path / "got")
    posterior = model.encode(x)
    torch.testing.assert_close(mean, posterior.loc, rtol=0, atol=1e-6)
    torch.testing.assert_close(sd, posterior.scale, rtol=0, atol=1e-6)
    torch.testing.assert_close(image, model.mean_image(z), rtol=0, atol=1e-6)


@pytest.mark.skipif(without_onnx != [], reason="needs the extra onnx")
@pytest.mark.parametrize("name", FAST_AND_SLOW)
def test_onnx_gives_the_same_images(tmp_path, name):
    import onnxruntime

    run = a_run(tmp_path / "run", name)
    found = export(settings(f"run={run}", "format=onnx", f"out={tmp_path / 'out'}"))
    assert 0 <= found["decoder"]["largest_difference"] < 1e-5
    session = onnxruntime.InferenceSession(tmp_path / "out" / "decoder.onnx")
    assert str(ROOT).encode() not in (tmp_path / "out" / "decoder.onnx").read_bytes()
    for n in (1, 9):
        z = torch.randn(n, 6)
        (image,) = session.run(["image"], {"latents": z.numpy()})
        torch.testing.assert_close(
            torch.from_numpy(image), load_run(run).model.mean_image(z), rtol=0, atol=1e-5
        )


def refused(*overrides: str, how: type[Exception] = UserError) -> str:
    with pytest.raises(how) as caught:
        export(settings(*overrides))
    return str(caught.value)


def test_everything_wrong_is_told_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    found = refused(
        f"run={tmp_path}", "format=onnx", "tolerance=2", "+fromat=torch", "allow=mine"
    ).splitlines()
    expected = [
        "format=onnx needs onnx, onnxruntime, onnxscript: pip install -e '.[onnx]'",
        "tolerance=2 must be",
    ]
    expected += [
        "fromat: unknown; did you mean format?",
        "allow=mine must be a list",
        f"run: {tmp_path} is no run",
    ]
    assert len(found) == 5
    assert all(any(line.startswith(start) for line in found) for start in expected)
    assert refused("format=onx").startswith("run=None must be a run folder")
    assert "did you mean onnx?" in refused("format=onx")


def test_runs_that_cannot_be_exported_leave_nothing(tmp_path):
    run = a_run(tmp_path / "run", "baseline")
    config, checkpoint = run / ".hydra" / "config.yaml", torch.load(run / BEST)
    kept = config.read_text()
    config.write_text(kept.replace("vae.models.Decoder", "os.system"))
    assert "os.system is refused" in refused(f"run={run}")
    config.write_text(kept.replace("latent_dim: 6", "latent_dim: 5"))
    assert "do not fit" in refused(f"run={run}")
    config.write_text(kept)
    (tmp_path / "file").touch()
    assert refused(f"run={run}", f"out={tmp_path / 'file' / 'x'}", how=RunError).startswith("out=")
    checkpoint["state_dict"]["model.decoder.layers.0.bias"][7] = torch.nan
    torch.save(checkpoint, run / BEST)
    assert "not finite: its training diverged" in refused(f"run={run}")
    assert not (run / "export").exists()


def test_what_differs_is_not_kept(tmp_path, monkeypatch):
    run = a_run(tmp_path / "run", "baseline")
    before = export(settings(f"run={run}"))
    right = torch.export.load
    stamp = (run / "export" / "decoder.pt2").stat().st_mtime_ns

    class Off:
        def __init__(self, path):
            self.program = right(path).module()

        def module(self):
            return lambda batch: [value + 1e-3 for value in self.program(batch)]

    monkeypatch.setattr("torch.export.load", Off)
    assert refused(f"run={run}").startswith(
        "tolerance=1e-05: the encoder written is off by 1.0e-03"
    )
    assert (run / "export" / "decoder.pt2").stat().st_mtime_ns == stamp
    assert json.loads((run / "export" / "export.json").read_text()) == before
    assert len(list((run / "export").iterdir())) == 3


def test_help_answers_without_torch():
    heavy = "import sys, vae.export; print([m for m in ('torch', 'lightning') if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", heavy], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"
