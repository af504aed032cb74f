"""Requantization as a fast float64 formula that is proved equal to the integer arithmetic when a layer is built.

Requantizing an accumulator is a staircase: a non-decreasing function onto at most 256 codes. A formula of one
multiplication, one addition and one rounding is non-decreasing, too. Two such functions are equal everywhere if every
step happens at the same accumulator in both, so it is enough to look at the two sides of each step.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qpatch.errors import InputError
from qpatch.quant.tflite.fixedpoint import multiply_once_rounded, multiply_twice_rounded, reduced

_NEIGHBOURS = (-2, -1, 0, 1)  # of the first guess at a step


class Staircase(nn.Module):
    """Accumulator without bias → code − zero point, per output channel, equal to TFLite Micro for every accumulator.

    Where gradients are wanted they pass straight through the rounding and stop where the code is clipped.

    Args:
        multiplier, shift: int64 (C,), the real factor of each channel.
        bias: int64 (C,).
        low, high: the codes allowed (type and fused activation), minus the zero point.
        least, most: int64 (C,), bounds of the accumulator.
        once: round once, with a 16-bit multiplier (int16 networks), else twice (int8 networks).
        rank: number of dimensions of the tensors to come; channels are dimension 1.

    Attributes:
        proved: bool (C,); channels that are not proved go through the integer arithmetic itself.

    Raises:
        InputError: an accumulator can overflow the integers of the kernels.
    """

    def __init__(self, multiplier, shift, bias, low: int, high: int, least, most, *, once: bool, rank: int):
        super().__init__()
        self.low, self.high, self.once = low, high, once
        largest = torch.maximum((least + bias).abs(), (most + bias).abs()).double()
        if bool((largest * 2.0 ** shift.clamp_min(0) >= (2.0**37 if once else 2.0**31)).any()):
            raise InputError("an accumulator of this .tflite can overflow the integers of TFLite Micro's kernels.")
        if once:  # whole numbers below 2^53 times a power of two: the formula itself never rounds
            factor, nudge = reduced(multiplier).double() * 2.0 ** (shift - 15), torch.zeros(len(shift)).double()
        else:  # the first rounding moves values away from zero by up to half of its last bit
            factor = multiplier.double() * 2.0 ** (shift - 31)
            nudge = torch.where(shift < 0, 2.0 ** (shift.double() - 1), 0.0)
        self.signed = low < 0 and not once
        start = bias * factor if self.signed else bias * factor + (nudge + 0.5)
        proved = torch.ones_like(bias, dtype=torch.bool)
        for self.halves_up in (False, True) if not once else ():  # the second is slower, and right on exact halves
            proved = self._prove((factor, start, nudge), (multiplier, shift, bias), least, most)
            if bool(proved.all()):
                break
        shape = (1, -1) + (1,) * (rank - 2)
        for name, values in {"multiplier": multiplier, "shift": shift, "bias": bias, "factor": factor,
                             "start": start, "nudge": nudge, "slope": factor.float()}.items():  # fmt: skip
            self.register_buffer(name, values.view(shape))
        self.register_buffer("proved", proved)
        self.unproved = torch.nonzero(~proved).flatten()

    def forward(self, total: Tensor) -> Tensor:
        """Accumulators, float32 or float64 of whole numbers, to float32 codes minus zero point."""
        with torch.no_grad():
            codes = self._formula(total.to(torch.float64, copy=True), self.factor, self.start, self.nudge)
            codes = codes.clamp_(self.low, self.high).float()
            if len(self.unproved):
                integers = (v[:, self.unproved] for v in (self.bias, self.multiplier, self.shift))
                codes[:, self.unproved] = self._integers(total[:, self.unproved].long(), *integers).float()
        if torch.is_grad_enabled() and total.requires_grad:
            real = total.float() * self.slope + (self.bias * self.factor).float()
            real = real.clamp(self.low - 0.5 if self.low else 0.0, self.high + 0.5)  # at 0 it is the ReLU that cuts
            codes = codes + (real - real.detach())
        return codes

    def integers(self, total: Tensor) -> Tensor:
        """The same by integer arithmetic alone: int64 to int64."""
        return self._integers(total, self.bias, self.multiplier, self.shift)

    def _integers(self, total: Tensor, bias: Tensor, multiplier: Tensor, shift: Tensor) -> Tensor:
        multiply = multiply_once_rounded if self.once else multiply_twice_rounded
        return multiply(total + bias, multiplier, shift).clamp(self.low, self.high)

    def _formula(self, x: Tensor, factor: Tensor, start: Tensor, nudge: Tensor) -> Tensor:
        x = x.mul_(factor).add_(start)
        if not self.signed:
            return x.floor_()
        x = x.addcmul_(x.sgn(), nudge)
        return x.add_(0.5).floor_() if self.halves_up else x.round_()

    def _prove(self, formula: tuple, integers: tuple, least: Tensor, most: Tensor) -> Tensor:
        """For each channel: is every step of the formula where the integer arithmetic has it?

        A step is found when the formula is below it at one neighbour and not below it at the next (or the bounds of
        the accumulator stand in for one of the two), and it is proved when the integers agree at all of them.
        """
        factor, start, nudge = formula
        multiplier, shift, bias = integers
        steps = torch.arange(self.low + 1, self.high + 1).view(-1, 1)
        edge = steps - 0.5 - torch.where(steps > 0, nudge, -nudge) if self.signed else steps
        guess = torch.nan_to_num((edge - start) / factor, 0.0, 2.0**40, -(2.0**40)).ceil()
        first = torch.maximum(torch.minimum(guess, (most + 1).double()), least.double()).long()
        agree = torch.ones_like(first, dtype=torch.bool)
        below, above = ~agree, ~agree
        for at in (first + move for move in _NEIGHBOURS):
            reached = self._formula(at.double(), *formula) >= steps
            same = reached == (multiply_twice_rounded(at + bias, multiplier, shift) >= steps)
            agree &= same | (at < least) | (at > most)
            below |= ~reached | (at < least)
            above |= reached | (at > most)
        return (agree & below & above).all(0)
