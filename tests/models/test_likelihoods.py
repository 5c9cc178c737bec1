"""p(x|z) of every kind, and the pixels that it is for: against sums, closed forms and its own
distribution."""

import itertools
import math

import pytest
import torch
from conftest import build_model, set_linear, settings
from hydra.utils import instantiate
from torch import Tensor, distributions

from vae.analysis.chain import run_chain, simulate
from vae.data.batches import as_images
from vae.data.datamodule import ImageDataModule
from vae.models.likelihoods import Bernoulli, Gaussian, Likelihood
from vae.models.networks import Decoder, Encoder
from vae.models.vae import VAE
from vae.runs.errors import UserError
from vae.theory.linear import affine_weights
from vae.theory.ppca import PPCA, Spectrum, best_linear
from vae.train import train


class Laplace(Likelihood):
    """What someone adds: the two methods of the contract."""

    def distribution(self, output: Tensor) -> distributions.Laplace:
        return distributions.Laplace(output, 0.1)

    def sample(self, output: Tensor, generator: torch.Generator | None = None) -> Tensor:
        u = torch.rand(output.shape, generator=generator, device=output.device) - 0.5
        return output - 0.1 * u.sign() * (1 - 2 * u.abs()).clamp_min(1e-7).log()


@pytest.mark.parametrize(
    "likelihood", [Gaussian(0.3), Gaussian(0.3, learned=True), Bernoulli(), Laplace()]
)
def test_a_likelihood_is_that_of_its_distribution(likelihood: Likelihood):
    output = torch.randn(3, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    law = likelihood.distribution(output)
    draws = torch.stack(
        [likelihood.sample(output, torch.Generator().manual_seed(seed)) for seed in range(400)]
    )
    x = draws[0]
    expected = law.log_prob(x).sum((1, 2, 3))
    torch.testing.assert_close(likelihood.log_prob(x, output), expected, rtol=1e-5, atol=1e-2)
    torch.testing.assert_close(likelihood.mean(output), law.mean)
    z = (draws.mean(0) - law.mean) / (law.stddev / 400**0.5)
    assert z.square().mean().item() == pytest.approx(1, abs=0.1)
    assert draws.var(0).div(law.variance).mean().item() == pytest.approx(1, abs=0.03)


def test_bernoulli_is_a_probability():
    output = torch.tensor([0.3, -2.0, 1.0, 4.0]).view(1, 1, 2, 2)
    every = torch.tensor(list(itertools.product([0.0, 1.0], repeat=4))).view(-1, 1, 2, 2)
    total = Bernoulli().log_prob(every, output.expand(16, 1, 2, 2)).exp().sum()
    assert total.item() == pytest.approx(1, rel=1e-6)


def test_the_best_sigma_of_a_linear_pair_is_the_mean_of_the_discarded_eigenvalues(
    digits: ImageDataModule,
):
    """At the closed form the ELBO is that of PPCA.with_ml_sigma, no other sigma is better, and
    training finds it."""
    x = digits.images("train").double()
    oracle = PPCA.with_ml_sigma(digits.spectrum(), 6)
    assert oracle.sigma**2 == pytest.approx(
        digits.spectrum().eigenvalues[6:].sum().item() / (784 - 6)
    )
    others = [
        PPCA(oracle.spectrum, 6, oracle.sigma * factor).train_elbo
        for factor in (0.97, 0.99, 1.01, 1.03)
    ]
    assert oracle.train_elbo > max(others)
    model = set_linear(
        build_model("model.latent_dim=6", "likelihood=learned_sigma"), oracle.weights()
    )
    noise = torch.randn(len(x), 6, generator=torch.Generator().manual_seed(0)).double()
    optimizer = torch.optim.Adam(model.likelihood.parameters(), lr=0.02)
    for _ in range(150):
        optimizer.zero_grad()
        elbo = model.elbo_terms(x, noise)[0].elbo.mean()
        (-elbo).backward()
        optimizer.step()
    assert model.sigma == pytest.approx(oracle.sigma, rel=5e-3)
    assert elbo.item() == pytest.approx(oracle.train_elbo, abs=1)


def test_without_discarded_eigenvalues_no_sigma_is_best(digits: ImageDataModule):
    """400 images span at most 399 dimensions: with so many latents the likelihood grows without
    bound."""
    learned = Gaussian(0.25, learned=True)
    for latent_dim in (399, 783, 784, 1000):
        assert best_linear(learned, digits.spectrum(), latent_dim) is None
    assert best_linear(learned, digits.spectrum(), 50).sigma > 0.05


def test_a_learned_sigma_has_the_same_gradient_either_way():
    likelihood, x, output = (
        Gaussian(0.3, learned=True),
        torch.rand(2, 1, 28, 28),
        torch.rand(2, 1, 28, 28),
    )
    ways = (likelihood.log_prob(x, output).sum(), likelihood.distribution(output).log_prob(x).sum())
    one, other = (torch.autograd.grad(way, likelihood.log_sigma)[0].item() for way in ways)
    assert one == pytest.approx(other, rel=1e-4)


@pytest.mark.slow
def test_training_learns_sigma_with_the_networks(tmp_path):
    """From far above, towards the closed form, and the ELBO stays below that of the best linear
    VAE."""
    plain = ["callbacks=none", "logger=none", "trainer.accelerator=cpu"]
    options = [
        "likelihood=learned_sigma",
        "model.sigma=1",
        "model.latent_dim=4",
        "optimizer.lr=0.01",
    ]
    metrics = train(
        settings(*options, *plain, "trainer.max_epochs=150", "data.batch_size=50"),
        tmp_path,
    )
    assert metrics["oracle/sigma"] < metrics["model/sigma"] < 1.1 * metrics["oracle/sigma"]
    assert metrics["oracle/train_elbo"] - 40 < metrics["train/elbo"] < metrics["oracle/train_elbo"]


@pytest.mark.parametrize("noise", ["dequantised", "binarised"])
def test_the_spectrum_over_all_noise(digits: ImageDataModule, noise: str):
    """Mean and covariance in closed form against many draws of the noise."""
    pixels = digits.split_pixels("train")[:50, :, 7:21, 7:21]
    torch.manual_seed(0)
    draws = torch.cat([as_images(pixels, noise, torch.rand(pixels.shape)) for _ in range(2000)])
    spectrum, sampled = Spectrum.from_images(pixels, noise), Spectrum.from_images(draws)
    torch.testing.assert_close(
        spectrum.mean, sampled.mean, rtol=0, atol=5 * 0.5 / len(draws) ** 0.5
    )
    assert spectrum.eigenvalues.sum().item() == pytest.approx(
        sampled.eigenvalues.sum().item(), rel=2e-3
    )
    assert spectrum.eigenvalues[:5].tolist() == pytest.approx(
        sampled.eigenvalues[:5].tolist(), rel=1e-2
    )
    assert not torch.allclose(
        spectrum.eigenvalues, Spectrum.from_images(pixels).eigenvalues, rtol=0, atol=1e-6
    )


def test_pixels_as_a_model_sees_them(digits: ImageDataModule):
    pixels = digits.split_pixels("test")
    uniform = torch.rand(pixels.shape, generator=torch.Generator().manual_seed(0))
    dequantised, binarised = (
        as_images(pixels, noise, uniform) for noise in ("dequantised", "binarised")
    )
    assert torch.equal((dequantised * 256).floor().byte(), pixels)
    assert dequantised.max() < 1
    assert binarised.unique().tolist() == [0, 1]
    assert (binarised[pixels == 0] == 0).all()
    assert (binarised[pixels == 255] == 1).all()
    assert binarised.mean().item() == pytest.approx(as_images(pixels).mean().item(), abs=2e-3)


def test_noise_is_fixed_for_each_image_but_in_training():
    data: ImageDataModule = instantiate(settings("data.pixels=binarised").data)
    data.prepare_data()
    data.setup("test")
    for split in ("test", "val"):
        whole = data.images(split)
        parts = [batch.images() for batch in data.loader(split)]
        assert torch.equal(torch.cat(parts), whole)
        assert torch.equal(data.images(split, 7), whole[:7])


def test_the_chain_draws_from_the_likelihood():
    """A Bernoulli chain feeds the encoder images of zeros and ones, whose mean is the frame."""
    model = build_model("likelihood=bernoulli", "model.latent_dim=2")
    fed: list[Tensor] = []
    model.encoder.register_forward_pre_hook(lambda _, args: fed.append(args[0]))
    states = list(run_chain(model, torch.zeros(500, 2), 1, torch.Generator().manual_seed(0)))
    assert fed[0].unique().tolist() == [0, 1]
    assert (fed[0].mean(0) - states[0][1][0]).abs().mean() < 0.03
    assert affine_weights(model) is None


@pytest.mark.parametrize(
    "likelihood", [Gaussian(0.3), Bernoulli(), Laplace()], ids=lambda each: type(each).__name__
)
def test_a_chain_that_diverges_is_reported_by_any_likelihood(likelihood: Likelihood):
    """Some chains run away, the others continue."""
    model = build_model("model.latent_dim=2", "likelihood=learned_sigma")
    model.likelihood = likelihood
    start = torch.zeros(4, 2)
    start[1] = math.inf
    states = list(run_chain(model, start, 3, torch.Generator().manual_seed(0)))
    for z, frame in states[1:]:
        assert (
            z.isfinite().all(1).tolist()
            == frame.isfinite().flatten(1).all(1).tolist()
            == [True, False, True, True]
        )
    assert simulate(model, start, 3).finite_steps == 0


def test_what_makes_no_sense_is_refused_by_name(tmp_path):
    def problem(*overrides: str) -> str:
        with pytest.raises(UserError) as refused:
            train(settings(*overrides), tmp_path / "run")
        assert not (tmp_path / "run").exists()
        return "\n".join(refused.value.problems)

    assert "data.pixels=grey: likelihood=bernoulli wants data.pixels=binarised" in problem(
        "likelihood=bernoulli"
    )
    assert "data.pixels=dequantised" in problem("likelihood=bernoulli", "data.pixels=dequantised")
    bernoulli = ["likelihood=bernoulli", "data.pixels=binarised"]
    assert "model.sigma=0.5 means nothing" in problem(*bernoulli, "model.sigma=0.5")
    assert "model.decoder.output=sigmoid" in problem(*bernoulli, "model.decoder.output=sigmoid")
    assert "model.sigma is None" in problem("model.sigma=null")
    assert "data.pixels=binary must be grey | dequantised | binarised" in problem(
        "data.pixels=binary"
    )
    assert "objective.nats" in problem("objective=free_bits", "objective.nats=-1")


def test_grey_pixels_may_be_asked_for():
    model = build_model("likelihood=bernoulli", "model.likelihood.grey=true")
    assert not model.likelihood.binary
    half = torch.full((1, 1, 28, 28), 0.5)
    assert model.likelihood.log_prob(half, torch.zeros_like(half)).item() == pytest.approx(
        784 * math.log(0.5)
    )


def test_sigma_must_be_positive():
    for likelihood in ({"sigma": 0.0}, {}):
        with pytest.raises(ValueError, match=r"model\.sigma"):
            VAE(Encoder(2), Decoder(2), latent_dim=2, **likelihood)
