"""LitVAE and the data module as objects of one's own script: any Trainer, any loader of images."""

import copy
import pickle
import re
import warnings
from typing import Any

import lightning.pytorch as L
import pytest
import torch
from conftest import quiet_trainer
from lightning.pytorch.callbacks import BaseFinetuning, BatchSizeFinder
from torch.utils.data import DataLoader, TensorDataset

import vae
from vae.data import ImageDataModule
from vae.data.batches import Batch, as_images
from vae.runs.errors import UserError
from vae.training.module import LitVAE

LABELS = torch.arange(64)
IMAGES = torch.rand(64, 1, 28, 28, generator=torch.Generator().manual_seed(0))


def lit(**options: Any) -> LitVAE:
    torch.manual_seed(0)
    return LitVAE(vae.VAE(vae.Encoder(4), vae.Decoder(4), 4, 0.25), **options)


def unsized(network: Any) -> Any:
    """A network that does not say how many latents it has, as one's own may not."""
    del network.latent_dim
    return network


def digits_module(**options: Any) -> ImageDataModule:
    given = {"name": "digits", "root": "data", "val_size": 100, "batch_size": 100}
    return ImageDataModule(**given | options)  # type: ignore[arg-type]


def test_any_trainer_fits_any_loader_of_images() -> None:
    own, module = quiet_trainer(max_epochs=2), lit()
    bare = DataLoader(IMAGES, batch_size=16)  # type: ignore[arg-type]
    labelled = DataLoader(TensorDataset(IMAGES, torch.arange(64)), batch_size=16)
    before = own.validate(module, bare, verbose=False)[0]["val/elbo"]
    own.fit(module, labelled, bare)
    assert own.validate(module, labelled, verbose=False)[0]["val/elbo"] > before
    assert own.test(module, bare, verbose=False)[0]["test/elbo"] > before
    parts = own.predict(module, bare)
    assert torch.cat([p["reconstruction"] for p in parts]).shape == IMAGES.shape  # type: ignore
    with torch.no_grad():
        assert torch.equal(parts[0]["reconstruction"], module(IMAGES[:16]))  # type: ignore


def test_batches_without_images_train_nothing_and_have_no_metrics() -> None:
    loader: Any = DataLoader(IMAGES[:0].expand(4, 0, 1, 28, 28), batch_size=None)  # type: ignore[arg-type]
    trainer, module = quiet_trainer(max_epochs=1), lit()
    before = [weight.clone() for weight in module.parameters()]
    trainer.fit(module, loader)
    assert trainer.global_step == 4
    assert "train/elbo" not in trainer.callback_metrics
    assert all(map(torch.equal, module.parameters(), before))


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (255 * IMAGES, "images from .* to 255, not in"),
        (IMAGES - 0.5, r"images from -0\.\d+ to 0\.\d+, not in"),
        (IMAGES, ""),
        (1.0001 * IMAGES, ""),
        (IMAGES > 0.5, ""),
        ((255 * IMAGES).byte(), ""),
        ((IMAGES > 0.5).byte(), "integer images of 0 and 1 are read as"),
    ],
    ids=["0 to 255", "centred", "0 to 1", "rounded", "binary", "bytes", "0 and 1"],
)
def test_images_that_are_no_intensities_are_named_once(images: Any, said: str) -> None:
    loader: Any = DataLoader(TensorDataset(images, LABELS), 16)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        quiet_trainer(max_epochs=2).fit(lit(), loader)
    found = [str(w.message) for w in caught if " images " in f" {w.message}"]
    assert len(found) == bool(said)
    assert all(re.match(said, line) for line in found)


def test_parts_of_other_latent_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"decoder\.latent_dim is 5, the model's 4"):
        vae.VAE(vae.Encoder(4), vae.Decoder(5), 4, 0.25)
    with pytest.raises(ValueError, match=r"encoder\.latent_dim is 3, the model's 4"):
        vae.VAE(vae.models.ConvEncoder(3), vae.models.ConvDecoder(4), 4, 0.25)


@pytest.mark.parametrize(
    ("batch", "line"),
    [
        (torch.rand(16, 28, 28), r"must be \[B, 1, 28, 28\], not \[16, 28, 28\]"),
        (torch.rand(16, 3, 28, 28), r"must be \[B, 1, 28, 28\], not \[16, 3, 28, 28\]"),
        ({"image": torch.rand(16, 1, 28, 28)}, "a batch must be images, .* not dict"),
        ([torch.rand(16, 1, 28, 28)] * 2, "a batch must be images, .* not two of images"),
    ],
    ids=["no channel", "colours", "dictionary", "two loaders"],
)
def test_a_batch_of_another_shape_is_refused(batch: Any, line: str) -> None:
    """Without a channel it would broadcast over the batch, and train."""
    module = lit()
    for step in (module.training_step, module.predict_step):
        with pytest.raises((ValueError, TypeError), match=line):
            step(batch, 0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_images_of_another_precision_are_trained_in_the_weights_own(dtype: torch.dtype) -> None:
    """Numpy's are float64."""
    module = lit()
    quiet_trainer(max_epochs=1).fit(module, DataLoader(IMAGES.to(dtype), 32))
    assert module.terms["objective"].dtype == torch.float32


def test_names_are_refused_where_objects_are_asked_for() -> None:
    with pytest.raises(TypeError, match="'beta' is a name; pass the object"):
        lit(objective="beta")
    with pytest.raises(TypeError, match="'cosine' is a name; pass the object"):
        lit(scheduler="cosine")
    with pytest.raises(ValueError, match="no split 'tests': train, val or test"):
        digits_module().images("tests")


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
def test_half_precision_alone_is_refused_in_a_line(precision: str) -> None:
    with pytest.raises(UserError, match=f"^precision={precision}: .* take bf16-mixed"):
        quiet_trainer(precision=precision, max_epochs=1).fit(lit(), DataLoader(IMAGES, 32))


def test_weights_that_are_frozen_at_first_get_a_learning_rate_of_their_own() -> None:
    class Unfreeze(BaseFinetuning):
        def freeze_before_training(self, pl_module: L.LightningModule) -> None:
            self.freeze(pl_module.model.encoder)

        def finetune_function(
            self, pl_module: L.LightningModule, epoch: int, optimizer: torch.optim.Optimizer
        ) -> None:
            if epoch == 1:
                self.unfreeze_and_add_param_group(pl_module.model.encoder, optimizer, lr=1e-6)

    module, own = lit(), quiet_trainer(max_epochs=2, callbacks=[Unfreeze()])
    own.fit(module, DataLoader(IMAGES[:8], batch_size=4))
    groups = own.optimizers[0].param_groups
    decoder, encoder = (
        [*part.parameters()] for part in (module.model.decoder, module.model.encoder)
    )
    assert [group["lr"] for group in groups] == [1e-3, 1e-6]
    for group, weights in zip(groups, (decoder, encoder), strict=True):
        assert {id(p) for p in group["params"]} == {id(p) for p in weights}


def test_a_copy_trains_itself() -> None:
    """A compiled step belongs to the module that it was compiled for."""
    module = lit(compile=True)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        before = {name: weight.clone() for name, weight in other.state_dict().items()}
        quiet_trainer(max_epochs=1).fit(other, DataLoader(IMAGES, batch_size=32))
        changed = [not torch.equal(w, before[name]) for name, w in other.state_dict().items()]
        assert all(changed)
    assert all(weight.grad is None for weight in module.parameters())


class Looks(L.Callback):
    """Goes through the training images itself, between the Trainer's own batches."""

    def __init__(self) -> None:
        self.found: dict[str, list[int]] = {}

    def note(self, hook: str, trainer: L.Trainer) -> None:
        batches = sum(1 for _ in trainer.train_dataloader)  # type: ignore[union-attr]
        self.found.setdefault(hook, []).append(batches)

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.note("batch", trainer)

    def on_validation_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.note("validation", trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.note("epoch", trainer)


def test_the_training_loader_can_be_gone_through_at_any_time() -> None:
    data, module, looks = digits_module(), lit(), Looks()
    own = quiet_trainer(max_epochs=2, callbacks=[looks], num_sanity_val_steps=0)
    own.fit(module, data)
    assert looks.found == {"batch": [4] * 8, "validation": [4, 4], "epoch": [4, 4]}
    assert own.global_step == 8
    assert sum(batch.size for batch in data.train_dataloader()) == 400
    (found,) = quiet_trainer().validate(module, data.train_dataloader(), verbose=False)
    assert found["val/images"] == 400


def test_the_epoch_can_be_set_without_a_trainer() -> None:
    data = digits_module()
    data.setup()
    assert len(data.images("test")) == 300  # without a stage everything is read
    loader = data.train_dataloader()
    orders = []
    for epoch in (0, 1, 0):
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        orders.append(torch.cat([batch.index for batch in loader]))
    assert torch.equal(orders[0], orders[2])
    assert not torch.equal(orders[0], orders[1])
    assert len(loader.dataset) == 400  # type: ignore[arg-type]


@pytest.mark.parametrize("split", ["train", "test"])
def test_images_are_asked_for_before_they_are_read(split: str) -> None:
    data = digits_module()
    if split == "test":
        data.setup("fit")
    with pytest.raises(RuntimeError, match=f"the {split} images are not read: "):
        data.loader(split)


def test_the_batch_size_finder_stops_at_the_images_there_are() -> None:
    """Lightning's at the first size that is no less."""
    finder = BatchSizeFinder(steps_per_trial=1, init_val=64, max_trials=6)
    data = digits_module()
    quiet_trainer(max_epochs=1, callbacks=[finder]).fit(lit(), data)
    assert data.batch_size == 512


def test_validation_depends_on_no_batches() -> None:
    """Noise belongs to an image's place in its loader where its place in a file is not known."""
    elbos = [
        quiet_trainer().validate(lit(), DataLoader(IMAGES, batch_size=size), verbose=False)[0][
            "val/elbo"
        ]
        for size in (7, 32, 64)
    ]
    assert elbos == pytest.approx([elbos[0]] * 3, rel=1e-6)
    other = quiet_trainer().validate(
        lit(eval_seed=1), DataLoader(IMAGES, batch_size=7), verbose=False
    )
    assert other[0]["val/elbo"] != pytest.approx(elbos[0], rel=1e-6)


def test_several_test_loaders_are_refused() -> None:
    loaders = [DataLoader(IMAGES, batch_size=32), DataLoader(IMAGES[:20], batch_size=32)]
    with pytest.raises(TypeError, match="several test loaders"):
        quiet_trainer().test(lit(), loaders, verbose=False)


def test_double_precision_goes_on_after_training() -> None:
    module = lit()
    quiet_trainer(precision="64-true", max_epochs=1).fit(module, DataLoader(IMAGES.double(), 32))
    assert module.model.sample(5).dtype == torch.float64


@pytest.mark.parametrize(
    ("networks", "line"),
    [
        (
            (unsized(vae.Encoder(1)), vae.Decoder(4)),
            r"means \[B, m\] must be \[B, 4\], not \[64, 1\]",
        ),
        (
            (vae.Encoder(4), vae.Decoder(4, image_shape=(1, 28, 1))),
            r"the decoder's images are \[64, 1, 28, 1\], the data's \[64, 1, 28, 28\]",
        ),
    ],
    ids=["encoder", "decoder"],
)
def test_networks_that_would_broadcast_are_refused(networks: Any, line: str) -> None:
    module = LitVAE(vae.VAE(*networks, 4, 0.25))
    with pytest.raises(ValueError, match=line):
        module.training_step(IMAGES, 0)


def test_kinds_of_batches() -> None:
    """Boolean images are images already; a Batch needs no size; an empty one has no loss."""
    binary = IMAGES > 0.5
    assert torch.equal(as_images(binary), binary.float())
    module = lit()
    losses = []
    for batch in (binary, binary.float(), Batch(binary), (255 * binary).byte()):
        torch.manual_seed(1)
        losses.append(module.training_step(batch, 0)["loss"].item())
    assert losses == [losses[0]] * 4
    assert module.training_step(IMAGES[:0], 0)["loss"].item() == 0


def test_the_learning_rate_of_any_optimizer_is_known() -> None:
    assert lit(optimizer=torch.optim.SGD).lr == 1e-3
    settings = {"_target_": "torch.optim.AdamW", "lr": 0.02}
    module = lit(optimizer=settings)
    assert module.lr == 0.02
    module.lr = 0.5
    assert module.configure_optimizers().param_groups[0]["lr"] == 0.5
