"""The same quantized network with finer codes: a control that separates rounding from all else that a policy does.

A fine-tuned network differs from the float one in two ways: its weights have moved, and its arithmetic is coarse. With
sixteen bits over the same ranges only the first is left.
"""

from __future__ import annotations

import copy

import torch
from torch import nn

from qpatch.errors import ParameterError
from qpatch.quant.multibit import QuantizedLayer
from qpatch.quant.quantizers import BinaryConnectWeight, Quantizer


def widened(view: nn.Module, bits: int = 16) -> nn.Module:
    """A copy of a quantized view whose weights and activations have `bits` bits over the same ranges.

    The rounding of the image itself, in the first layer, stays as it is. BatchNorm, clipping and the transformation of
    the weights (DoReFa's tanh) stay as well.

    Args:
        view: of a `MultiBit`; it is not changed, and the copy shares nothing with it.
        bits: the finer width, at most 16.

    Returns:
        A module in eval mode.

    Raises:
        ParameterError: BinaryConnect, whose signs have no finer version, or fewer bits than the view has.
    """
    fine = copy.deepcopy(view)
    layers = [module for module in fine.modules() if isinstance(module, QuantizedLayer)]
    for number, layer in enumerate(layers):
        _widen(layer.weight_quantizer, bits)
        if number > 0:
            _widen(layer.input_quantizer, bits)
        layer._kept_for = None
    return fine.eval()


@torch.no_grad()
def _widen(quantizer: Quantizer, bits: int) -> None:
    if isinstance(quantizer, BinaryConnectWeight):
        raise ParameterError("BinaryConnect keeps the signs of the weights only; there is no finer version of them.")
    if bits < quantizer.bits:
        raise ParameterError(f"the view has {quantizer.bits} bits; {bits} would be coarser, not finer.")
    before = quantizer.limits
    quantizer.bits, quantizer._limits = bits, None
    finer = before[1] / quantizer.limits[1]
    quantizer.scale.mul_(finer)
    quantizer.zero.div_(finer).round_()
