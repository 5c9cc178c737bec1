"""A decoder that starts at the mean training image."""

from pathlib import Path

import pytest
import torch
from conftest import settings
from test_lightning import run

from vae.data.datamodule import ImageDataModule
from vae.models import Decoder
from vae.runs.checkpoints import LAST
from vae.runs.errors import UserError
from vae.train import train

START = "callbacks=[none,mean_image]"


@pytest.mark.parametrize("output", ["linear", "sigmoid"])
def test_where_the_hidden_layers_give_nothing_the_mean_image_comes_out(
    digits: ImageDataModule, output: str
) -> None:
    mean = digits.images("train").mean(0)
    decoder = Decoder(4, [8], output=output)
    decoder.start_at(mean)
    decoder.layers[-1].weight.data.zero_()
    lowest, highest = (0.01, 0.99) if output == "sigmoid" else (0, 1)
    expected = mean.clamp(lowest, highest)
    torch.testing.assert_close(decoder(torch.randn(3, 4))[2].detach(), expected)


def test_a_run_starts_there_and_a_resumed_one_keeps_its_weights(tmp_path: Path) -> None:
    tanh = ["model=deep", "model.decoder.activation=tanh", "model.sigma=0.1"]
    start, _ = run(tmp_path / "start", START, *tanh)
    grey, _ = run(tmp_path / "grey", *tanh)
    assert start.norms[0] < 0.5 * grey.norms[0]
    cut = tmp_path / "cut"
    run(cut, START, *tanh, "trainer.max_epochs=1", "scheduler=none")
    run(cut, START, *tanh, "scheduler=none")
    whole = tmp_path / "whole"
    run(whole, START, *tanh, "scheduler=none")
    ends = [torch.load(f / LAST, weights_only=True)["state_dict"] for f in (cut, whole)]
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[1])


def test_other_decoders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"callbacks\.mean_image: needs a fully connected decoder"):
        train(settings("model=conv", START, "logger=none", "trainer.max_epochs=1"), tmp_path)
