"""What training minimises: against the ELBO's own terms, and against exact values at the
closed-form optimum."""

import itertools

import pytest
import torch
from conftest import ROOT, build_model, set_linear, settings
from torch._dynamo.testing import CompileCounter

from vae.data.batches import as_images
from vae.data.datamodule import ImageDataModule
from vae.models.elbo import ELBOTerms
from vae.models.objectives import ELBO, IWAE, BetaELBO, FreeBits, PathELBO
from vae.runs.errors import UserError
from vae.runs.validation import Builder, incompatibilities
from vae.theory.ppca import PPCA
from vae.train import train
from vae.training.module import LitVAE

NAMES = {
    kind: sorted(path.stem for path in (ROOT / "conf" / kind).glob("*.yaml"))
    for kind in ("model", "likelihood")
}
OBJECTIVES = sorted(path.stem for path in (ROOT / "conf" / "objective").glob("*.yaml"))
DATA = sorted(path.stem for path in (ROOT / "conf" / "data").glob("*.yaml"))


@pytest.fixture(scope="module")
def batch() -> tuple:
    model = build_model("model=deep", "model.latent_dim=5")
    generator = torch.Generator().manual_seed(1)
    return (
        model,
        torch.rand(40, 1, 28, 28, generator=generator),
        torch.randn(7, 40, 5, generator=generator),
    )


def test_the_elbo_and_its_weighted_forms(batch):
    model, x, noise = batch
    objective, terms = ELBO()(model, x, noise[:1], 0)
    expected = model.elbo_terms(x, noise[0])[0]
    assert torch.equal(objective, -expected.elbo)
    assert torch.equal(terms.elbo, expected.elbo)
    weighted, same = BetaELBO(beta=4)(model, x, noise, 0)
    torch.testing.assert_close(weighted, objective + 3 * terms.kl.sum(-1))
    assert torch.equal(same.elbo, terms.elbo)
    warm_up = BetaELBO(warmup_steps=10)
    for step, weight in ((0, 0.0), (5, 0.5), (10, 1.0), (1000, 1.0)):
        torch.testing.assert_close(
            warm_up.loss(terms, step), weight * terms.kl.sum(-1) - terms.log_likelihood
        )


def test_free_bits_takes_the_maximum_after_the_mean():
    """Latent 0 is below the floor on average though one image is above it, latent 1 is above."""
    kl = torch.tensor([[0.1, 2.0], [0.5, 0.2]], requires_grad=True)
    objective = FreeBits(0.4).loss(ELBOTerms(torch.zeros(2), kl), 0)
    assert objective.mean().item() == pytest.approx(0.4 + 1.1)
    objective.mean().backward()
    assert kl.grad.tolist() == [[0, 0.5], [0, 0.5]]


def test_importance_weights_are_exact_at_the_closed_form(digits: ImageDataModule):
    """There q is the posterior: every weight is p(x), whatever the noise and the number of
    samples."""
    oracle = PPCA(digits.spectrum(), 4, 0.5)
    model = set_linear(build_model("model.latent_dim=4", "model.sigma=0.5"), oracle.weights())
    x = digits.images("test", 20).double()
    for samples in (1, 6):
        objective, terms = IWAE(samples)(model, x, torch.randn(samples, 20, 4).double(), 0)
        torch.testing.assert_close(-objective, oracle.elbo(x), rtol=0, atol=1e-8)
    assert terms.elbo.mean().item() == pytest.approx(oracle.elbo(x).mean().item(), abs=5)


def encoder_gradient(objective: ELBO, model, x, noise, step: int = 0) -> torch.Tensor:
    value, _terms = objective(model, x, noise, step)
    found = torch.autograd.grad(value.mean(), [*model.encoder.parameters()])
    return torch.cat([gradient.flatten() for gradient in found])


def test_the_path_gradient_is_zero_where_q_is_the_posterior(digits: ImageDataModule):
    """For every noise, where the ELBO's own gradient is zero in the mean alone; and the objective
    is log p(x) itself."""
    oracle = PPCA(digits.spectrum(), 4, 0.5)
    model = set_linear(build_model("model.latent_dim=4", "model.sigma=0.5"), oracle.weights())
    x = digits.images("test", 20).double()
    noise = torch.randn(1, 20, 4, generator=torch.Generator().manual_seed(0)).double()
    path, usual = (
        encoder_gradient(objective, model, x, noise) for objective in (PathELBO(), ELBO())
    )
    assert path.abs().max() < 1e-9
    assert usual.abs().max() > 0.1
    objective, _terms = PathELBO()(model, x, noise, 0)
    torch.testing.assert_close(-objective, oracle.elbo(x), rtol=0, atol=1e-8)


def test_the_path_gradient_has_the_mean_of_the_elbos():
    """Also while beta rises: here it is ½. The decoder's gradient is the ELBO's for every noise."""
    model = build_model("model=deep", "model.latent_dim=2", "model.encoder.hidden=[8]").double()
    generator = torch.Generator().manual_seed(3)
    x = torch.rand(1, 1, 28, 28, generator=generator).double()
    path, usual = PathELBO(warmup_steps=10), BetaELBO(warmup_steps=10)
    many = torch.randn(1, 20_000, 2, generator=generator).double()
    rows = x.expand(20_000, -1, -1, -1)
    found, expected = (encoder_gradient(o, model, rows, many, 5) for o in (path, usual))
    once = torch.stack(
        [encoder_gradient(path, model, x, many[:, i : i + 1], 5) for i in range(200)]
    )
    error = once.std(0) / 20_000**0.5
    assert found.norm() > 20 * error.norm()
    assert (found - expected).norm() < 4 * error.norm()
    few = x.expand(6, -1, -1, -1)
    decoders = [
        torch.autograd.grad(o(model, few, many[:, :6], 5)[0].mean(), [*model.decoder.parameters()])
        for o in (path, usual)
    ]
    for one, other in zip(*decoders, strict=True):
        torch.testing.assert_close(one, other)


def test_importance_weights_lift_the_bound(batch):
    model, x, _ = batch
    noise = torch.randn(50, 40, 5, generator=torch.Generator().manual_seed(2))
    one, many = (-IWAE(k)(model, x, noise[:k], 0)[0].mean().item() for k in (1, 50))
    terms = IWAE(50)(model, x, noise, 0)[1]
    assert many > terms.elbo.mean().item()
    assert one == pytest.approx(
        terms.elbo.mean().item(), rel=0.02
    )  # L_1 is the ELBO, with the KL sampled
    assert terms.log_likelihood.shape == (40,)


@pytest.mark.slow
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_combination_composes_and_trains_a_step(
    objective: str, tmp_path, digits: ImageDataModule
):
    """model × likelihood × pixels × data; what is refused is refused by name, all else learns."""
    kinds = itertools.product(
        NAMES["model"], NAMES["likelihood"], ("grey", "dequantised", "binarised")
    )
    sets = itertools.cycle(DATA)
    seen = 0
    for model, likelihood, pixels in kinds:
        chosen = [
            f"model={model}",
            f"likelihood={likelihood}",
            f"objective={objective}",
            f"data.pixels={pixels}",
        ]
        build = Builder(settings(*chosen, f"data={next(sets)}", "model.latent_dim=3"))
        build.seed()
        model, minimised, data = build("model"), build("objective"), build("data")
        build.problems += incompatibilities(model, data)
        if likelihood == "bernoulli" and pixels != "binarised":
            with pytest.raises(UserError, match=f"data.pixels={pixels}"):
                build.finish(tmp_path)
            continue
        build.finish(tmp_path)
        raw = digits.split_pixels("train", 32)
        x = as_images(raw, pixels, None if pixels == "grey" else torch.rand(raw.shape))
        optimizer = build("optimizer")(model.parameters())
        noise = torch.randn(minimised.samples, 32, 3)
        values = []
        for step in (4300, 4301, 4302):
            optimizer.zero_grad()
            value, terms = minimised(model, x, noise, step)
            values.append(value.mean().item())
            value.mean().backward()
            optimizer.step()
            assert value.shape == terms.elbo.shape == (32,)
        assert values[-1] < values[0], chosen
        seen += 1
    assert seen == len(NAMES["model"]) * (3 * len(NAMES["likelihood"]) - 2)


@pytest.mark.parametrize(
    "objective",
    [ELBO(), BetaELBO(warmup_steps=10), PathELBO(warmup_steps=10), FreeBits(0.3), IWAE(2)],
    ids=lambda o: type(o).__name__,
)
def test_a_compiled_objective_is_not_compiled_at_every_step(objective):
    """The step is a number that changes: the short last batch and the end of a warm-up may compile
    again, no more."""
    task = LitVAE(build_model("model.latent_dim=3"), torch.optim.Adam, objective=objective)
    torch._dynamo.reset()
    assert (
        torch._dynamo.explain(task.loss_terms)(
            torch.zeros(5, 1, 28, 28), torch.randn(objective.samples, 5, 3), 0
        ).graph_break_count
        == 0
    )  # one piece
    counter = CompileCounter()
    compiled = torch.compile(task.loss_terms, backend=counter)
    for step in range(30):
        images = 16 if step % 10 else 9
        x, noise = torch.zeros(images, 1, 28, 28), torch.randn(objective.samples, images, 3)
        compiled(x, noise, step)
    assert counter.frame_count <= 4


@pytest.mark.parametrize(
    "overrides",
    [
        ["objective=free_bits"],
        ["objective=iwae"],
        *(  # weights of the KL alone
            pytest.param([f"objective={name}"], marks=pytest.mark.slow)
            for name in OBJECTIVES
            if name not in ("elbo", "free_bits", "iwae")
        ),
        ["likelihood=bernoulli", "data.pixels=binarised", "model=deep"],
        ["likelihood=learned_sigma", "data.pixels=dequantised"],
        pytest.param(  # half a minute to compile
            ["likelihood=bernoulli", "data.pixels=binarised", "objective=iwae", "+experiment=fast"],
            marks=pytest.mark.slow,
        ),
    ],
    ids=" ".join,
)
def test_a_whole_run_of_each(overrides: list[str], tmp_path):
    """With every picture. train/objective is what is minimised, the ELBO stays the ELBO, and the
    run opens again."""
    from omegaconf import OmegaConf

    import vae

    config = settings(
        *overrides, "model.latent_dim=3", "trainer.max_epochs=2", "trainer.accelerator=cpu"
    )
    (tmp_path / ".hydra").mkdir()
    OmegaConf.save(config, tmp_path / ".hydra" / "config.yaml")
    metrics = train(config, tmp_path)
    for split in ("train", "val", "test"):
        assert metrics[f"{split}/elbo"] == pytest.approx(
            metrics[f"{split}/log_likelihood"] - metrics[f"{split}/kl"]
        )
    assert ("oracle/test_elbo" in metrics) == ("likelihood=bernoulli" not in overrides)
    assert len(list((tmp_path / "figures").glob("*.png"))) == 5
    run = vae.load_run(tmp_path)
    assert run.model.sample(2, noisy=True).shape == (2, 1, 28, 28)
