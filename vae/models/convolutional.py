"""Convolutional encoder and decoder: each convolution halves or doubles the side of the image.

Residual blocks work on the smallest maps; fully connected layers between these and the latents see
the whole image. The contract of encoder and decoder is that of `vae.models.networks`.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Annotated

from annotated_types import Ge, Le, Len, doc
from torch import Tensor, nn

from vae.models.networks import (
    ACTIVATIONS,
    MNIST_SHAPE,
    OUTPUTS,
    Activation,
    ImageShape,
    LatentDim,
    LogSdRange,
    Output,
    Width,
    Widths,
    mlp,
    soft_clamp,
)

Channels = Annotated[
    Sequence[Width],
    Len(1, 2),
    doc("a list of one or two numbers of channels up to 8192, such as [32,32]"),
]
Blocks = Annotated[int, Ge(0), Le(100)]


class ConvEncoder(nn.Module):
    """Convolutions to `channels`, residual `blocks`, fully connected `hidden` layers.

    `log_sd_range` is that of `Encoder`. Raises ValueError for an image that cannot be halved as
    often as there are channels.
    """

    def __init__(
        self,
        latent_dim: LatentDim,
        channels: Channels = (32, 32),
        blocks: Blocks = 2,
        hidden: Widths = (300,),
        activation: Activation = "silu",
        log_sd_range: LogSdRange = None,
        image_shape: ImageShape = MNIST_SHAPE,
    ) -> None:
        super().__init__()
        self.latent_dim = latent_dim
        maps = smallest_maps(channels[-1], len(channels), image_shape)
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise([image_shape[0], *channels]):
            layers += [
                nn.Conv2d(before, after, 4, stride=2, padding=1),
                ACTIVATIONS[activation](),
            ]
        # before the last activation
        layers[-1:-1] = [Residual(channels[-1], activation) for _ in range(blocks)]
        head = mlp([math.prod(maps), *hidden, 2 * latent_dim], activation)
        self.layers = nn.Sequential(*layers, nn.Flatten(), head)
        self.log_sd_range = log_sd_range

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_sd = self.layers(x).chunk(2, dim=-1)  # [B, m] each
        return mean, soft_clamp(log_sd, self.log_sd_range)


class ConvDecoder(nn.Module):
    """Fully connected `hidden` layers, residual `blocks`, then from `channels` up to the image.

    A doubling is a convolution to four times the channels, rearranged to 2 x 2 pixels (Shi et al.
    2016, arXiv:1609.05158), so that every pixel gets as many terms as its neighbours. Enlarging
    first would take about twice the time a step; transposed convolutions (280.9 against 280.3 nats
    after 5 epochs, one seed) do as well. `output` is that of `Decoder`.
    """

    def __init__(
        self,
        latent_dim: LatentDim,
        channels: Channels = (32, 32),
        blocks: Blocks = 2,
        hidden: Widths = (300,),
        activation: Activation = "silu",
        output: Output = "linear",
        image_shape: ImageShape = MNIST_SHAPE,
    ) -> None:
        super().__init__()
        self.latent_dim = latent_dim
        maps = smallest_maps(channels[0], len(channels), image_shape)
        layers: list[nn.Module] = [
            mlp([latent_dim, *hidden, math.prod(maps)], activation),
            nn.Unflatten(1, maps),
        ]
        layers += [Residual(channels[0], activation) for _ in range(blocks)]
        for before, after in itertools.pairwise([*channels, image_shape[0]]):
            layers += [
                ACTIVATIONS[activation](),
                nn.Conv2d(before, 4 * after, 3, padding=1),
                PixelShuffle2(),
            ]
        self.layers = nn.Sequential(*layers, OUTPUTS[output]())

    def forward(self, z: Tensor) -> Tensor:
        return self.layers(z)  # [B, C, H, W]


class Residual(nn.Module):
    """x + convolution(activation(x)) for maps [B, C, h, w] (He et al. 2016, arXiv:1603.05027)."""

    def __init__(self, channels: int, activation: Activation) -> None:
        super().__init__()
        self.change = nn.Sequential(
            ACTIVATIONS[activation](), nn.Conv2d(channels, channels, 3, padding=1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.change(x)


class PixelShuffle2(nn.Module):
    """[B, 4 C, h, w] to [B, C, 2 h, 2 w].

    As nn.PixelShuffle(2), whose gradient fails for an empty batch.
    """

    def forward(self, x: Tensor) -> Tensor:
        images, channels, height, width = x.shape
        x = x.reshape(images, channels // 4, 2, 2, height, width).permute(0, 1, 4, 2, 5, 3)
        return x.flatten(4, 5).flatten(2, 3)


def smallest_maps(channels: int, halvings: int, image_shape: Sequence[int]) -> tuple[int, int, int]:
    """[channels, h, w] after so many halvings; ValueError where 2**halvings does
    not divide a side."""
    _, height, width = image_shape
    if height % 2**halvings or width % 2**halvings:
        raise ValueError(
            f"channels: {height}x{width} pixels cannot be halved {halvings} times; give fewer"
        )
    return channels, height >> halvings, width >> halvings
