"""PixelCNN (van den Oord et al. 2016): the probability of every byte of an image, given the bytes before it.

Bytes are ordered row by row, pixel by pixel, and red, green, blue inside a pixel. Every feature belongs to one of
the three colours; masked weights keep it from seeing its own byte (mask A, first layer) or a later one (mask B).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

COLOURS = 3
LEVELS = 256


def colour_of(features: int) -> Tensor:
    """Which colour each of `features` belongs to: int64, first all of red, then green, then blue."""
    return torch.arange(features) * COLOURS // features


class MaskedConv(nn.Module):
    """A convolution that sees the rows above, the pixels to the left, and of its own pixel the colours that come first.

    The rows below are not masked but left out: the weight has size // 2 + 1 rows.

    Args:
        channels_in, channels: numbers of features, divided among the colours by `colour_of`.
        size: odd width of the kernel.
        own: whether a feature may see its own colour in its own pixel (mask B) or not (mask A).
    """

    def __init__(self, channels_in: int, channels: int, size: int, own: bool):
        super().__init__()
        self.reach = size // 2
        self.weight = nn.Parameter(torch.empty(channels, channels_in, self.reach + 1, size))
        self.bias = nn.Parameter(torch.zeros(channels))
        mask = torch.ones(self.weight.shape)
        mask[:, :, -1, self.reach + 1 :] = 0
        target, source = colour_of(channels)[:, None], colour_of(channels_in)[None]
        mask[:, :, -1, self.reach] = (target >= source if own else target > source).float()
        self.register_buffer("mask", mask, persistent=False)
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))

    def kernel(self) -> tuple[Tensor, Tensor]:
        """The weight with zeros where the mask forbids, and the bias."""
        return self.weight * self.mask, self.bias

    def forward(self, x: Tensor) -> Tensor:
        reach = self.reach
        return F.conv2d(F.pad(x, (reach, reach, reach, 0)) if reach else x, *self.kernel())


class LevelConv(MaskedConv):
    """The last 1×1 convolution: 256 logits per colour, each a sum of cosines over the levels.

    Its parameters are the amplitudes of 256 cosines, the lower frequencies in larger units. Any weight can be written
    so; but one step of an optimizer now moves neighbouring levels together, and a distribution that is a bell around
    a prediction is learnt in hundreds of steps instead of many thousands.

    Args:
        channels_in: number of features.
        unit: of the lowest frequency; that of frequency k is unit / k.
    """

    def __init__(self, channels_in: int, unit: float = 200.0):
        super().__init__(channels_in, COLOURS * LEVELS, 1, own=True)
        levels, frequency = torch.arange(LEVELS)[:, None] + 0.5, torch.arange(LEVELS)
        cosines = torch.cos(math.pi / LEVELS * levels * frequency) * unit / frequency.clamp(min=1)
        self.register_buffer("cosines", cosines, persistent=False)
        nn.init.zeros_(self.weight)  # every byte starts with the uniform distribution

    def kernel(self) -> tuple[Tensor, Tensor]:
        amplitudes, bias = super().kernel()
        weight = (self.cosines @ amplitudes.view(COLOURS, LEVELS, -1)).reshape(amplitudes.shape)
        return weight, (bias.view(COLOURS, LEVELS) @ self.cosines.T).flatten()


class Residual(nn.Module):
    """van den Oord et al. 2016, figure 5: 2h → h by 1×1, h → h by 3×3, h → 2h by 1×1, added to the input."""

    def __init__(self, hidden: int):
        super().__init__()
        self.narrow = MaskedConv(2 * hidden, hidden, 1, own=True)
        self.spatial = MaskedConv(hidden, hidden, 3, own=True)
        self.widen = MaskedConv(hidden, 2 * hidden, 1, own=True)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.widen(F.relu(self.spatial(F.relu(self.narrow(F.relu(x))))))


class PixelCNN(nn.Module):
    """p(image) = Π p(byte | bytes before it), each factor a softmax over 256 levels.

    Args:
        hidden: h of the source; the trunk has 2h features.
        blocks: residual blocks after the 7×7 convolution.

    Source:
        van den Oord, Kalchbrenner, Kavukcuoglu 2016, "Pixel Recurrent Neural Networks", section 3.5 and table 1.
    """

    def __init__(self, hidden: int = 32, blocks: int = 4):
        super().__init__()
        self.hidden = hidden
        self.first = MaskedConv(COLOURS, 2 * hidden, 7, own=False)
        self.blocks = nn.ModuleList(Residual(hidden) for _ in range(blocks))
        self.head = MaskedConv(2 * hidden, 2 * hidden, 1, own=True)
        self.out = LevelConv(2 * hidden)

    def features(self, images: Tensor) -> Tensor:
        """What the head reads: (N, 3, H, W) in [0, 1] → (N, 2h, H, W)."""
        x = self.first(2 * images - 1)
        for block in self.blocks:
            x = block(x)
        return x

    def classify(self, features: Tensor) -> Tensor:
        """Features (N, 2h, H, W) → logits (N, H, W, 3, 256): one softmax per byte, along the last axis."""
        logits = self.out(F.relu(self.head(F.relu(features))))
        return logits.permute(0, 2, 3, 1).unflatten(3, (COLOURS, LEVELS))

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) in [0, 1] on the 8-bit lattice → logits (N, H, W, 3, 256) of every byte."""
        return self.classify(self.features(images))
