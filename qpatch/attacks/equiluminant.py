"""LaVAN in one shade of grey: colourful for a network, flat for whoever looks at brightness alone."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from qpatch.attacks.lavan import LaVAN
from qpatch.attacks.patch import Patch, round_to_bytes
from qpatch.errors import ParameterError

LUMA = (0.299, 0.587, 0.114)
"""Brightness of red, green and blue (ITU-R BT.601), the weights of the usual conversion to grey."""


class Equiluminant(LaVAN):
    """A patch of which every pixel has the same brightness, so that its grey picture has no entropy: it knows Jedi.

    The adaptive patches of Jedi's authors lower the entropy by taking colours away; this one keeps all colours of one
    brightness. A straight-through gradient alone (`Defended`) does not find such patches. Source: this project.

    Args (beyond LaVAN's):
        grey: the brightness, between 0 and 1; the centre of one of Jedi's grey levels is safest.

    Raises:
        ParameterError: a brightness outside (0, 1).

    Example:
        >>> patch = Equiluminant(net.at(32), patch_size=6, grey=0.58, steps=200).fit(images, labels)
    """

    def __init__(self, net: nn.Module, patch_size: int | tuple[int, int] = 6, *, grey: float = 0.58, **options) -> None:
        super().__init__(net, patch_size, **options)
        if not 0 < grey < 1:
            raise ParameterError(f"the brightness lies between 0 and 1, got {grey!r}.")
        self.grey = grey

    def render(self, images: Tensor, pixels: Tensor, places: Tensor, generator: torch.Generator) -> Tensor:
        return super().render(images, equal_luma(pixels, self.grey), places, generator)

    def fit(self, images: Tensor, labels: Tensor) -> Patch:
        patch = super().fit(images, labels)
        return replace(patch, pixels=self._finished(patch.pixels) * patch.mask)

    def fit_each(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        pixels, places = super().fit_each(images, labels)
        return self._finished(pixels), places

    def made_on(self) -> dict:
        return {**super().made_on(), "grey": self.grey}

    def _score(self, pixels: Tensor, images: Tensor, labels: Tensor, places: Tensor) -> Tensor:
        return super()._score(self._finished(pixels), images, labels, places)

    def _finished(self, pixels: Tensor) -> Tensor:
        pixels = equal_luma(pixels, self.grey)
        return round_to_bytes(pixels) if self.rounded else pixels


def equal_luma(pixels: Tensor, grey: float) -> Tensor:
    """The pixels at brightness `grey`: their deviation from grey kept, or shortened until the colour exists.

    Args:
        pixels: (..., 3, h, w) in [0, 1]; the result is differentiable in them.
        grey: between 0 and 1.

    Returns:
        pixels in [0, 1] of the same shape.
    """
    luma = (pixels * torch.tensor(LUMA, device=pixels.device).view(3, 1, 1)).sum(-3, keepdim=True)
    colour = pixels - luma
    room = torch.where(colour > 0, (1 - grey) / colour.clamp(min=1e-6), grey / (-colour).clamp(min=1e-6))
    return (grey + room.amin(-3, keepdim=True).clamp(max=1) * colour).clamp(0, 1)
