"""The integer arithmetic of TFLite Micro's reference kernels, on int64 tensors.

A real factor is held as multiplier · 2^(shift − 31) with a 31-bit multiplier. int8 networks multiply and round twice
(once at 31 bits, then at −shift bits), int16 networks once, with the multiplier cut to 16 bits. The functions
follow the definitions in TensorFlow Lite Micro (kernels/internal/common.cc) and gemmlowp (fixedpoint.h).
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor


def quantize_multiplier(real: float) -> tuple[int, int]:
    """The nearest (multiplier, shift) to a positive real factor; (0, 0) for zero and for less than 2^−32."""
    if real == 0:
        return 0, 0
    fraction, shift = math.frexp(real)
    multiplier = math.floor(fraction * 2**31 + 0.5)
    if multiplier == 2**31:
        multiplier, shift = 2**30, shift + 1
    return (0, 0) if shift < -31 else (multiplier, shift)


def multipliers(reals: Iterable[float]) -> tuple[Tensor, Tensor]:
    """`quantize_multiplier` of several factors, as two int64 vectors."""
    pairs = [quantize_multiplier(real) for real in reals]
    return torch.tensor([m for m, _ in pairs]), torch.tensor([s for _, s in pairs])


def high_product(a: Tensor, b: Tensor | int) -> Tensor:
    """a · b / 2^31, rounded to the nearest integer, halves up (a "saturating rounding doubling high multiply")."""
    return (a * b + (1 << 30)) >> 31


def divide_by_power(x: Tensor, exponent: Tensor | int) -> Tensor:
    """x / 2^exponent, rounded to the nearest integer, halves away from zero; exponent ≥ 0."""
    exponent = torch.as_tensor(exponent)
    half = (1 << exponent) >> 1
    return (x + half - ((x < 0) & (exponent > 0)).long()) >> exponent


def multiply_twice_rounded(x: Tensor, multiplier: Tensor | int, shift: Tensor | int) -> Tensor:
    """int8 networks: x · multiplier · 2^(shift − 31), rounded at 31 bits and again at −shift bits."""
    shift = torch.as_tensor(shift)
    return divide_by_power(high_product(x << shift.clamp_min(0), multiplier), (-shift).clamp_min(0))


def multiply_once_rounded(x: Tensor, multiplier: Tensor | int, shift: Tensor | int) -> Tensor:
    """int16 networks: the multiplier is first rounded to 16 bits, the product is rounded once, halves up."""
    shift = torch.as_tensor(shift)
    return (x * reduced(torch.as_tensor(multiplier)) + (1 << (14 - shift))) >> (15 - shift)


def reduced(multiplier: Tensor) -> Tensor:
    """The 16-bit multiplier of int16 networks."""
    return torch.where(multiplier < 0x7FFF0000, (multiplier + (1 << 15)) >> 16, 0x7FFF)
