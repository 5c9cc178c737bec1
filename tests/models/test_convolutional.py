"""The convolutional VAE: its shapes and size, that it learns, and that all the rest of the project
works with it."""

import pytest
import torch
from conftest import ShortRun, build_model, settings
from torch import Tensor

import vae
from vae.analysis.chain import local_gain, prior_latents, simulate
from vae.data.datamodule import ImageDataModule
from vae.models.convolutional import ConvDecoder, ConvEncoder, PixelShuffle2
from vae.models.elbo import upper_bound
from vae.models.vae import VAE, count_parameters
from vae.runs.validation import Builder
from vae.theory.linear import affine_weights

SMALL = [
    "model=conv",
    "model.latent_dim=4",
    "model.encoder.channels=[4,8]",
    "model.decoder.channels=[8,4]",
]
SMALL += ["model.encoder.hidden=[16]", "model.decoder.hidden=[16]"]


def steps(model: VAE, x: Tensor, n: int, compile: bool = False) -> tuple[list[float], Tensor]:
    """The objective of n steps of Adam at lr 0.001, and all weights after them in one row."""
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.001)

    def objective(noise: Tensor) -> Tensor:
        return -model.elbo_terms(x, noise)[0].elbo.mean()

    # aot_eager: traced and differentiated as a compiled step is, without a minute of the C++
    # compiler.
    run = torch.compile(objective, backend="aot_eager", fullgraph=True) if compile else objective
    objectives = []
    for _ in range(n):
        optimizer.zero_grad()
        loss = run(torch.randn(len(x), model.latent_dim))
        loss.backward()
        optimizer.step()
        objectives.append(loss.item())
    return objectives, torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.fixture(scope="module")
def conv_run(tmp_path_factory: pytest.TempPathFactory) -> ShortRun:
    overrides = ["model=conv", "trainer.max_epochs=2", "trainer.accelerator=cpu", "callbacks=none"]
    return ShortRun(tmp_path_factory.mktemp("run") / "conv", overrides)


@pytest.mark.parametrize(
    ("channels", "blocks", "hidden"), [([8], 0, []), ([4, 6], 1, [10]), ([4, 6], 2, [10, 12])]
)
def test_shapes(channels: list[int], blocks: int, hidden: list[int]):
    encoder = ConvEncoder(3, channels, blocks, hidden)
    decoder = ConvDecoder(3, channels[::-1], blocks, hidden[::-1])
    mean, log_sd = encoder(torch.rand(5, 1, 28, 28))
    assert mean.shape == log_sd.shape == (5, 3)
    assert decoder(torch.randn(5, 3)).shape == (5, 1, 28, 28)


def test_fewer_parameters_than_deep():
    conv, deep = build_model("model=conv"), build_model("model=deep")
    ends, block = 17 * 32 + (16 * 32 + 1) * 32, (9 * 32 + 1) * 32
    assert (
        count_parameters(conv.encoder)
        == ends + 2 * block + (49 * 32 + 1) * 300 + 301 * 64
        == 525_420
    )
    ends = 4 * block + (9 * 32 + 1) * 4
    assert count_parameters(conv.decoder) == 33 * 300 + 301 * 49 * 32 + 2 * block + ends == 538_512
    assert 0.9 < count_parameters(conv) / count_parameters(deep) < 1
    assert affine_weights(conv) is None


def test_outputs_and_the_bound_of_log_sd():
    """Sigmoid: in [0, 1]; linear: the same without the sigmoid; log sd within its range however
    large the images."""
    z = 10 * torch.randn(8, 4)
    (mean, logits) = (
        build_model(*SMALL, f"model.decoder.output={name}").decoder(z)
        for name in ("sigmoid", "linear")
    )
    assert torch.equal(mean, logits.sigmoid())
    assert logits.min() < 0
    log_sd = build_model(*SMALL).encoder(1e4 * torch.randn(64, 1, 28, 28))[1]
    assert -7 <= log_sd.min() < -6.9
    assert 1.9 < log_sd.max() <= 2.1


def test_an_empty_batch_has_gradients():
    """As a rank's last one may be; and the dealing out is PixelShuffle's."""
    x = torch.rand(3, 8, 5, 5)
    assert torch.equal(PixelShuffle2()(x), torch.nn.PixelShuffle(2)(x))
    model = build_model("model=conv")
    model.elbo_terms(torch.zeros(0, 1, 28, 28))[0].elbo.sum().backward()
    assert all(weight.grad.abs().sum() == 0 for weight in model.parameters())


def test_every_pixel_gets_as_many_terms():
    """With all weights and maps equal, pixels that no border is near are equal: the layers make no
    checkerboard."""
    decoder = ConvDecoder(2, [4, 3], 0, [], output="linear")
    with torch.no_grad():
        for weight in decoder.parameters():
            weight.fill_(0.01)
    image = decoder(torch.ones(1, 2))[0, 0]
    torch.testing.assert_close(image[6:22, 6:22], image[14, 14].expand(16, 16))


def test_what_channels_and_blocks_may_be():
    wrong = [
        "model.encoder.channels=[8,8,8]",
        "model.decoder.channels=[]",
        "model.decoder.blocks=-1",
    ]
    problems = Builder(settings("model=conv", *wrong)).problems
    assert [problem.split(" must be ")[0].replace(", ", ",") for problem in problems] == wrong


def test_two_epochs_on_digits(conv_run: ShortRun, digits: ImageDataModule):
    start = build_model("model=conv")
    x = digits.images("test", 300)
    begun = start.elbo_terms(x)[0].elbo.mean().item()
    assert begun + 100 < conv_run.metrics["test/elbo"] < upper_bound(784, 0.25)


def test_load_run_opens_it(conv_run: ShortRun, digits: ImageDataModule):
    model = vae.load_run(conv_run.folder).model
    assert isinstance(model.decoder, ConvDecoder)
    x = digits.images("test", 300)
    terms = model.elbo_terms(x)[0]
    assert terms.elbo.mean().item() == pytest.approx(
        conv_run.metrics["test/elbo"], abs=3
    )  # other noise
    assert model.reconstruct(x[:3]).shape == (3, 1, 28, 28)


def test_the_chain_stays_finite(conv_run: ShortRun):
    model = vae.load_run(conv_run.folder).model
    course = simulate(model, prior_latents(16, 32), 100)
    assert course.metrics["chain/finite"] == 1
    assert 0 < course.local_gain < 10
    assert torch.stack(course.frames).min() >= 0


def test_local_gain_is_the_slope_of_the_mean_map_in_float64():
    model = build_model(*SMALL, "model.latent_dim=1").double()
    z, h = torch.tensor([[0.3]], dtype=torch.float64), 1e-6
    up, down = (model.encode(model.mean_image(z + step)).loc.item() for step in (h, -h))
    assert local_gain(model, z).item() == pytest.approx(abs(up - down) / (2 * h), rel=1e-4)


def test_steps_repeat_bit_for_bit(digits: ImageDataModule):
    x = digits.images("train", 32)
    (first, weights), (second, repeated) = (steps(build_model(*SMALL), x, 2) for _ in range(2))
    assert first == second
    assert torch.equal(weights, repeated)


def test_a_compiled_step_is_the_eager_step(digits: ImageDataModule):
    x = digits.images("train", 32)
    (eager, weights), (compiled, same) = (
        steps(build_model(*SMALL), x, 2, compile=on) for on in (False, True)
    )
    assert compiled == pytest.approx(eager, rel=1e-4)
    torch.testing.assert_close(weights, same, rtol=0, atol=1e-4)


def test_bfloat16_networks_are_close_to_float32(digits: ImageDataModule):
    model, x, noise = build_model("model=conv"), digits.images("train", 64), torch.randn(64, 32)
    exact = model.elbo_terms(x, noise)[0].elbo.mean().item()
    with torch.autocast("cpu", torch.bfloat16):
        terms = model.elbo_terms(x, noise)[0]
    assert terms.log_likelihood.dtype == torch.float32
    assert terms.elbo.mean().item() == pytest.approx(exact, rel=0.01)
