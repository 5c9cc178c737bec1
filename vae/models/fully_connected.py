"""A VAE whose encoder and decoder have one size."""

from typing import Any

from torch import nn

from vae.models.networks import Depth, LatentDim, Width
from vae.models.vae import VAE


class FullyConnectedVAE(VAE):
    """A VAE with `depth` hidden layers of `width` units in the encoder and in the decoder.

    Both numbers are kept for conf/model/mlp.yaml, whose encoder and decoder take them from here
    unless they are given their own; everything else, `settings` too, is VAE's.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        latent_dim: LatentDim,
        depth: Depth,
        width: Width | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(encoder, decoder, latent_dim, **settings)
        self.depth, self.width = depth, width
