"""From a float network to a .tflite by the policy of paper C (its released code: post-training, full integer).

- Codes: real = scale · (code − zero). Weights are symmetric: per output channel for convolutions, per tensor for
  fully connected layers, in [−127, 127]. Biases have the scale input · weights, int32 (int64 for int16x8).
- int8 activations are asymmetric, one scale per tensor, from the smallest and the largest value on the calibration
  images; the input has scale 1/255 and zero −128. int16 activations are symmetric; the input has scale 1/32767.
- Pooling, padding, slicing and reshaping keep their input's scale. ReLU is fused. A softmax has scale 1/256 and
  zero −128 (int8), or 1/32768 (int16).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qpatch.checks import check_eval
from qpatch.errors import InputError, one_of
from qpatch.quant.tflite.assemble import Assembly
from qpatch.quant.tflite.floats import fold, run
from qpatch.quant.tflite.nodes import Node
from qpatch.quant.tflite.policy import activation_scales, check_calibration, ranges
from qpatch.quant.tflite.trace import trace
from qpatch.quant.tflite.writer import write

_CHUNK = 50
_TOLERANCE = 1e-3  # of the largest logit: more than float32 rounding, less than any mistake in folding


def convert(
    model: nn.Module, images: Tensor, activations: str = "int8", weight_bits: int = 8, softmax: bool = False
) -> bytes:
    """A real .tflite of a float network, which LiteRT and TFLite Micro run.

    Args:
        model: float network in eval mode that takes [0, 1] images N×C×H×W and returns logits: convolutions, linear
            layers, BatchNorm, `Normalize`, ReLU, pooling, addition, zero padding.
        images: calibration images, float32 in [0, 1]; paper C takes 500.
        activations: "int8", or "int16" (the int16x8 scheme: int16 activations, the same int8 weights).
        weight_bits: 8, or with int8 activations 4: packed int4 weights, in [−7, 7], of all but depthwise convolutions.
        softmax: end with a SOFTMAX, as paper C's files do; otherwise the output is the logits.

    Returns:
        the bytes of the file; the same arguments give the same bytes.

    Raises:
        InputError: train mode, an unsupported module, or images that are no images or say nothing about ranges.
        ParameterError: unknown type of activations or weights.
    """
    one_of(activations, ("int8", "int16"), "type of activations")
    widths = (8, 4) if activations == "int8" else (8,)
    one_of(weight_bits, widths, f"width of the weights beside {activations} activations")
    check_calibration(images)
    check_eval(model)
    with torch.no_grad():
        nodes = fold(trace(model, images))
        _check_folding(nodes, model, images[:_CHUNK])
    scales = activation_scales(nodes, ranges(nodes, images), activations)
    return write(Assembly(nodes, scales, activations, weight_bits, softmax).graph)


def _check_folding(nodes: list[Node], model: nn.Module, images: Tensor) -> None:
    expected, folded = model(images), run(nodes, images)[nodes[-1]]
    error = float((expected - folded).abs().max())
    if not error <= _TOLERANCE * max(1.0, float(expected.abs().max())):
        raise InputError(f"the folded network differs from the model by {error:.3g}; something in it is not supported.")
