"""ADD of two activations, bit for bit as TFLite Micro's kernel.

The kernel brings both inputs to a common, finer scale, adds them, and requantizes the sum, each time with two
roundings. Here float formulas stand in for it that are checked when the layer is built; see `staircase`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qpatch.errors import InputError
from qpatch.quant.tflite import graph as ir
from qpatch.quant.tflite.fixedpoint import divide_by_power, high_product, quantize_multiplier
from qpatch.quant.tflite.layers import code_range
from qpatch.quant.tflite.staircase import Staircase


class Add(nn.Module):
    """Two float32 tensors of codes minus zero point to a third.

    Attributes:
        method: how: "formula" (int8: one weighted sum, tried on all 65,536 pairs of codes, in float32 and float64),
            "table" of these pairs where it fails; "steps" (int16: a formula for each input, tried on all codes, and a
            proved staircase for the sum), "integers" where one of them fails.
    """

    def __init__(self, op: ir.Op, tensors: tuple[ir.Tensor, ...]):
        super().__init__()
        left, right, target = tensors[op.inputs[0]], tensors[op.inputs[1]], tensors[op.output]
        if left.shape != right.shape or left.data is not None or right.data is not None:
            raise InputError("the emulator adds two activations of one shape only; use engine='litert'.")
        wide = left.dtype == "int16"
        self.lift = 15 if wide else 20
        largest = 2 * max(left.step, right.step)
        self.factors = [quantize_multiplier(s / largest) for s in (left.step, right.step)]
        self.factors.append(quantize_multiplier(largest / (2**self.lift * target.step)))
        self.low, self.high = code_range(target, op.options["activation"])
        self.slopes = (left.step / target.step, right.step / target.step)
        spans = code_range(left), code_range(right)
        self.method = self._choose_steps(spans, len(left.shape)) if wide else self._choose_formula(*spans)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        with torch.no_grad():
            if self.method == "steps":
                codes = self.steps(self._lifted(a, 0).add_(self._lifted(b, 1)))
            elif self.method == "formula":
                codes = self._formula(a, b)
            elif self.method == "table":
                codes = self.table[((a - self.origin[0]) * 256 + (b - self.origin[1])).long()]
            else:
                codes = self.integers(a.long(), b.long()).float()
        if torch.is_grad_enabled() and (a.requires_grad or b.requires_grad):
            real = a * self.slopes[0] + b * self.slopes[1]
            real = real.clamp(self.low - 0.5 if self.low else 0.0, self.high + 0.5)
            codes = codes + (real - real.detach())
        return codes

    def integers(self, a: Tensor, b: Tensor) -> Tensor:
        """The kernel's arithmetic on int64 codes minus zero point."""
        total = self._scaled(a << self.lift, 0) + self._scaled(b << self.lift, 1)
        return self._scaled(total, 2).clamp(self.low, self.high)

    def _scaled(self, x: Tensor, which: int) -> Tensor:
        multiplier, shift = self.factors[which]
        return divide_by_power(high_product(x, multiplier), -shift)

    def _choose_formula(self, left: tuple[int, int], right: tuple[int, int]) -> str:
        a = torch.arange(left[0], left[1] + 1).view(-1, 1).expand(256, 256)
        b = torch.arange(right[0], right[1] + 1).view(1, -1).expand(256, 256)
        codes = self.integers(a, b)
        self.origin = (left[0], right[0])
        self.register_buffer("table", codes.float().flatten())
        distance = codes - (a.double() * self.slopes[0] + b.double() * self.slopes[1])
        free = distance[(codes > self.low) & (codes < self.high)]
        self.start = float(free.max() + free.min()) / 2 if len(free) else 0.0  # centres the errors of the roundings
        for self.dtype in (torch.float32, torch.float64):
            if torch.equal(self._formula(a, b), codes.float()):
                return "formula"
        return "table"

    def _formula(self, a: Tensor, b: Tensor) -> Tensor:  # no fused operations: rounded alike wherever a code stands
        total = (a.to(self.dtype) * self.slopes[0]).add_(b.to(self.dtype) * self.slopes[1]).add_(self.start)
        return total.round_().clamp_(self.low, self.high).float()

    def _choose_steps(self, spans: tuple[tuple[int, int], tuple[int, int]], rank: int) -> str:
        bound, exact = 0, True
        for which, (first, last) in enumerate(spans):
            codes = torch.arange(first, last + 1)
            lifted = self._scaled(codes << self.lift, which)
            exact &= torch.equal(self._lifted(codes, which).long(), lifted)
            bound += int(lifted.abs().max())
        multiplier, shift = (torch.tensor([part]) for part in self.factors[2])
        bounds, bias = torch.tensor([bound]), torch.tensor([0])
        self.steps = Staircase(multiplier, shift, bias, self.low, self.high, -bounds, bounds, once=False, rank=rank)
        return "steps" if exact and bool(self.steps.proved.all()) else "integers"

    def _lifted(self, x: Tensor, which: int) -> Tensor:
        """An input at the common scale, float64 whole numbers; the first of two roundings moves it away from zero."""
        multiplier, shift = self.factors[which]
        real = x.double() * (multiplier * 2.0 ** (shift - 31 + self.lift))
        return real.add_(real.sgn(), alpha=2.0 ** (shift - 1) if shift < 0 else 0.0).add_(0.5).floor_()
