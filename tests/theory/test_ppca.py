"""The oracle against its own optimum, the reference metrics of MNIST, and training."""

import math

import pytest
import torch
from conftest import build_model, set_linear, settings
from hydra.utils import instantiate

from vae.data.batches import as_images
from vae.data.datamodule import ImageDataModule
from vae.theory import ppca
from vae.theory.linear import affine_weights
from vae.theory.ppca import PPCA, Spectrum, rate_distortion


@pytest.fixture(scope="module")
def spectrum(digits: ImageDataModule) -> Spectrum:
    return Spectrum.from_images(digits.split_pixels("train"))


def test_spectrum_is_that_of_the_covariance(digits: ImageDataModule, spectrum: Spectrum):
    x = digits.images("train", 400).flatten(1).double()
    covariance = torch.cov(x.T, correction=0)
    rebuilt = spectrum.eigenvectors @ spectrum.eigenvalues.diag() @ spectrum.eigenvectors.T
    torch.testing.assert_close(rebuilt, covariance, rtol=0, atol=1e-7)
    of_floats = Spectrum.from_images(digits.split_pixels("train").double() / 255)
    torch.testing.assert_close(of_floats.eigenvalues, spectrum.eigenvalues, rtol=0, atol=1e-12)


def test_a_data_modules_spectrum_is_that_of_what_it_holds(monkeypatch: pytest.MonkeyPatch):
    data = instantiate(settings().data)
    data.setup("fit")
    computed: list[int] = []
    from_images = Spectrum.from_images

    def counted(pixels: torch.Tensor, transform: str) -> Spectrum:
        computed.append(len(pixels))
        return from_images(pixels, transform)

    monkeypatch.setattr(ppca, "CACHE", {})
    monkeypatch.setattr(Spectrum, "from_images", counted)

    def expected() -> torch.Tensor:
        return from_images(data.split_pixels("train"), data.transform).eigenvalues

    def change(what: str) -> None:
        if what == "transform":
            data.transform = "binarised"
        elif what == "split":
            data.index["train"] = data.index["train"][:100]
        elif what == "pixels":
            data.pixels["train"][:, :, :14] = 0

    for what in ("nothing", "transform", "split", "pixels"):
        change(what)
        for _ in range(2):
            assert torch.equal(data.spectrum().eigenvalues, expected()), what
    assert computed == [400, 400, 100, 100]


def test_spectrum_of_bytes_is_exact_whatever_they_are():
    """All white is the worst case for sums in float32: 256 · 255² is just below 2²⁴."""
    images = torch.full((1000, 1, 4, 4), 255, dtype=torch.uint8)
    images[::2, 0, 0, 0] = 0
    spectrum = Spectrum.from_images(images)
    assert spectrum.mean.tolist() == [0.5] + [1.0] * 15
    assert spectrum.eigenvalues.tolist() == [0.25] + [0.0] * 15


@pytest.mark.parametrize(("latent_dim", "sigma"), [(4, 0.25), (32, 0.25), (32, 1.0)])
def test_elbo_at_the_optimal_weights(
    digits: ImageDataModule, spectrum: Spectrum, latent_dim: int, sigma: float
):
    """The ELBO, its noise integrated out exactly, equals the closed form on train and on test."""
    oracle = PPCA(spectrum, latent_dim, sigma)
    model = set_linear(
        build_model(f"model.latent_dim={latent_dim}", f"model.sigma={sigma}"), oracle.weights()
    )
    W = oracle.weights()["W"]
    for split, count in (("train", 400), ("test", 300)):
        x = as_images(digits.split_pixels(split, count)).double()
        with torch.no_grad():
            terms, posterior = model.elbo_terms(
                x, torch.zeros(count, latent_dim, dtype=torch.float64)
            )
        # E over z of ‖x − f(z)‖² is the error at the mean plus Σ_i sd_i² ‖w_i‖²
        spread = (posterior.scale.square() * W.square().sum(0)).sum(1) / (2 * sigma**2)
        elbo = terms.elbo - spread
        torch.testing.assert_close(elbo, oracle.elbo(x), rtol=0, atol=1e-3)
        if split == "train":
            assert elbo.mean().item() == pytest.approx(oracle.train_elbo, abs=1e-3)
            torch.testing.assert_close(terms.kl.mean(0), oracle.kl, rtol=0, atol=1e-6)
    assert oracle.collapsed == latent_dim - oracle.rank == int((oracle.kl == 0).sum())


def test_the_elbo_at_the_optimum_is_the_exact_log_likelihood(
    digits: ImageDataModule, spectrum: Spectrum
):
    oracle = PPCA(spectrum, 8, 0.5)
    W = oracle.weights()["W"]
    exact = torch.distributions.MultivariateNormal(
        spectrum.mean, W @ W.T + 0.25 * torch.eye(784, dtype=torch.float64)
    )
    x = digits.images("test", 50).double()
    torch.testing.assert_close(oracle.elbo(x), exact.log_prob(x.flatten(1)), rtol=0, atol=1e-6)


def test_no_other_weights_are_better(digits: ImageDataModule, spectrum: Spectrum):
    """Any step away from the optimum lowers the exact train ELBO."""
    oracle = PPCA(spectrum, 4, 0.25)
    x = as_images(digits.split_pixels("train")).double()

    def elbo(weights: dict[str, torch.Tensor]) -> float:
        model = set_linear(build_model("model.latent_dim=4"), weights)
        with torch.no_grad():
            terms, posterior = model.elbo_terms(x, torch.zeros(len(x), 4, dtype=torch.float64))
        spread = (posterior.scale.square() * weights["W"].square().sum(0)).sum(1) / (2 * 0.25**2)
        return (terms.elbo - spread).mean().item()

    best = elbo(oracle.weights())
    generator = torch.Generator().manual_seed(0)
    for name, weight in oracle.weights().items():
        for size in (1e-3, -1e-3):
            step = size * torch.randn(weight.shape, generator=generator, dtype=torch.float64)
            assert elbo({**oracle.weights(), name: weight + step}) < best


@pytest.mark.slow
def test_training_reaches_the_oracle(digits: ImageDataModule, spectrum: Spectrum):
    """Plain gradient steps on the ELBO end within 0.5 nats of the optimum, never above it."""
    oracle = PPCA(spectrum, 4, 0.25)
    model = build_model("model.latent_dim=4")
    x = digits.images("train", 400)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02, betas=(0.9, 0.99))
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 1500)
    for _ in range(1500):
        optimizer.zero_grad()
        (-model.elbo_terms(x)[0].elbo.mean()).backward()
        optimizer.step()
        scheduler.step()
    with torch.no_grad():
        draws = torch.stack([model.elbo_terms(x)[0].elbo.mean() for _ in range(100)])
    error = draws.std().item() / math.sqrt(len(draws))
    gap = oracle.train_elbo - draws.mean().item()
    assert -4 * error < gap < 0.5
    # and its decoder spans the principal subspace: all four cosines are near 1
    W = torch.linalg.qr(affine_weights(model).W).Q
    cosines = torch.linalg.svdvals(W.T @ spectrum.eigenvectors[:, :4])
    assert cosines.min() > 0.99


@pytest.mark.mnist
def test_reference_metrics_of_mnist(mnist: ImageDataModule):
    """All 60 000 training images: known mean, spectrum, and optima over latent_dim and sigma."""
    images = mnist.pixels["train"]
    spectrum = Spectrum.from_images(images)
    assert spectrum.mean.mean().item() == pytest.approx(0.1306605, abs=1e-7)
    assert spectrum.eigenvalues.sum().item() == pytest.approx(52.72504, abs=1e-5)
    assert spectrum.eigenvalues[:5].tolist() == pytest.approx(
        [5.11679, 3.74133, 3.25265, 2.84157, 2.56707], abs=1e-5
    )
    test = mnist.split_pixels("test")
    reference = {  # (latent_dim, sigma): train ELBO, test ELBO, train KL, latents in use
        (2, 0.5): (-268.62, -268.22, 2.86, 2),
        (16, 1.0): (-743.19, -743.10, 4.33, 12),
        (32, 0.25): (199.75, 202.30, 42.51, 32),
        (64, 0.5): (-240.34, -239.76, 20.77, 39),
        (64, 0.1): (570.23, 579.83, 118.63, 64),
    }
    for (latent_dim, sigma), (train_elbo, test_elbo, kl, used) in reference.items():
        oracle = PPCA(spectrum, latent_dim, sigma)
        assert oracle.train_elbo == pytest.approx(train_elbo, abs=0.006)
        assert oracle.elbo(test).mean().item() == pytest.approx(test_elbo, abs=0.006)
        assert oracle.kl.sum().item() == pytest.approx(kl, abs=0.006)
        assert oracle.rank == used


def test_settings_of_the_reference():
    """The defaults that the README's metrics belong to."""
    config = settings("model=deep")
    assert (
        config.model.latent_dim,
        config.model.sigma,
        config.optimizer.lr,
        config.data.batch_size,
    ) == (
        32,
        0.25,
        0.001,
        128,
    )


def test_rate_and_distortion_make_up_the_elbo(spectrum: Spectrum):
    """E log p(x|z) of the mean squared error, less the KL, is the ELBO, at every sigma."""
    sigmas = [0.1, 0.25, 0.5, 1.0]
    points = rate_distortion(spectrum, 8, sigmas)
    assert [sigma for sigma, _, _ in points] == sigmas
    for sigma, rate, distortion in points:
        log_likelihood = -392 * math.log(2 * math.pi * sigma**2) - distortion / (2 * sigma**2)
        expected = PPCA(spectrum, 8, sigma).train_elbo
        assert log_likelihood - rate == pytest.approx(expected, abs=1e-6)
    rates, distortions = [[point[i] for point in points] for i in (1, 2)]
    assert rates == sorted(rates, reverse=True)
    assert distortions == sorted(distortions)
    # dD/dR = −2 s²: the slope of the curve is the trade-off that sigma sets
    (_, r0, d0), (_, r1, d1) = rate_distortion(spectrum, 8, [0.2499, 0.2501])
    assert (d1 - d0) / (r1 - r0) == pytest.approx(-2 * 0.25**2, rel=1e-3)
