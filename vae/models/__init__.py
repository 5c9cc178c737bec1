"""The networks and what is trained: plain PyTorch."""

from vae.models.convolutional import ConvDecoder, ConvEncoder
from vae.models.elbo import ELBOTerms
from vae.models.fully_connected import FullyConnectedVAE
from vae.models.likelihoods import Bernoulli, Gaussian, Likelihood
from vae.models.networks import Decoder, Encoder
from vae.models.objectives import ELBO, IWAE, BetaELBO, FreeBits, PathELBO
from vae.models.vae import VAE, count_parameters

__all__ = [
    "ELBO",
    "IWAE",
    "VAE",
    "Bernoulli",
    "BetaELBO",
    "ConvDecoder",
    "ConvEncoder",
    "Decoder",
    "ELBOTerms",
    "Encoder",
    "FreeBits",
    "FullyConnectedVAE",
    "Gaussian",
    "Likelihood",
    "PathELBO",
    "count_parameters",
]
