"""A walk through an image in the order of a PixelCNN, byte after byte, at about the cost of one forward pass.

A new byte changes only what comes after it. So a pixel's features are computed once, when all before it is settled:
what a convolution gets from earlier pixels is one product with kept features, and inside the pixel red, green and
blue follow each other. Features lie along the first axis and images along the last, so that every product is a
plain matrix product over the whole batch.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from qpatch.checks import check_eval
from qpatch.errors import InputError
from qpatch.models.pixelcnn import COLOURS, MaskedConv, PixelCNN, colour_of

Choose = Callable[[Tensor, int, int, int], Tensor]


def scan(net: PixelCNN, images: Tensor, choose: Choose, batch: int = 128) -> Tensor:
    """Replace every byte by what `choose` makes of its distribution given the bytes already replaced.

    Args:
        net: a PixelCNN in eval mode.
        images: uint8 (N, 3, H, W); not changed. `choose` may look at them or not.
        choose: called as choose(logits (n, 256), first, place, colour) with the number of the first image of its
            batch, place = row · W + column, and colour 0 to 2; returns the bytes, int64 (n,).
        batch: images that walk together.

    Returns:
        uint8 (N, 3, H, W).

    Raises:
        InputError: the network is in train mode, or the images are not uint8 with three colours.
    """
    check_eval(net)
    if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] != COLOURS:
        raise InputError(f"a scan takes uint8 images (N, 3, H, W), got {images.dtype} {tuple(images.shape)}.")
    walk, starts = _Walk(net), range(0, len(images), batch)
    with torch.inference_mode():
        parts = [walk(images[first : first + batch], choose, first) for first in starts]
    return torch.cat(parts).clone() if parts else images.clone()


def sample(net: PixelCNN, n: int, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Draw n images, byte after byte, from what the network takes images to be: uint8 (n, 3, *size)."""

    def choose(logits: Tensor, first: int, place: int, colour: int) -> Tensor:
        return torch.multinomial(logits.softmax(1), 1, generator=generator).squeeze(1)

    return scan(net, torch.zeros(n, COLOURS, *size, dtype=torch.uint8), choose)


class _Layer:
    """One masked convolution taken apart: per colour, its weights on its own pixel, and all weights on earlier pixels."""

    def __init__(self, conv: MaskedConv):
        weight, bias = (tensor.detach() for tensor in conv.kernel())
        self.reach, channels = conv.reach, conv.weight.shape[0]
        ends = [int((colour_of(channels) <= colour).sum()) for colour in range(COLOURS)]
        self.rows = [slice(start, end) for start, end in zip([0, *ends], ends)]
        centre, source = weight[:, :, -1, self.reach], colour_of(conv.weight.shape[1])
        # zeros of the mask beyond the last colour that is seen are cut off, not multiplied
        seen = [int((source <= colour).sum()) for colour in range(COLOURS)]
        self.centre = [centre[rows, :end].contiguous() for rows, end in zip(self.rows, seen)]
        self.seen = seen
        self.bias = bias[:, None]
        taps = self.reach * (conv.weight.shape[3] + 1)  # pixels of the kernel before its own, in the order of the scan
        self.earlier = weight.permute(0, 2, 3, 1).flatten(1, 2)[:, :taps].flatten(1).contiguous()

    def open(self, width: int, n: int) -> None:
        """Forget everything: the last rows of the input, padded with zeros, for n images of this width."""
        channels = self.earlier.shape[1] // (self.reach * (2 * self.reach + 2))
        self.kept = torch.zeros(self.reach + 1, width + 2 * self.reach, channels, n)

    def before(self, column: int) -> Tensor:
        """What the earlier pixels and the bias add to the output at this column: (channels, n)."""
        near = self.kept[:, column : column + 2 * self.reach + 1].flatten(0, 2)
        return torch.addmm(self.bias, self.earlier, near[: self.earlier.shape[1]])

    def keep(self, column: int, features: Tensor) -> None:
        """The input features of this column's pixel are settled."""
        self.kept[-1, column + self.reach] = features

    def next_row(self) -> None:
        self.kept = self.kept.roll(-1, 0)
        self.kept[-1] = 0

    def own(self, colour: int, features: Tensor, base: Tensor) -> Tensor:
        """The output features of one colour: its own pixel's part added to `base`."""
        return torch.addmm(base[self.rows[colour]], self.centre[colour], features[: self.seen[colour]])

    def own_by_image(self, colour: int, features: Tensor) -> Tensor:
        """The same with the bias as base, images along the first axis: (n, channels of this colour)."""
        return torch.addmm(self.bias[self.rows[colour]].T, features[: self.seen[colour]].T, self.centre[colour].T)


class _Walk:
    """A PixelCNN taken apart into `_Layer`s."""

    def __init__(self, net: PixelCNN):
        self.first, self.head, self.out = _Layer(net.first), _Layer(net.head), _Layer(net.out)
        self.blocks = [(_Layer(block.narrow), _Layer(block.spatial), _Layer(block.widen)) for block in net.blocks]
        self.spatial = [self.first, *(block[1] for block in self.blocks)]
        self.hidden = net.hidden

    def __call__(self, images: Tensor, choose: Choose, first: int) -> Tensor:
        n, _, height, width = images.shape
        done = torch.zeros(COLOURS, height, width, n, dtype=torch.uint8)
        for layer in self.spatial:
            layer.open(width, n)
        for row in range(height):
            for column in range(width):
                done[:, row, column] = self._pixel(column, n, choose, first, row * width + column)
            for layer in self.spatial:
                layer.next_row()
        return done.permute(3, 0, 1, 2)

    def _pixel(self, column: int, n: int, choose: Choose, first: int, place: int) -> Tensor:
        """Settle the three bytes of a pixel: uint8 (3, n)."""
        before = [layer.before(column) for layer in self.spatial]
        pixel, chosen = torch.zeros(COLOURS, n), torch.zeros(COLOURS, n, dtype=torch.uint8)
        trunk = [torch.empty(2 * self.hidden, n) for _ in range(len(self.blocks) + 1)]
        narrow = [torch.empty(self.hidden, n) for _ in self.blocks]
        middle, head = [torch.empty(self.hidden, n) for _ in self.blocks], torch.empty(2 * self.hidden, n)
        for colour in range(COLOURS):
            rows, half = self.first.rows[colour], self.blocks[0][0].rows[colour]
            trunk[0][rows] = self.first.own(colour, pixel, before[0])
            for index, (to_narrow, spatial, widen) in enumerate(self.blocks):
                narrow[index][half] = to_narrow.own(colour, F.relu(trunk[index]), to_narrow.bias).relu_()
                middle[index][half] = spatial.own(colour, narrow[index], before[index + 1]).relu_()
                trunk[index + 1][rows] = widen.own(colour, middle[index], widen.bias).add_(trunk[index][rows])
            head[rows] = self.head.own(colour, F.relu(trunk[-1]), self.head.bias).relu_()
            chosen[colour] = choose(self.out.own_by_image(colour, head), first, place, colour)
            pixel[colour] = chosen[colour].float() / 255 * 2 - 1
        for layer, features in zip(self.spatial, [pixel, *narrow]):
            layer.keep(column, features)
        return chosen
