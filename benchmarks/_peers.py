"""The same networks quantized by Brevitas and by torchao: what views are compared with.

Both simulate the integers in floating point, as ours do. torchao's graph could also be lowered to real int8 kernels by
`torch.compile`, which needs a C++ compiler, knows eight bits only, and gives no gradient to an attack.
"""

from __future__ import annotations

import copy
import warnings
from importlib.util import find_spec

import torch
from torch import Tensor, nn


def installed(package: str) -> bool:
    """Whether a peer can be imported."""
    return find_spec(package) is not None


def brevitas_network(model: nn.Module, images: Tensor, bits: int, activations: bool = True) -> nn.Module:
    """A copy of a float network with Brevitas' layers, calibrated on the images, in eval mode.

    It keeps its quantized weights in eval mode, as our views do.

    Args:
        bits: of weights and activations; the scales are per channel and per tensor.
        activations: quantize them as well.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about an optional package that nothing here uses
        from brevitas import nn as layers
        from brevitas.graph.calibrate import calibration_mode
        from brevitas.graph.quantize import layerwise_quantize
        from brevitas.quant import Int8ActPerTensorFloat, Int8WeightPerChannelFloat

    options = {"weight_quant": Int8WeightPerChannelFloat, "weight_bit_width": bits, "return_quant_tensor": False}
    if activations:
        options |= {"input_quant": Int8ActPerTensorFloat, "input_bit_width": bits}
    kinds = {nn.Conv2d: (layers.QuantConv2d, options), nn.Linear: (layers.QuantLinear, options)}
    net = layerwise_quantize(copy.deepcopy(model), kinds).eval()
    for layer in net.modules():
        if hasattr(layer, "weight_quant"):
            layer.weight_quant.cache_inference_quant_weight = True
    with torch.no_grad(), calibration_mode(net):
        net(images)
    return net


def torchao_network(model: nn.Module, images: Tensor, bits: int, activations: bool = True) -> nn.Module:
    """A copy of a float network, quantized by torchao's PT2E and calibrated on the images; its batches have their size.

    Args: as for `brevitas_network`.
    """
    from torchao.quantization.pt2e import HistogramObserver, PerChannelMinMaxObserver
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import QuantizationAnnotation, QuantizationSpec, Quantizer

    top = 2 ** (bits - 1) - 1
    weight = QuantizationSpec(torch.int8, PerChannelMinMaxObserver, -top, top, torch.per_channel_symmetric, ch_axis=0)
    layer_input = QuantizationSpec(torch.uint8, HistogramObserver, 0, 2**bits - 1, torch.per_tensor_affine)

    class Layers(Quantizer):
        """Input and weight of every convolution and linear layer, as in our views."""

        def annotate(self, graph):
            for node in graph.graph.nodes:
                if node.target in (torch.ops.aten.conv2d.default, torch.ops.aten.linear.default):
                    specs = {node.args[1]: weight} | ({node.args[0]: layer_input} if activations else {})
                    node.meta["quantization_annotation"] = QuantizationAnnotation(specs, _annotated=True)
            return graph

        def validate(self, graph):
            """Nothing to check: all layers are annotated alike."""

    exported = torch.export.export(copy.deepcopy(model), (images,)).module()
    prepared = prepare_pt2e(exported, Layers())
    with torch.no_grad():
        prepared(images)
    return convert_pt2e(prepared)
