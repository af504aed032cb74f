"""Pooling, mean, padding, reshaping, slicing and requantizing: the layers without weights.

Activations are float32 whole numbers, code − zero point, N×C×H×W or N×C, as in `layers`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qpatch.errors import InputError
from qpatch.quant.tflite import graph as ir
from qpatch.quant.tflite.fixedpoint import multiply_twice_rounded, quantize_multiplier
from qpatch.quant.tflite.layers import code_range, same_padding


def straight_through(exact: Tensor, real: Tensor) -> Tensor:
    """The values of `exact` with the gradient of `real`; `exact` itself where no gradient is wanted."""
    return exact + (real - real.detach()) if real.requires_grad else exact


class Pool(nn.Module):
    """MAX_POOL_2D, and AVERAGE_POOL_2D: a mean of codes (padding left out), rounded, halves away from zero."""

    def __init__(self, op: ir.Op, tensors: tuple[ir.Tensor, ...]):
        super().__init__()
        source, target = tensors[op.inputs[0]], tensors[op.output]
        self.average = op.kind == "AVERAGE_POOL_2D"
        self.kernel, self.stride = op.options["filter"], op.options["stride"]
        self.low, self.high = code_range(target, op.options["activation"])
        self.zero, self.shift = source.offset, source.offset - target.offset
        sides = [(0, 0), (0, 0)]
        if op.options["padding"] == "SAME":
            sizes = zip(source.shape[1:3], self.kernel, self.stride, strict=True)
            sides = [same_padding(size, kernel, stride, 1) for size, kernel, stride in sizes]
        self.ahead = (*sides[1], *sides[0])
        ones = F.pad(torch.ones(1, 1, *source.shape[1:3], dtype=torch.float64), self.ahead)
        self.register_buffer("count", self._sum(ones))

    def forward(self, x: Tensor) -> Tensor:
        if not self.average:
            if any(self.ahead):
                x = F.pad(x, self.ahead, value=-1e9)
            return (F.max_pool2d(x, self.kernel, self.stride) + self.shift).clamp(self.low, self.high)
        total = self._sum(F.pad(x.double(), self.ahead))
        real = total / self.count
        with torch.no_grad():
            raw = total + self.zero * self.count
            mean = torch.floor((raw.abs() + torch.floor(self.count / 2)) / self.count).copysign_(raw)
            exact = (mean - self.zero + self.shift).clamp_(self.low, self.high).float()
        return straight_through(exact, (real + self.shift).clamp(self.low, self.high).float())

    def _sum(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, self.kernel, self.stride, divisor_override=1)


class Mean(nn.Module):
    """MEAN over height and width: the sum times one fixed-point factor that holds the scales and 1 / count."""

    def __init__(self, op: ir.Op, tensors: tuple[ir.Tensor, ...]):
        super().__init__()
        source, target = tensors[op.inputs[0]], tensors[op.output]
        axes = sorted(int(axis) % len(source.shape) for axis in tensors[op.inputs[1]].data.flatten())
        if len(source.shape) != 4 or axes != [1, 2]:
            raise InputError("the emulator knows MEAN over height and width only; use engine='litert'.")
        self.keep, self.count = len(target.shape) == 4, source.shape[1] * source.shape[2]
        self.low, self.high = code_range(target)
        self.slope = source.step / target.step
        multiplier, shift = quantize_multiplier(self.slope)
        move = min(self.count.bit_length() - 1, 32, 31 + shift)
        self.factor = ((multiplier << move) // self.count, shift - move)

    def forward(self, x: Tensor) -> Tensor:
        total = x.double().sum((2, 3), keepdim=self.keep)
        with torch.no_grad():
            exact = multiply_twice_rounded(total.long(), *self.factor).clamp_(self.low, self.high).float()
        return straight_through(exact, (total * (self.slope / self.count)).float())


class Requantize(nn.Module):
    """QUANTIZE from one integer type or scale to another."""

    def __init__(self, op: ir.Op, tensors: tuple[ir.Tensor, ...]):
        super().__init__()
        source, target = tensors[op.inputs[0]], tensors[op.output]
        self.slope = source.step / target.step
        self.factor = quantize_multiplier(self.slope)
        self.low, self.high = code_range(target)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            exact = multiply_twice_rounded(x.long(), *self.factor).clamp_(self.low, self.high).float()
        return straight_through(exact, (x * self.slope).clamp(self.low - 0.5, self.high + 0.5))


class Rectify(nn.Module):
    """RELU and RELU6 as operations of their own: requantization, then a clip."""

    def __init__(self, op: ir.Op, tensors: tuple[ir.Tensor, ...]):
        super().__init__()
        source, target = tensors[op.inputs[0]], tensors[op.output]
        self.slope = source.step / target.step
        self.factor = quantize_multiplier(self.slope)
        self.low, self.high = code_range(target, op.kind)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            exact = multiply_twice_rounded(x.long(), *self.factor).clamp_(self.low, self.high).float()
        return straight_through(exact, (x * self.slope).clamp(self.low, self.high))


class Pad(nn.Module):
    """PAD with the code of the real value 0."""

    def __init__(self, op: ir.Op, tensors: tuple[ir.Tensor, ...]):
        super().__init__()
        sides = tensors[op.inputs[1]].data.astype(int).tolist()
        if len(sides) != 4 or sides[0] != [0, 0]:
            raise InputError("the emulator pads height, width and channels of images only; use engine='litert'.")
        self.sides = (*sides[2], *sides[1], *sides[3])  # width, height, channels: the order of F.pad

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x, self.sides)


class Slice(nn.Module):
    """STRIDED_SLICE along height, width and channels."""

    def __init__(self, op: ir.Op, tensors: tuple[ir.Tensor, ...]):
        super().__init__()
        source = tensors[op.inputs[0]]
        begin, end, step = (tensors[i].data.astype(int).tolist() for i in op.inputs[1:4])
        masks = {key: op.options.get(key, 0) for key in ("begin_mask", "end_mask", "other_masks")}
        if len(source.shape) != 4 or masks["other_masks"] or any(stride < 1 for stride in step):
            raise InputError("the emulator slices images without ellipsis or new axes only; use engine='litert'.")
        parts = []
        for axis, size in enumerate(source.shape):
            start = None if masks["begin_mask"] >> axis & 1 else begin[axis]
            stop = None if masks["end_mask"] >> axis & 1 else end[axis]
            parts.append(slice(*slice(start, stop, step[axis]).indices(size)))
        self.parts = (slice(None), parts[3], parts[1], parts[2])

    def forward(self, x: Tensor) -> Tensor:
        return x[self.parts]


class Reshape(nn.Module):
    """RESHAPE between images (N×C×H×W here, N×H×W×C in the file) and vectors."""

    def __init__(self, op: ir.Op, tensors: tuple[ir.Tensor, ...]):
        super().__init__()
        self.shape = tensors[op.output].shape[1:]
        if len(self.shape) not in (1, 3):
            raise InputError("the emulator reshapes to vectors or images only; use engine='litert'.")

    def forward(self, x: Tensor) -> Tensor:
        rows = x.permute(0, 2, 3, 1) if x.dim() == 4 else x
        rows = rows.reshape(len(x), *self.shape)
        return rows.permute(0, 3, 1, 2) if rows.dim() == 4 else rows
