"""Both ends of a file: images in [0, 1] to input codes, output codes to scores and probabilities."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qpatch.errors import InputError, ParameterError
from qpatch.quant.tflite import graph as ir


@dataclass(frozen=True)
class Input:
    """How images become input codes: code = floor(real / scale + zero + 1/2), clipped, as paper C's code does it.

    Attributes:
        low, high: the real values that the pixels 0 and 1 stand for.
        scale, zero: of the input tensor; scale 0 stands for a float input, which takes the real values themselves.
        bounds: smallest and largest code.
        shape: C, H, W.
    """

    low: float
    high: float
    scale: float
    zero: int
    bounds: tuple[int, int]
    shape: tuple[int, int, int]

    def codes(self, images: Tensor) -> Tensor:
        """Codes of images, float32 whole numbers (real values for a float input), N×C×H×W.

        Raises:
            InputError: the images have another size than the network's.
        """
        if tuple(images.shape[1:]) != self.shape:
            got = tuple(images.shape[1:])
            raise InputError(f"this network takes images of C×H×W {self.shape}, got {got}; resize them.")
        if not self.scale:
            return self._real(images.detach())
        codes = torch.floor(self._real(images.detach().double()) / self.scale + (self.zero + 0.5))
        return codes.clamp_(*self.bounds).float()

    def received(self, images: Tensor) -> Tensor:
        """The images that the codes stand for, float32 in image units: what the network really sees."""
        codes = self.codes(images)
        if not self.scale:
            return images.detach().clone()
        return (((codes.double() - self.zero) * self.scale - self.low) / (self.high - self.low)).float()

    def relative(self, images: Tensor) -> Tensor:
        """Codes minus zero point; the gradient passes straight through rounding and clipping."""
        exact = self.codes(images) - self.zero
        if torch.is_grad_enabled() and images.requires_grad:
            real = images * ((self.high - self.low) / self.scale)
            exact = exact + (real - real.detach())
        return exact

    def _real(self, images: Tensor) -> Tensor:
        if (self.low, self.high) == (0.0, 1.0):
            return images
        return images * (self.high - self.low) + self.low


def input_of(tensor: ir.Tensor, input_range: tuple[float, float] | None = None) -> Input:
    """How the input tensor of a file takes images in [0, 1].

    Args:
        tensor: int8, uint8, int16 or float32, 1×H×W×C.
        input_range: the real values that pixels 0 and 1 stand for. None decides by the interval that the codes cover:
            up to more than 2, the network was made for 0…255 and images are multiplied by 255; an 8-bit interval
            around 0 of about −1…1 takes −1…1; everything else, symmetric int16 and float included, takes 0…1.

    Raises:
        ParameterError: `input_range` is not a pair of increasing numbers.
        InputError: an interval that tells nothing, as from −123 to 151; the message asks for `input_range`.
    """
    height, width, channels = tensor.shape[1:]
    shape = (channels, height, width)
    if tensor.dtype == "float32":
        scale, zero, bounds = 0.0, 0, (0, 0)
        low, high = input_range or (0.0, 1.0)
    else:
        scale, zero, bounds = tensor.step, tensor.offset, tensor.range
        low, high = input_range or _guess([scale * (bound - zero) for bound in bounds], tensor.dtype)
    if not low < high:
        raise ParameterError(f"input_range must be two increasing numbers, for the pixels 0 and 1, got {low}, {high}.")
    return Input(float(low), float(high), scale, zero, bounds, shape)


def _guess(interval: list[float], dtype: str) -> tuple[float, float]:
    low, high = interval
    if high > 2:
        if low < -0.1 * high and dtype != "int16":
            raise InputError(
                f"the input of this .tflite covers {low:.4g} to {high:.4g}, which does not tell what a pixel of 0 or 1 "
                "becomes; pass input_range=(real value of 0, real value of 1)."
            )
        return 0.0, 255.0
    return (-1.0, 1.0) if dtype != "int16" and low < -0.5 else (0.0, 1.0)


def dequantize(codes: Tensor, tensor: ir.Tensor) -> Tensor:
    """Real values, float32, of codes (whole numbers of any type); float tensors pass."""
    if tensor.dtype == "float32":
        return codes.float()
    return ((codes.double() - tensor.offset) * tensor.step).float()
