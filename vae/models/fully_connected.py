"""A VAE whose encoder and decoder have one size."""

from collections.abc import Sequence

from torch import nn

from vae.models.likelihoods import Likelihood
from vae.models.networks import MNIST_SHAPE
from vae.models.vae import VAE


class FullyConnectedVAE(VAE):
    """A VAE with `depth` hidden layers of `width` units in the encoder and in the decoder.

    Both numbers are kept for conf/model/mlp.yaml, whose encoder and decoder take them from here
    unless they are given their own; everything else is VAE's.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        latent_dim: int,
        depth: int,
        width: int | None = None,
        sigma: float | None = None,
        name: str = "vae",
        likelihood: Likelihood | None = None,
        image_shape: Sequence[int] = MNIST_SHAPE,
    ) -> None:
        super().__init__(encoder, decoder, latent_dim, sigma, name, likelihood, image_shape)
        self.depth, self.width = depth, width
