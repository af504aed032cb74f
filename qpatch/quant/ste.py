"""Rounding with a straight-through estimator (Bengio et al. 2013), fast and twice differentiable.

Rounding has a zero gradient almost everywhere. The straight-through estimator replaces it on the way back:

- `identity`: the gradient passes everywhere, clipped values included (DoReFa's and Double-Win Quant's choice);
- `clipped`: the gradient passes only where the value was not clipped (PACT, LSQ, `torch.fake_quantize_*`).

The two give an attacker different gradients through the same network, so the choice is always explicit.
"""

from __future__ import annotations

import torch
from torch import Tensor

STE_KINDS = ("clipped", "identity")


class _RoundClip(torch.autograd.Function):
    """y = scale · (clip(round(x / scale) + zero, low, high) − zero); learned scales get LSQ's gradient."""

    @staticmethod
    def forward(ctx, x, scale, zero, low, high, clipped, scale_gradient_factor, rectified):
        y = torch.div(x, scale).round_()
        if isinstance(zero, Tensor) or zero:
            y = y.add_(zero).clamp_(low, high).sub_(zero).mul_(scale)
        else:
            y = y.clamp_(low, high).mul_(scale)
        ctx.options = (zero, low, high, clipped, scale_gradient_factor, rectified)
        ctx.save_for_backward(x, scale, y if ctx.needs_input_grad[1] else None)
        return y

    @staticmethod
    def backward(ctx, gradient):
        x, scale, y = ctx.saved_tensors
        zero, low, high, clipped, factor, rectified = ctx.options
        through, scale_gradient = gradient, None
        if rectified:
            top = (high + 0.5) * scale.detach() if clipped else torch.inf
            return _pass_between(gradient, x, 0.0, top), *[None] * 7
        if clipped or ctx.needs_input_grad[1]:
            inside = _pass_inside(gradient, x, scale, low - zero, high - zero)
            through = inside if clipped else gradient
        if ctx.needs_input_grad[1]:
            # LSQ (Esser et al. 2020, eq. 3): d y/d scale = code − x/scale inside, and the clipped code outside
            if scale.numel() == 1:
                total = (_dot(gradient, y) - _dot(inside, x)).reshape(scale.shape)
            else:
                total = (gradient * y - inside * x).sum_to_size(scale.shape)
            scale_gradient = total / scale * factor
        return through if ctx.needs_input_grad[0] else None, scale_gradient, *[None] * 6


def _pass_inside(gradient: Tensor, x: Tensor, scale: Tensor, low, high) -> Tensor:
    """`gradient` where x rounds to a code in low…high, else 0: the mask of `torch.fake_quantize_*`."""
    return _pass_between(gradient, x, (low - 0.5) * scale.detach(), (high + 0.5) * scale.detach())  # no slope in the ends


def _pass_between(gradient: Tensor, x: Tensor, bottom: Tensor | float, top: Tensor | float) -> Tensor:
    """`gradient` where bottom < x < top, else 0.

    On the CPU one range per tensor goes through hardtanh's backward: one fused pass, thirty times faster than
    `masked_fill`. It is differentiable in `gradient`, so penalties on input gradients work.
    """
    single = not isinstance(top, Tensor) or top.numel() == 1
    if single and x.device.type == "cpu":
        return torch.ops.aten.hardtanh_backward(gradient, x, float(bottom), float(top))
    return gradient * ((x > bottom) & (x < top))


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Sum of a·b without a temporary of their size, in whatever memory layout both share."""
    if a.dim() == 4 and a.is_contiguous(memory_format=torch.channels_last):
        a, b = a.permute(0, 2, 3, 1), b.permute(0, 2, 3, 1)
    return torch.dot(a.reshape(-1), b.reshape(-1))


def fake_quantize(
    x: Tensor,
    scale: Tensor,
    low: int,
    high: int,
    zero: Tensor | int = 0,
    ste: str = "clipped",
    scale_gradient_factor: float = 1.0,
    rectified: bool = False,
) -> Tensor:
    """Uniform fake quantization: scale · (clip(round(x / scale) + zero, low, high) − zero).

    Args:
        x: any float tensor.
        scale: size of one code step, in units of `x`; broadcastable to `x`. If it requires a gradient it gets
            the one of LSQ (Esser et al. 2020, equation 3).
        low, high: smallest and largest integer code.
        zero: the code of the real value 0.
        ste: "clipped" or "identity", see the module's text.
        scale_gradient_factor: multiplies the gradient of `scale` (LSQ section 2.2: 1/√(n·high)).
        rectified: act like a ReLU with the quantizer behind it, for `low` = `zero` = 0; no gradient reaches `scale`.

    Returns:
        Tensor of `x`'s shape that takes at most high − low + 1 values per scale.
    """
    return _RoundClip.apply(x, scale, zero, low, high, ste == "clipped", scale_gradient_factor, rectified)


def to_integers(x: Tensor, scale: Tensor, low: int, high: int, zero: Tensor | int = 0) -> Tensor:
    """The integer codes behind `fake_quantize`, as an int32 tensor of `x`'s shape."""
    return (torch.round(x / scale) + zero).clamp(low, high).to(torch.int32)
