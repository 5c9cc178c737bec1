"""Fully connected encoder and decoder, and the contract that any others keep.

An encoder is a module from images [B, C, H, W] to (mean, log_sd), each [B, m]. A decoder is a
module from latents [B, m] to [B, C, H, W]: for a Gaussian likelihood the mean image. B images, m
latents.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Le, Len, MaxLen, Predicate, doc
from torch import Tensor, nn
from torch.nn import functional as F

MNIST_SHAPE = (1, 28, 28)  # channels, height, width

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "tanh": nn.Tanh,
}
Activation = Literal["relu", "leaky_relu", "elu", "silu", "gelu", "tanh"]
Output = Literal["linear", "sigmoid", "auto"]
OUTPUTS: dict[str, type[nn.Module]] = {"linear": nn.Identity, "sigmoid": nn.Sigmoid}

# Types of arguments, with the bounds that settings are checked against.
LatentDim = Annotated[int, Ge(1), Le(4096)]
Width = Annotated[int, Ge(1), Le(8192)]
Depth = Annotated[int, Ge(0), Le(16)]
Widths = Annotated[
    Sequence[Width],
    MaxLen(16),
    doc("a list of at most 16 layer widths up to 8192, such as [512,256]; [] for none"),
]
Side = Annotated[int, Ge(1), Le(4096)]
ImageShape = Annotated[
    Sequence[Side],
    Len(3, 3),
    Predicate(lambda shape: math.prod(shape) <= 2**22),
    doc("[channels,height,width], up to 4 million values per image"),
]
End = Annotated[float, Ge(-50), Le(50)]
LogSdRange = Annotated[
    Annotated[tuple[End, End], Predicate(lambda ends: ends[0] < ends[1])] | None,
    doc("[low,high] with low < high, or null"),
]


class Encoder(nn.Module):
    """Fully connected encoder; without a hidden layer it is the baseline's.

    Its hidden layers are either `hidden`, a width each, or `depth` layers of one `width`.
    `log_sd_range` = (low, high) bounds the log standard deviation softly; None leaves it as the
    last layer gives it.
    """

    def __init__(
        self,
        latent_dim: LatentDim,
        hidden: Widths = (),
        activation: Activation = "relu",
        log_sd_range: LogSdRange = None,
        image_shape: ImageShape = MNIST_SHAPE,
        depth: Depth = 0,
        width: Width | None = None,
    ) -> None:
        super().__init__()
        hidden = hidden_widths(hidden, depth, width)
        self.latent_dim = latent_dim
        self.layers = mlp([math.prod(image_shape), *hidden, 2 * latent_dim], activation)
        self.log_sd_range = log_sd_range

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log sd of q(z|x), [B, m] each, for images [B, C, H, W]."""
        mean, log_sd = self.layers(x.flatten(1)).chunk(2, dim=-1)
        return mean, self.bounded(log_sd)

    def bounded(self, log_sd: Tensor) -> Tensor:
        """Log sd within `log_sd_range`, softly."""
        return soft_clamp(log_sd, self.log_sd_range)


class Decoder(nn.Module):
    """Fully connected decoder; a sigmoid output keeps the mean image in [0, 1].

    Its hidden layers are given as an encoder's are. The output "auto" is linear without hidden
    layers, as in the baseline, and a sigmoid with some.
    """

    def __init__(
        self,
        latent_dim: LatentDim,
        hidden: Widths = (),
        activation: Activation = "relu",
        output: Output = "linear",
        image_shape: ImageShape = MNIST_SHAPE,
        depth: Depth = 0,
        width: Width | None = None,
    ) -> None:
        super().__init__()
        hidden = hidden_widths(hidden, depth, width)
        if output == "auto":
            output = "sigmoid" if hidden else "linear"
        self.latent_dim = latent_dim
        self.layers = mlp([latent_dim, *hidden, math.prod(image_shape)], activation)
        self.output = OUTPUTS[output]()
        self.image_shape = tuple(image_shape)

    def forward(self, z: Tensor) -> Tensor:
        """What p(x|z) takes, [B, C, H, W], for latents [B, m]."""
        return self.output(self.layers(z)).reshape(z.shape[0], *self.image_shape)

    @torch.no_grad()
    def start_at(self, image: Tensor) -> None:
        """Set the last layer's bias so that an image [C, H, W] in [0, 1] comes out where the hidden
        layers give 0; through a sigmoid within [0.01, 0.99]."""
        bias = image.flatten()
        if isinstance(self.output, nn.Sigmoid):
            bias = bias.clamp(0.01, 0.99).logit()
        self.layers[-1].bias.copy_(bias)  # type: ignore[operator]


def hidden_widths(hidden: Sequence[int], depth: int, width: int | None) -> list[int]:
    """The widths of the hidden layers, from `hidden` or from `depth` and `width`.

    Raises ValueError where both say something, or the depth has no width.
    """
    if depth == 0:
        return [*hidden]
    if hidden:
        raise ValueError(f"hidden={[*hidden]} and depth={depth}: give one of them")
    if width is None:
        raise ValueError(f"depth={depth} needs a width")
    return [width] * depth


def mlp(widths: Sequence[int], activation: str) -> nn.Sequential:
    """Linear layers of these widths, the activation between them and none after the last."""
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after), ACTIVATIONS[activation]()]
    return nn.Sequential(*layers[:-1])


def soft_clamp(value: Tensor, bounds: tuple[float, float] | None) -> Tensor:
    """Keep the value between (low, high): the identity well inside, with a gradient everywhere.

    None leaves it as it is.
    """
    if bounds is None:
        return value
    low, high = bounds
    value = high - F.softplus(high - value)
    return low + F.softplus(value - low)
