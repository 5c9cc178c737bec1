"""Walks through latent space against what an affine decoder makes of them, and the tour that shows
them."""

import runpy
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, build_model, set_linear

import vae
from vae.analysis.latents import interpolations, traversals
from vae.models.elbo import kl_to_prior
from vae.theory.linear import affine_weights
from vae.theory.ppca import PPCA, Spectrum


@pytest.fixture(scope="module")
def images(digits):
    return digits.images("train", 400).double()


@pytest.fixture(scope="module")
def optimum(images):
    """At sigma 1 some of 20 latents are collapsed."""
    oracle = PPCA(Spectrum.from_images(images), 20, 1.0)
    assert 0 < oracle.collapsed < 20
    return set_linear(build_model("model.latent_dim=20", "model.sigma=1"), oracle.weights()), oracle


def test_a_traversal_of_a_linear_decoder_adds_its_column(images):
    model = build_model("model.latent_dim=5").double()
    W, z = affine_weights(model).W, torch.randn(5, dtype=torch.float64)
    walk = traversals(model, z, latents=[3, 0], span=2, steps=5)
    assert walk.shape == (2, 5, 1, 28, 28)
    centre = model.mean_image(z[None])[0].flatten()
    for row, latent in zip(walk.flatten(2), (3, 0), strict=True):
        for image, d in zip(row, (-2, -1, 0, 1, 2), strict=True):
            torch.testing.assert_close(image - centre, d * W[:, latent], rtol=0, atol=1e-12)
    assert len(traversals(model, z)) == 5
    around = traversals(model, images[7:9], latents=[1])[
        0, 5
    ]  # the posterior mean of the first image, in the middle
    torch.testing.assert_close(
        around, model.mean_image(model.encode(images[7:8]).loc)[0], rtol=0, atol=1e-6
    )


def test_by_default_the_latents_in_use_are_moved_and_collapsed_ones_change_nothing(images, optimum):
    model, oracle = optimum
    walk = traversals(model, images)
    assert len(walk) == oracle.rank  # kept latents come in the order of their KL there
    first = torch.stack([row[-1] - row[0] for row in walk.flatten(2)]).norm(dim=1)
    torch.testing.assert_close(first, 6 * (oracle.retained - 1).sqrt(), rtol=1e-5, atol=0)
    still = traversals(model, images, latents=range(oracle.rank, 20))
    assert (still - still[:, :1]).abs().max() == 0


def test_interpolations_of_a_linear_decoder_are_mixtures_of_their_ends(images, optimum):
    for model in (optimum[0], build_model("model=deep").double()):
        a, b = images[:3], images[3:6]
        between = interpolations(model, a, b, steps=5)
        assert between.shape == (3, 5, 1, 28, 28)
        ends = [model.mean_image(model.encode(x).loc) for x in (a, b)]
        torch.testing.assert_close(between[:, 0], ends[0], rtol=0, atol=1e-12)
        torch.testing.assert_close(between[:, 4], ends[1], rtol=0, atol=1e-12)
        mixed = (between[:, 1] - (0.75 * ends[0] + 0.25 * ends[1])).abs().max()
        assert (mixed < 1e-6) == (model is optimum[0])


def test_what_a_notebook_imports_comes_on_first_use():
    code = "import sys, vae; print('torch' in sys.modules)"
    text = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert text == "False\n"
    assert set(vae.__all__) == set(vae.MODULES)
    assert [getattr(vae, name).__name__ for name in vae.__all__] == vae.__all__


def test_the_tour_of_a_short_run(short_run, monkeypatch, capsys):
    monkeypatch.setenv("RUN", str(short_run.folder))
    seen = runpy.run_path(str(ROOT / "docs" / "tour.py"))
    text, model, x = capsys.readouterr().out, seen["model"], seen["images"]
    assert f"test ELBO {short_run.metrics['test/elbo']:.2f}" in text
    for picture in ("collapse", "traversals", "interpolations"):
        assert (short_run.folder / "tour" / f"{picture}.png").stat().st_size > 5000
    assert seen["traversals"].shape == (len(seen["used"].active), 11, 1, 28, 28)
    assert seen["interpolations"].shape == (6, 11, 1, 28, 28)
    # log p(x) from the full covariance, and the ELBO of a linear model: the gap is what the tour
    # says
    weights, flat = seen["weights"], x.flatten(1).double()
    law = weights.W @ weights.W.T + model.sigma**2 * torch.eye(784, dtype=torch.float64)
    log_p = torch.distributions.MultivariateNormal(weights.b, law).log_prob(flat).mean().item()
    q = seen["posterior"]
    spread = (q.variance.double() @ weights.W.square().sum(0)).mean().item() / (2 * model.sigma**2)
    elbo = (model.log_likelihood(x, q.mean) - kl_to_prior(q).sum(1)).mean().item() - spread
    assert seen["gap"].mean().item() == pytest.approx(log_p - elbo, abs=0.01)
