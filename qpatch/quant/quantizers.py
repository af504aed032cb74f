"""Six quantizers with one skeleton: `calibrate(sample)` sets the range, `forward(x)` fake-quantizes.

| name           | weights                              | activations                            | source |
|----------------|--------------------------------------|----------------------------------------|--------|
| symmetric      | per channel, codes ±(2^(b−1)−1)      | per tensor, unsigned after ReLU        | TriQDef section 2.2 of our dossier (reconstruction) |
| asymmetric     | per channel, min to max, zero point  | per tensor, min to max, zero point     | Double-Win Quant's code (Fu et al. 2021) |
| dorefa         | tanh-normalised to [−1, 1]           | clipped to [0, 1]                      | Zhou et al. 2016, equations 7–11 |
| pact           | as dorefa                            | clipped at a learned α                 | Choi et al. 2018, equations 1–3 |
| lsq            | learned step, codes −2^(b−1)…2^(b−1)−1 | learned step, unsigned after ReLU    | Esser et al. 2020, equations 1–3 |
| binaryconnect  | sign(w) ∈ {−1, +1}                   | float                                  | Courbariaux et al. 2015 |

A symmetric quantizer of two bits has only the codes −1, 0, 1 for weights, but 0…3 for activations after ReLU.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qpatch.errors import InputError, ParameterError, one_of
from qpatch.quant.ste import STE_KINDS, fake_quantize, to_integers

RANGES = ("max", "mse")
_TINY = 1e-8  # keeps the scale of an all-zero channel positive


class Quantizer(nn.Module):
    """One tensor's quantizer. Subclasses set `scale` (and the code range) in `calibrate`.

    Args:
        bits: bit-width, 1 to 16.
        channels: number of output channels for a per-channel weight quantizer, or None for one range per tensor.
        ste: straight-through estimator, "clipped" or "identity".
        range: how `calibrate` chooses the range: "max" (largest magnitude) or "mse" (least squared error).
        learned: whether the scale is trained with LSQ's gradient.

    Raises:
        ParameterError: unknown estimator or range, or a bit-width outside 1…16.
    """

    def __init__(self, bits: int, channels: int | None, ste: str = "clipped", range: str = "mse", learned: bool = False):
        super().__init__()
        if not isinstance(bits, int) or not 1 <= bits <= 16:
            raise ParameterError(f"bit-width {bits!r} cannot be quantized; choose a whole number from 1 to 16.")
        self.bits, self.channels = bits, channels
        self.ste = one_of(ste, STE_KINDS, "straight-through estimator")
        self.range = one_of(range, RANGES, "range")
        scale = torch.ones(channels or 1)
        if learned:
            self.scale = nn.Parameter(scale)
        else:
            self.register_buffer("scale", scale)
        self.register_buffer("zero", torch.zeros(channels or 1))
        self.register_buffer("signed", torch.tensor(channels is not None))
        self._limits: tuple[int, int] | None = None

    @property
    def learned(self) -> bool:
        """Whether the scale is a trained parameter."""
        return isinstance(self.scale, nn.Parameter)

    @property
    def limits(self) -> tuple[int, int]:
        """Smallest and largest integer code."""
        if self._limits is None:  # reading a buffer costs more than a Python attribute, so it is kept
            top = 2 ** (self.bits - 1) - 1
            self._limits = (-max(top, 1), max(top, 1)) if bool(self.signed) else (0, 2**self.bits - 1)
        return self._limits

    def _load_from_state_dict(self, *args, **keywords):
        self._limits = None
        super()._load_from_state_dict(*args, **keywords)

    def _shaped(self, values: Tensor, x: Tensor) -> Tensor:
        return values if self.channels is None else values.view(-1, *[1] * (x.dim() - 1))

    def calibrate(self, sample: Tensor) -> None:
        """Set the range from a sample: the weight itself, or inputs seen by the layer (any shape).

        Raises:
            InputError: the sample holds NaN or infinity, or is constant zero for an activation.
        """
        if not torch.isfinite(sample).all():
            raise InputError("the calibration sample holds NaN or infinity; check the images and the network.")
        if self.channels is None:
            if not sample.any():
                raise InputError("every calibration value of a layer is zero; pass real, varied images.")
            self.signed.fill_(bool(sample.min() < 0))
        self._limits = None
        rows = sample.detach().reshape(self.channels or 1, -1).float()
        with torch.no_grad():
            self._set_range(rows)

    def _set_range(self, rows: Tensor) -> None:
        low, high = self.limits
        largest = rows.abs().amax(1).clamp_min(_TINY)
        scale = largest / high
        if self.range == "mse":
            scale = _least_squares_scale(rows, scale, low, high)
        self.scale.data.copy_(scale)

    def forward(self, x: Tensor) -> Tensor:
        """Fake-quantize `x`: same shape, same units."""
        low, high = self.limits
        factor = (x.numel() / (self.channels or 1) * high) ** -0.5 if self.learned else 1.0
        return fake_quantize(x, self._shaped(self.scale, x), low, high, ste=self.ste, scale_gradient_factor=factor)

    def integers(self, x: Tensor) -> Tensor:
        """The integer codes of `x` (int32)."""
        low, high = self.limits
        return to_integers(x, self._shaped(self.scale, x), low, high)

    def extra_repr(self) -> str:
        per = "per tensor" if self.channels is None else f"per channel ({self.channels})"
        return f"bits={self.bits}, {per}, ste={self.ste}, range={self.range}, learned={self.learned}"


class Symmetric(Quantizer):
    """Symmetric uniform quantizer: q = clip(round(v / s)), codes ±(2^(b−1)−1), or 0…2^b−1 where nothing is negative."""


class Asymmetric(Quantizer):
    """Uniform quantizer from the smallest to the largest value with a zero point; codes 0…2^b−1.

    Zero keeps an exact code, so zero padding stays zero.
    """

    @property
    def limits(self) -> tuple[int, int]:
        return 0, 2**self.bits - 1

    def _set_range(self, rows: Tensor) -> None:
        smallest, largest = rows.amin(1).clamp_max(0), rows.amax(1).clamp_min(0)
        scale = ((largest - smallest) / self.limits[1]).clamp_min(_TINY)
        self.scale.data.copy_(scale)
        self.zero.copy_(torch.round(-smallest / scale).clamp(*self.limits))

    def forward(self, x: Tensor) -> Tensor:
        scale, zero = self._shaped(self.scale, x), self._shaped(self.zero, x)
        return fake_quantize(x, scale, *self.limits, zero=zero, ste=self.ste)

    def integers(self, x: Tensor) -> Tensor:
        return to_integers(x, self._shaped(self.scale, x), *self.limits, zero=self._shaped(self.zero, x))


class LSQ(Quantizer):
    """Learned step size (Esser et al. 2020): signed codes −2^(b−1)…2^(b−1)−1, step starts at 2·mean|v|/√high."""

    def __init__(self, bits: int, channels: int | None, ste: str = "clipped", range: str = "mse", learned: bool = True):
        super().__init__(bits, channels, ste, range, learned=True)

    @property
    def limits(self) -> tuple[int, int]:
        if self._limits is None:
            half = 2 ** (self.bits - 1)
            self._limits = (-half, max(half - 1, 1)) if bool(self.signed) else (0, 2**self.bits - 1)
        return self._limits

    def _set_range(self, rows: Tensor) -> None:
        self.scale.data.copy_((2 * rows.abs().mean(1) / self.limits[1] ** 0.5).clamp_min(_TINY))


class DoReFaWeight(Quantizer):
    """DoReFa weights (Zhou et al. 2016, equation 9): 2·q(tanh(w) / (2·max|tanh w|) + ½) − 1, times mean|w|.

    The factor mean|w| is Any-Precision's (Yu et al. 2021); it keeps the size of the float weights.
    """

    def _set_range(self, rows: Tensor) -> None:
        pass  # the range follows the weights at every call

    def _unit(self, w: Tensor) -> Tensor:
        squashed = torch.tanh(w)
        return squashed / (2 * squashed.abs().max().clamp_min(_TINY)) + 0.5

    def forward(self, x: Tensor) -> Tensor:
        levels = 2**self.bits - 1
        code = fake_quantize(self._unit(x), x.new_tensor(1 / levels), 0, levels, ste="identity")
        return (2 * code - 1) * x.abs().mean().detach()

    def integers(self, x: Tensor) -> Tensor:
        levels = 2**self.bits - 1
        return to_integers(self._unit(x), x.new_tensor(1 / levels), 0, levels)


class DoReFaActivation(Quantizer):
    """DoReFa activations (Zhou et al. 2016, equation 11): clipped to [0, 1], 2^b − 1 steps.

    A first layer sees negative values (normalised images); there the range is symmetric around zero.
    """

    def _set_range(self, rows: Tensor) -> None:
        if bool(self.signed):
            super()._set_range(rows)
        else:
            self.scale.fill_(1 / self.limits[1])


class PACTActivation(Quantizer):
    """PACT activations (Choi et al. 2018, equations 1–3): clipped to [0, α] with a learned α, 2^b − 1 steps.

    `scale` holds α / (2^b − 1). The gradient of α is PACT's: 1 per clipped value, nothing elsewhere. That of `scale`
    is the gradient of α divided by 2^b − 1, so that a step of SGD on `scale` moves α as a step on α itself would.
    """

    def __init__(self, bits: int, channels: int | None, ste: str = "clipped", range: str = "mse", learned: bool = True):
        super().__init__(bits, channels, "clipped", range, learned=True)

    def forward(self, x: Tensor) -> Tensor:
        low, high = self.limits
        share = high**-2
        alpha = high * (share * self.scale + (1 - share) * self.scale.detach())
        bottom = -alpha if low < 0 else torch.zeros_like(alpha)
        clipped = torch.maximum(torch.minimum(x, alpha), bottom)  # autograd gives α its gradient here
        return fake_quantize(clipped, self.scale.detach(), low, high, ste="identity")


class BinaryConnectWeight(Quantizer):
    """BinaryConnect (Courbariaux et al. 2015, section 2.2): sign(w); the gradient passes where |w| ≤ 1.

    Deviation, as in most later code: times the layer's mean|w|, so that a trained float network can start it.
    """

    def _set_range(self, rows: Tensor) -> None:
        pass

    def forward(self, x: Tensor) -> Tensor:
        signs = torch.where(x >= 0, 1.0, -1.0)
        if self.ste == "clipped":
            latent = x.clamp(-1, 1)
        else:
            latent = x
        return (latent + (signs - latent).detach()) * x.abs().mean().detach()

    def integers(self, x: Tensor) -> Tensor:
        return torch.where(x >= 0, 1, -1).to(torch.int32)


class Float(Quantizer):
    """No quantization: BinaryConnect's activations."""

    def _set_range(self, rows: Tensor) -> None:
        pass

    def forward(self, x: Tensor) -> Tensor:
        return x

    def integers(self, x: Tensor) -> Tensor:
        raise InputError("this tensor is not quantized, so it has no integer codes.")


# name: (weight quantizer, activation quantizer)
QUANTIZERS: dict[str, tuple[type[Quantizer], type[Quantizer]]] = {
    "symmetric": (Symmetric, Symmetric),
    "asymmetric": (Asymmetric, Asymmetric),
    "dorefa": (DoReFaWeight, DoReFaActivation),
    "pact": (DoReFaWeight, PACTActivation),
    "lsq": (LSQ, LSQ),
    "binaryconnect": (BinaryConnectWeight, Float),
}


def _least_squares_scale(rows: Tensor, largest_scale: Tensor, low: int, high: int, steps: int = 60) -> Tensor:
    """Per row, the scale among `steps` fractions of `largest_scale` whose codes lose the least squared error."""
    best_error = torch.full_like(largest_scale, torch.inf)
    best_scale = largest_scale.clone()
    for fraction in torch.linspace(1.0, 0.1, steps, device=rows.device):
        scale = largest_scale * fraction
        codes = torch.round(rows / scale[:, None]).clamp_(low, high)
        error = codes.mul_(scale[:, None]).sub_(rows).square_().sum(1)
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best_scale = torch.where(better, scale, best_scale)
    return best_scale
