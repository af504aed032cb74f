"""PixelDefend (Song et al. 2018): move every byte a little, to where a PixelCNN finds the image most likely."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from qpatch.checks import check_images
from qpatch.errors import ParameterError, one_of
from qpatch.models.pixelcnn import LEVELS, PixelCNN
from qpatch.models.raster import scan

GIVEN = ("purified", "received")


@dataclass(frozen=True)
class PixelDefend:
    """Byte after byte, y_i = argmax over |v − x_i| ≤ ε of p(v | y_1, …, y_{i−1}); greedy, no byte is seen twice.

    Args:
        net: a PixelCNN in eval mode.
        eps: ε in bytes: 38 in David and Goliath, 16 in the source.
        given: what the PixelCNN sees before byte i. "purified": the bytes already chosen, algorithm 1 of the source.
            "received": the attacked bytes, all at once in one forward pass, as in ART 1.20.1's `PixelDefend`, whose
            class David and Goliath's scripts call; the noise then stays in what the choice depends on.
        batch: images that walk together, see `qpatch.models.raster.scan`.

    Raises:
        ParameterError: eps is not an int from 0 to 255, or an unknown `given`.
        InputError (on call): malformed images, images without three colours, or a network in train mode.

    Source:
        Song, Kim, Nowozin, Ermon, Kushman 2018, "PixelDefend: Leveraging Generative Models to Understand and Defend
        against Adversarial Examples", algorithm 1.

    Example:
        >>> cleaned = PixelDefend(zoo.load_pixelcnn())(images)   # float32 (N, 3, H, W) in [0, 1], on the 8-bit lattice
    """

    on_bytes: ClassVar[bool] = True
    """All that counts of an image is its bytes."""

    net: PixelCNN
    eps: int = 38
    given: str = "purified"
    batch: int = 128

    def __post_init__(self):
        if not isinstance(self.eps, int) or not 0 <= self.eps < LEVELS:
            raise ParameterError(f"eps of PixelDefend is a number of bytes, an int from 0 to 255, got {self.eps!r}.")
        one_of(self.given, GIVEN, "conditioning of PixelDefend")

    def __call__(self, images: Tensor) -> Tensor:
        check_images(images)
        received = (images * 255).round().byte()
        purified = self._greedy(received) if self.given == "purified" else self._at_once(received)
        return purified.float() / 255

    def _greedy(self, received: Tensor) -> Tensor:
        bytes_of, near = received.permute(1, 2, 3, 0).flatten(1, 2).long(), self._near()  # colour, place, image

        def choose(logits: Tensor, first: int, place: int, colour: int) -> Tensor:
            return (logits + near[bytes_of[colour, place, first : first + len(logits)]]).argmax(1)

        return scan(self.net, received, choose, self.batch)

    def _at_once(self, received: Tensor) -> Tensor:
        parts, near = [], self._near()
        with torch.no_grad():
            for part in received.split(16):  # 256 logits per byte are many
                there = part.permute(0, 2, 3, 1).long()
                parts.append((self.net(part.float() / 255) + near[there]).argmax(-1).permute(0, 3, 1, 2))
        return torch.cat(parts).byte()

    def _near(self) -> Tensor:
        """What is added to the logits of a byte of level i, row i: 0 within eps of it, −∞ beyond; (256, 256)."""
        levels = torch.arange(LEVELS)
        return torch.zeros(LEVELS, LEVELS).masked_fill_((levels[:, None] - levels).abs() > self.eps, -torch.inf)
