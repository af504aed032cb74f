"""TFLite Micro's integer softmax: fixed-point exponentials for int8, interpolated tables for int16.

The algorithms are those of kernels/internal/reference/softmax.h and of gemmlowp's fixedpoint.h; every exponential
that an int8 network can need is one of 256, so it is computed once.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from qpatch.quant.tflite import graph as ir
from qpatch.quant.tflite.fixedpoint import divide_by_power, high_product, multiply_twice_rounded, quantize_multiplier

_ONE = 2**31 - 1  # the largest number below 1 with 31 fractional bits
# exp(−2^k) for k = −2 … 4, with 31 fractional bits
_POWERS = (1672461947, 1302514674, 790015084, 290630308, 39332535, 720401, 242)


def exponential(x: Tensor) -> Tensor:
    """exp of int64 numbers ≤ 0 with 26 fractional bits; the result has 31."""
    quarter = 1 << 24
    part = (x & (quarter - 1)) - quarter  # in [−1/4, 0)
    a = (part << 5) + (1 << 28)  # Taylor series around −1/8
    a2 = high_product(a, a)
    a3, a4 = high_product(a2, a), high_product(a2, a2)
    rest = divide_by_power(high_product(divide_by_power(a4, 2) + a3, 715827883) + a2, 1)
    result = 1895147668 + high_product(a + rest, 1895147668)
    for bit, power in enumerate(_POWERS):
        result = torch.where((part - x) >> (24 + bit) & 1 == 1, high_product(result, power), result)
    return torch.where(x == 0, _ONE, result)


def reciprocal(total: Tensor) -> tuple[Tensor, Tensor]:
    """1 / total for sums with 12 integer bits: a factor with 31 fractional bits and the bits of its exponent."""
    headroom = 32 - _bit_length(total)
    half = ((total << headroom) - (1 << 31) + _ONE + 1) >> 1  # (1 + x) / 2, where total = (1 + x) · 2^k
    x = 1515870810 + high_product(half, -1010580540)  # 48/17 − 32/17 · half, then three steps of Newton
    for _ in range(3):
        x = x + (high_product(x, (1 << 29) - high_product(half, x)) << 2)
    return (x << 1).clamp_max(_ONE), 12 - headroom


def _bit_length(x: Tensor) -> Tensor:
    return torch.frexp(x.double()).exponent.long()


class Softmax(nn.Module):
    """SOFTMAX of N×classes; gives code − zero point of probabilities with scale 1/256 (int8) or 1/32768 (int16)."""

    def __init__(self, op: ir.Op, tensors: tuple[ir.Tensor, ...]):
        super().__init__()
        source = tensors[op.inputs[0]]
        self.wide = source.dtype == "int16"
        beta = float(np.float32(op.options["beta"]))
        self.slope, self.size = source.step * beta, 32768 if self.wide else 256
        if self.wide:
            self.factor = quantize_multiplier(source.step * beta / (10.0 / 65535.0))
            self.register_buffer("exponentials", _table(np.exp, -10.0, 0.0))
            self.register_buffer("reciprocals", _table(lambda x: 1 / (1 + x), 0.0, 1.0))
        else:
            multiplier, shift = quantize_multiplier(min(beta * source.step * 2**26, 2.0**31 - 1))
            differences = torch.arange(-255, 1)
            values = exponential(high_product(differences << shift, multiplier))
            least = -((31 << 26) >> shift)
            self.register_buffer("exponentials", torch.where(differences >= least, values, 0))

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            difference = (x - x.amax(-1, keepdim=True)).long()
            exact = (self._wide(difference) if self.wide else self._narrow(difference)).float()
        if torch.is_grad_enabled() and x.requires_grad:
            real = torch.softmax(x * self.slope, -1) * self.size
            exact = exact + (real - real.detach())
        return exact

    def _narrow(self, difference: Tensor) -> Tensor:
        values = self.exponentials[difference + 255]
        factor, bits = reciprocal(divide_by_power(values, 12).sum(-1, keepdim=True))
        return divide_by_power(high_product(values, factor), bits + 23).clamp(0, 255)

    def _wide(self, difference: Tensor) -> Tensor:
        scaled = multiply_twice_rounded(difference, *self.factor) + 32767
        values = _look_up(self.exponentials, scaled.clamp(-32768, 32767))
        total = values.sum(-1, keepdim=True)
        headroom = 32 - _bit_length(total)
        shifted = ((total << (headroom - 1)) + (1 << 13)) >> 14
        factor = _look_up(self.reciprocals, (shifted - (1 << 15) - (1 << 16)).clamp(-32768, 32767))
        shift = 31 - headroom
        return ((values * factor + (1 << (shift - 1))) >> shift).clamp(0, 32767)


def _table(function, low: float, high: float) -> Tensor:
    """513 samples of a function on [low, high] with 15 fractional bits, moved to halve the error between samples."""
    at = np.float32(low) + np.arange(513, dtype=np.float32) * np.float32((high - low) / 512)
    values = (function(at) * np.float32(32768)).astype(np.float32)
    middle = np.float32(high - low) / np.float32(1024)
    halfway = (function(at[:-1] + middle) * np.float32(32768)).astype(np.float32)
    samples = _round(values)
    error = _round((values[1:] + samples[:-1]) / 2) - _round(halfway)
    samples[:-1] -= _round(error / 2)
    return torch.from_numpy(samples.clip(-32768, 32767)).long()


def _round(x: np.ndarray) -> np.ndarray:
    """To the nearest whole number, halves away from zero."""
    return np.trunc(x + np.copysign(np.float32(0.5), x))


def _look_up(table: Tensor, x: Tensor) -> Tensor:
    index, offset = 256 + (x >> 7), x & 127
    return table[index] + (((table[index + 1] - table[index]) * offset + 64) >> 7)
