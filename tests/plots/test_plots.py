"""What the charts and pictures show: counts, curves, bounds, pixels."""

import math
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from conftest import build_model, set_linear

from vae.plots.curves import Drift, RunCurves, over_seeds, plot_curves, plot_drift
from vae.plots.images import chart, png, tile
from vae.plots.latents import (
    KLSpectrum,
    interpolation_figure,
    kl_bins,
    kl_counts,
    plot_kl_spectrum,
    traversal_figure,
)
from vae.plots.video import write_mp4
from vae.theory.ppca import PPCA, Spectrum


def test_a_tile_holds_the_images_row_by_row_and_is_clipped():
    images = torch.tensor([0.0, 0.5, 2.0, math.nan]).reshape(4, 1, 1, 1).expand(4, 1, 2, 3)
    grey = tile(images, columns=2, gap=1)
    assert grey.tolist() == [
        [0, 0, 0, 255, 128, 128, 128],
        [0, 0, 0, 255, 128, 128, 128],
        [255] * 7,
        [255, 255, 255, 255, 0, 0, 0],
        [255, 255, 255, 255, 0, 0, 0],
    ]
    colour = torch.stack([torch.ones(2, 2), torch.zeros(2, 2), torch.zeros(2, 2)])[None]
    assert tile(colour, columns=1)[0, 0].tolist() == [255, 0, 0]


def test_the_histogram_counts_every_latent_once():
    kl = torch.tensor([0.0, 1e-9, 0.009, 0.011, 3.0, 250.0])
    collapsed, active = kl_counts(kl, kl_bins(kl))
    assert (collapsed.sum(), active.sum()) == (3, 3)
    assert kl_bins(kl)[-1] == 3  # 1000 nats


def test_the_spectrum_is_sorted_and_collapsed_latents_are_hollow():
    _, axes = chart("", "", "")
    plot_kl_spectrum(axes, [KLSpectrum(torch.tensor([0.001, 2.0, 1.0]), closed_form=[2.1, 1, 0])])
    line, hollow, crosses, _threshold = axes.lines
    assert line.get_ydata() == pytest.approx([2.0, 1.0, 0.001])
    assert hollow.get_xdata().tolist() == [3]
    assert crosses.get_ydata() == pytest.approx([2.1, 1, 0])


def test_curves_have_the_band_of_the_trainings_and_the_optimum():
    def history(shift: float) -> list[dict[str, float]]:
        keys = ("train/elbo", "val/elbo")
        return [{"step": s, "epoch": s, **dict.fromkeys(keys, s + shift)} for s in range(1, 21)]

    mean, spread = over_seeds([history(0.0), history(2.0)])
    assert mean[3]["val/elbo"] == 5.0
    assert spread[3]["val/elbo"] == pytest.approx(math.sqrt(2))
    _, axes = chart("", "", "")
    plot_curves(axes, [RunCurves(mean, "A", "red", "-", spread, 30.0)])
    _train, val, optimum = axes.lines
    assert val.get_ydata() == pytest.approx([s + 1 for s in range(1, 21)])
    assert {*optimum.get_ydata()} == {30.0}
    (band,) = axes.collections
    heights = band.get_paths()[0].vertices[:, 1]
    assert heights.min() == pytest.approx(2 - math.sqrt(2))
    low, high = axes.get_ylim()
    assert low == pytest.approx(4 - 0.05 * 26)  # the first tenth of the epochs lies below the edge
    assert high > 30


def test_a_chain_that_diverges_ends_in_a_cross():
    _, axes = chart("", "", "")
    plot_drift(axes, [Drift([0.5, 1.0, 3.0, math.inf, math.inf], "A")])
    chain, cross, _floor = axes.lines
    assert chain.get_ydata().tolist() == [0.5, 1.0, 3.0]
    assert (cross.get_xdata().tolist(), cross.get_ydata().tolist()) == ([2], [3.0])
    assert "means and variances" in axes.get_ylabel()


def test_a_video_has_every_frame_in_order(tmp_path: Path):
    frames = np.stack([np.full((64, 64), 20 * t, dtype=np.uint8) for t in range(12)])
    write_mp4(tmp_path / "video.mp4", frames)
    read = iio.imread(tmp_path / "video.mp4", plugin="FFMPEG")
    assert read.shape[0] == 12
    assert np.abs(read.mean((1, 2, 3)) - 20.0 * np.arange(12)).max() < 6


def test_pictures_name_their_rows_and_columns(digits):
    images = digits.images("train", 400).double()
    oracle = PPCA(Spectrum.from_images(images), 20, 1.0)  # some of 20 latents are collapsed
    model = set_linear(build_model("model.latent_dim=20", "model.sigma=1"), oracle.weights())
    figure = traversal_figure(model, images, steps=3)
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["-3.0", "+0.0", "+3.0"]
    assert axes.get_yticklabels()[0].get_text() == f"z0  {oracle.kl[0]:.2f} nats"
    assert len(axes.get_yticklabels()) == min(10, oracle.rank)
    assert png(figure)[:4] == b"\x89PNG"
    (axes,) = interpolation_figure(model, images[:2], images[2:4], steps=3).axes
    text = ["image a", "0.00", "0.50", "1.00", "image b"]
    assert [label.get_text() for label in axes.get_xticklabels()] == text
    shown = axes.images[0].get_array()
    assert (
        shown[:28, :28] == (images[0, 0] * 255).round().numpy()
    ).all()  # the image itself comes first
    model = build_model("model.latent_dim=2").requires_grad_(False)
    model.encoder.layers[0].weight.zero_()
    model.encoder.layers[0].bias.zero_()
    with pytest.raises(ValueError, match="use no latent"):
        traversal_figure(model, images.float())
