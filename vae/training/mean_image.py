"""A decoder that starts at the mean training image instead of at grey."""

import lightning.pytorch as L

from vae.models.networks import Decoder
from vae.runs.errors import UserError
from vae.training.module import LitVAE


class StartAtMeanImage(L.Callback):
    """Before training, sets the bias of the decoder's last layer to the mean training image.

    A small sigma makes the first gradients of a decoder that starts at grey so large that tanh
    units saturate and stay so (Burda et al. 2016, appendix, start their output bias likewise).
    Needs this project's data module and a fully connected decoder; raises UserError otherwise.
    """

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Comes before a checkpoint is restored, so that a resumed run keeps its weights."""
        if stage != "fit":
            return
        data = getattr(trainer, "datamodule", None)
        decoder = pl_module.model.decoder if isinstance(pl_module, LitVAE) else None
        if not isinstance(decoder, Decoder) or not hasattr(data, "split_pixels"):
            raise UserError(
                "callbacks.mean_image: needs a fully connected decoder and the data of vae.data"
            )
        pixels = data.split_pixels("train")  # type: ignore[union-attr]
        decoder.start_at(pixels.double().mean(0) / 255)
