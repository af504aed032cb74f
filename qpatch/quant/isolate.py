"""Take a quantized view apart: which part of quantization does what? A control for every claim about bit-widths."""

from __future__ import annotations

import copy

from torch import Tensor, nn

from qpatch.errors import one_of
from qpatch.quant.multibit import QuantizedLayer
from qpatch.quant.quantizers import Float, Quantizer

PARTS = ("everything", "weights", "clipping")


class Clip(nn.Module):
    """Clips to the range of a quantizer without rounding: what is left of it with unlimited precision.

    Args:
        quantizer: its calibrated range is taken over; one range per tensor.
    """

    def __init__(self, quantizer: Quantizer):
        super().__init__()
        low, high = quantizer.limits
        scale, zero = quantizer.scale.detach(), quantizer.zero
        self.register_buffer("low", (low - zero) * scale)
        self.register_buffer("high", (high - zero) * scale)

    def forward(self, x: Tensor) -> Tensor:
        return x.clamp(self.low, self.high)


def isolate(view: nn.Module, part: str) -> nn.Module:
    """A copy of a quantized view in which only one part of the quantization is left.

    Args:
        view: of a `MultiBit`; it is not changed, and the copy shares nothing with it.
        part: "everything" (the view itself, copied), "weights" (activations stay float), or "clipping" (float
            weights, and activations clipped to their calibrated range but not rounded).

    Returns:
        A module in eval mode.

    Raises:
        ParameterError: unknown part.
    """
    one_of(part, PARTS, "part")
    alone = copy.deepcopy(view)
    for layer in [module for module in alone.modules() if isinstance(module, QuantizedLayer)]:
        if part == "weights":
            layer.input_quantizer = Float(8, channels=None)
        elif part == "clipping":
            layer.input_quantizer = Clip(layer.input_quantizer)
            layer.weight_quantizer = Float(8, channels=1)
        layer._kept_for = None
    return alone.eval()
