"""The operations of an integer network on batches, bit for bit as TFLite Micro's reference kernels.

Every activation is a float32 tensor of whole numbers, code − zero point, N×C×H×W or N×C. Sums of products of such
numbers are exact in float32 below 2^24 in whatever order they are added, and in float64 below 2^53, so a float
convolution is an integer convolution, for any batch size. Each layer checks its bounds when it is built. Rounding
passes gradients straight through, so the same layers serve white-box attacks.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qpatch.errors import InputError
from qpatch.quant.tflite import graph as ir
from qpatch.quant.tflite.fixedpoint import multipliers
from qpatch.quant.tflite.staircase import Staircase

EXACT32 = 2**24


def code_range(tensor: ir.Tensor, activation: str = "NONE") -> tuple[int, int]:
    """Smallest and largest code − zero point that an operation with this fused activation can write."""
    low, high = (bound - tensor.offset for bound in tensor.range)
    if activation in ("RELU", "RELU6"):
        low = max(low, 0)
    if activation == "RELU6":
        high = min(high, math.floor(6 / tensor.step + 0.5))
    elif activation not in ("NONE", "RELU"):
        raise InputError(f"the emulator does not know the fused activation {activation}; use engine='litert'.")
    return low, high


def same_padding(size: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    """TensorFlow's SAME padding along one dimension: before and after, the odd pixel after."""
    total = max((-(-size // stride) - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
    return total // 2, total - total // 2


class Product(nn.Module):
    """CONV_2D, DEPTHWISE_CONV_2D and FULLY_CONNECTED: sum of products, then requantization.

    int16 activations are split into 256 · high + low, one exact float32 convolution each.
    """

    def __init__(self, op: ir.Op, tensors: tuple[ir.Tensor, ...]):
        super().__init__()
        source, weights, target = tensors[op.inputs[0]], tensors[op.inputs[1]], tensors[op.output]
        if (weights.zero != 0).any():
            raise InputError(f"the weights {weights.name!r} have a zero point other than 0; use engine='litert'.")
        codes = torch.from_numpy(weights.data.astype("float32"))
        self.linear = op.kind == "FULLY_CONNECTED"
        if not self.linear:
            depthwise = op.kind == "DEPTHWISE_CONV_2D"
            codes = codes.permute(3, 0, 1, 2) if depthwise else codes.permute(0, 3, 1, 2)
            self.groups = source.shape[3] // codes.shape[1]
            self.stride, self.dilation = op.options["stride"], op.options["dilation"]
            sides = [(0, 0), (0, 0)]
            if op.options["padding"] == "SAME":
                sizes = zip(source.shape[1:3], codes.shape[2:], self.stride, self.dilation, strict=True)
                sides = [same_padding(*size) for size in sizes]
            even = all(before == after for before, after in sides)
            self.padding = tuple(before for before, _ in sides) if even else (0, 0)
            self.ahead = None if even else (*sides[1], *sides[0])
            codes = codes.contiguous(memory_format=torch.channels_last)
        self.wide = source.dtype == "int16"
        least, most = _bounds(codes.flatten(1), *code_range(source))
        part = _bounds(codes.flatten(1), -128, 255) if self.wide else (least, most)
        self.in_float64 = int(torch.stack(part).abs().max()) >= EXACT32
        self.register_buffer("weight", codes.double() if self.in_float64 else codes)
        channels = len(codes)
        bias = torch.zeros(channels, dtype=torch.int64)
        if len(op.inputs) > 2 and op.inputs[2] >= 0:
            bias = torch.from_numpy(tensors[op.inputs[2]].data.astype("int64"))
        scales = weights.scale.astype("float64").tolist() * (channels if len(weights.scale) == 1 else 1)
        factors = multipliers(source.step * scale / target.step for scale in scales)
        low, high = code_range(target, op.options["activation"])
        self.steps = Staircase(*factors, bias, low, high, least, most, once=self.wide, rank=2 if self.linear else 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.steps(self.accumulate(x))

    def accumulate(self, x: Tensor) -> Tensor:
        """The accumulators without bias: float32 or float64 of whole numbers."""
        if not self.linear and self.ahead:
            x = F.pad(x, self.ahead)
        if self.in_float64:
            return self._sum(x.double())
        if not self.wide:
            return self._sum(x)
        with torch.no_grad():
            upper = torch.floor(x * (1 / 256))
            low = self._sum(torch.sub(x, upper, alpha=256)).double()
            total = low.add_(self._sum(upper), alpha=256)
        if torch.is_grad_enabled() and x.requires_grad:
            real = self._sum(x)
            total = total + (real - real.detach())
        return total

    def _sum(self, x: Tensor) -> Tensor:
        if self.linear:
            return F.linear(x, self.weight)
        return F.conv2d(x, self.weight, None, self.stride, self.padding, self.dilation, self.groups)


def _bounds(weights: Tensor, low: int, high: int) -> tuple[Tensor, Tensor]:
    """The least and largest sum of products of each row of weights with codes from low to high (low ≤ 0 ≤ high)."""
    positive, negative = weights.clamp_min(0).double().sum(1).long(), weights.clamp_max(0).double().sum(1).long()
    return low * positive + high * negative, high * positive + low * negative
