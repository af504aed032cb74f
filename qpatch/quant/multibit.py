"""One network, seen at many bit-widths: `net.at(4)` is an ordinary nn.Module.

Each width has its own copy of the module tree. All copies hold the *same* weight Parameters; each has its own
quantizers and, with switched BatchNorm, its own normalisation statistics. So there is no global "current width":
views can be mixed freely in one loss, and torchattacks, ART and timm code take a view as any other network.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from qpatch.errors import InputError, ParameterError, one_of
from qpatch.quant.quantizers import QUANTIZERS, RANGES, Quantizer
from qpatch.quant.ste import STE_KINDS

WIDTHS = (32, 8, 5, 4, 2)  # the training set B of TriQDef; 32 is the float network


@dataclass(frozen=True)
class Policy:
    """How a network is quantized. Everything that the papers leave open is a field here.

    Attributes:
        quantizer: one of `QUANTIZERS`.
        learned: train the scales of the symmetric quantizer (LSQ's gradient) instead of fixing them at calibration.
        range: how calibration chooses a scale: "max" or "mse".
        ste: straight-through estimator: "clipped" or "identity".
        first_last: bit-width of the first and the last layer; None treats them like all others. Eight is common,
            because the image itself has eight bits.
        batchnorm: "switched" (own affine and statistics per width) or "shared".
    """

    quantizer: str = "symmetric"
    learned: bool = False
    range: str = "mse"
    ste: str = "clipped"
    first_last: int | None = 8
    batchnorm: str = "switched"

    def __post_init__(self):
        one_of(self.quantizer, QUANTIZERS, "quantizer")
        one_of(self.range, RANGES, "range")
        one_of(self.ste, STE_KINDS, "straight-through estimator")
        one_of(self.batchnorm, ("switched", "shared"), "BatchNorm policy")
        if self.learned and self.quantizer not in ("symmetric", "lsq", "pact"):
            raise ParameterError(f"the {self.quantizer} quantizer has no scale to learn; set learned=False.")


class QuantizedLayer:
    """Mixed into a convolution or linear class: quantizes the input, and shows a quantized `weight`.

    In train mode the weight is quantized at every use and gradients reach the latent weight. In eval mode the
    quantized weight is kept until the latent weight or its scale changes; it is then a constant, so gradients
    reach the input only, which is what an attack needs.
    """

    weight_quantizer: Quantizer
    input_quantizer: Quantizer

    @property
    def weight(self) -> Tensor:
        latent = self._parameters["weight"]
        if self.training:
            return self.weight_quantizer(latent)
        scale = self.weight_quantizer.scale
        state = (latent._version, latent.data_ptr(), scale._version, scale.data_ptr())
        if self._kept_for != state:
            with torch.no_grad():
                self._kept_weight = self.weight_quantizer(latent)
            self._kept_for = state
        return self._kept_weight

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.input_quantizer(x))


def plain_layer(layer: QuantizedLayer) -> nn.Module:
    """The layer without its quantizers: an ordinary convolution or linear layer that holds the quantized weight."""
    plain = copy.deepcopy(layer)
    weight = nn.Parameter(layer.eval().weight.detach().clone())
    plain.__class__ = next(base for base, quantized in _classes.items() if quantized is type(layer))
    for name in ("weight_quantizer", "input_quantizer"):
        delattr(plain, name)
    plain._kept_weight = plain._kept_for = None
    plain.weight = weight
    return plain


_classes: dict[type, type] = {}


def _quantized_class(base: type) -> type:
    """The class `Quantized<base>`; works for timm's own subclasses of nn.Conv2d as well."""
    if base not in _classes:
        _classes[base] = type(f"Quantized{base.__name__}", (QuantizedLayer, base), {"__module__": __name__})
    return _classes[base]


def quantizable_layers(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Name and module of every convolution and linear layer, in the order of definition."""
    kinds = (nn.Conv1d, nn.Conv2d, nn.Linear)
    return [(name, module) for name, module in model.named_modules() if isinstance(module, kinds)]


class MultiBit(nn.Module):
    """One set of weights with one view per bit-width (DESIGN: "one object with many views").

    Args:
        model: any CNN made of convolution, linear, norm and activation modules. It is copied, not changed.
        bits: the widths; 32 (float) is always included.
        policy: how to quantize.

    Raises:
        ParameterError: a bit-width that is neither 32 nor between 1 and 16.
        InputError: the model has no layer to quantize.

    Example:
        >>> net = MultiBit(timm.create_model("qpatch_resnet8"), bits=(32, 4))
        >>> calibrate(net, images)
        >>> logits = net.at(4)(images)
    """

    def __init__(self, model: nn.Module, bits: Iterable[int] = WIDTHS, policy: Policy = Policy()):
        super().__init__()
        widths = sorted({32, *bits}, reverse=True)
        for width in widths:
            if width != 32 and not 1 <= width <= 16:
                raise ParameterError(f"unknown bit-width {width!r}; choose 32 (float) or a whole number from 1 to 16.")
        if not quantizable_layers(model):
            raise InputError("the model has no convolution or linear layer to quantize.")
        self.policy = policy
        float_view = copy.deepcopy(model)
        views = {"32": float_view}
        for width in widths[1:]:
            views[str(width)] = self._make_view(float_view, width)
        self.views = nn.ModuleDict(views)

    @property
    def bits(self) -> tuple[int, ...]:
        """The widths that this network can be seen at, from high to low."""
        return tuple(int(width) for width in self.views)

    def at(self, bits: int) -> nn.Module:
        """The network at one bit-width. `at(32)` is the float network, bit for bit.

        Raises:
            ParameterError: the network was not built with this width.
        """
        return self.views[str(one_of(bits, self.bits, "bit-width"))]

    def forward(self, x: Tensor) -> Tensor:
        """The float network's logits; call a view for the others."""
        return self.views["32"](x)

    def describe(self) -> dict:
        """Widths and policy as plain data, for a checkpoint's card."""
        return {"bits": list(self.bits), "policy": asdict(self.policy)}

    def _make_view(self, float_view: nn.Module, width: int) -> nn.Module:
        shared = [p for _, layer in quantizable_layers(float_view) for p in layer.parameters(recurse=False)]
        norms = [module for module in float_view.modules() if isinstance(module, _BatchNorm)]
        memo = {id(parameter): parameter for parameter in shared}
        if self.policy.batchnorm == "shared":
            memo |= {id(norm): norm for norm in norms}
        else:  # everything but BatchNorm's parameters is shared, so other norms and free parameters are, too
            own = {id(p) for norm in norms for p in norm.parameters()}
            memo |= {id(p): p for p in float_view.parameters() if id(p) not in own}
        view = copy.deepcopy(float_view, memo)
        layers = quantizable_layers(view)
        for index, (_, layer) in enumerate(layers):
            at_an_end = index in (0, len(layers) - 1)
            self._quantize(layer, (self.policy.first_last or width) if at_an_end else width)
        return view

    def _quantize(self, layer: nn.Module, bits: int) -> None:
        if bits == 32:
            return
        weight_class, input_class = QUANTIZERS[self.policy.quantizer]
        options = {"ste": self.policy.ste, "range": self.policy.range, "learned": self.policy.learned}
        latent = layer._parameters["weight"]
        layer.weight_quantizer = weight_class(bits, channels=latent.shape[0], **options)
        layer.input_quantizer = input_class(bits, channels=None, **options)
        layer._kept_weight = layer._kept_for = None
        layer.__class__ = _quantized_class(type(layer))
        layer.weight_quantizer.calibrate(latent)
