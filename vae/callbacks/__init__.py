"""The pictures of a run, one file each."""

from vae.callbacks.chain_video import ChainVideo
from vae.callbacks.elbo_curves import ELBOCurves
from vae.callbacks.figure import FigureCallback
from vae.callbacks.posterior_collapse import PosteriorCollapse
from vae.callbacks.prior_samples import PriorSamples
from vae.callbacks.reconstructions import Reconstructions

__all__ = [
    "ChainVideo",
    "ELBOCurves",
    "FigureCallback",
    "PosteriorCollapse",
    "PriorSamples",
    "Reconstructions",
]
