"""A quantized view as the .tflite that computes it in integers: its own weights, its own ranges, its own levels.

`quant.tflite.convert` quantizes a *float* network after training, by paper C's policy. Here the network has been
trained at b bits, and the file keeps what was trained:

- Weights keep the view's codes and scales; BatchNorm goes into the scales. Codes of up to four bits are packed, two to
  a byte: also those of a two-bit view, because neither interpreter has a narrower type.
- The type of activations is int8. The zero point makes it narrower: with the zero point 127 − (2^b − 1) only 2^b codes
  are left above zero, so the type itself clips at the upper end as the view does, and a ReLU clips at the lower end.

What a device cannot have, and the view has, are floats beside the quantized layers: sums of two branches, their terms,
and logits are 8-bit codes here, with ranges from calibration.
"""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import Tensor, nn

from qpatch.checks import check_eval
from qpatch.errors import InputError
from qpatch.quant.multibit import QuantizedLayer
from qpatch.quant.quantizers import Quantizer, Symmetric
from qpatch.quant.tflite import graph as ir
from qpatch.quant.tflite.assemble import Assembly
from qpatch.quant.tflite.floats import fold, run_node
from qpatch.quant.tflite.nodes import Node
from qpatch.quant.tflite.policy import activation_scales, check_calibration
from qpatch.quant.tflite.trace import trace
from qpatch.quant.tflite.writer import write

_CHUNK = 50
_OFF_LATTICE = 1e-3  # of one code step: more than rounding in float32, less than any mistake in folding


def export(view: nn.Module, images: Tensor) -> bytes:
    """The .tflite of a view of a `MultiBit` with symmetric quantizers.

    Args:
        view: in eval mode, for instance `zoo.load("joint").at(2)`; it is not changed.
        images: calibration images, float32 in [0, 1], for the tensors that the view holds as floats.

    Returns:
        the bytes of the file; the same arguments give the same bytes.

    Raises:
        InputError: train mode, no quantized layer, another quantizer, more than 8 bits, fewer than 8 signed bits of
            activations, an unsupported module, or images that say nothing about ranges.
    """
    check_calibration(images)
    check_eval(view)
    plain, layers = _unwrapped(view)
    with torch.no_grad():
        nodes = trace(plain, images)
        _mark(nodes, layers)
        nodes = _with_lattices(fold(nodes))
        spans = _spans(nodes, images)
    scales = activation_scales(nodes, spans, "int8")
    for node in (node for node in nodes if node.kind == "quantize"):
        scales[node] = _lattice(node, spans)
        for source in _alone_before(node, nodes):
            scales[source] = scales[node]  # nobody else reads it, so it is computed on the lattice at once
    return write(_Assembly(nodes, scales).graph)


def _unwrapped(view: nn.Module) -> tuple[nn.Module, list[tuple[Tensor, dict]]]:
    """A float copy of the view with quantized weights, and for each of its quantized layers what the file must keep."""
    plain, layers = copy.deepcopy(view), []
    for layer in [module for module in plain.modules() if isinstance(module, QuantizedLayer)]:
        weights, inputs = layer.weight_quantizer, layer.input_quantizer
        if type(weights) is not Symmetric or type(inputs) is not Symmetric or max(weights.bits, inputs.bits) > 8:
            raise InputError("only views with symmetric quantizers of at most 8 bits can be exported with their codes.")
        latent = layer._parameters["weight"].detach()
        largest = weights.integers(latent).abs().flatten(1).amax(1).double().numpy()
        shown = layer.weight.detach().clone()
        del layer.weight_quantizer, layer.input_quantizer
        layer.__class__ = type(layer).__bases__[1]
        layer.weight = nn.Parameter(shown, requires_grad=False)
        layers.append((shown, {"bits": weights.bits, "largest": largest, "quantizer": inputs}))
    if not layers:
        raise InputError("this view has no quantized layer; use qpatch.quant.tflite.convert for a float network.")
    return plain, layers


def _mark(nodes: list[Node], layers: list[tuple[Tensor, dict]]) -> None:
    """Give every operation with quantized weights what the file must keep of its layer."""
    free = [node for node in nodes if node.kind in ("conv", "linear")]
    for weights, kept in layers:
        found = [node for node in free if torch.equal(node.weight, weights)]
        if not found:
            raise InputError("a quantized layer of this view is not a part of its forward pass; it cannot be exported.")
        found[0].options |= kept
        free.remove(found[0])


def _with_lattices(nodes: list[Node]) -> list[Node]:
    """The same network with a node "quantize" before every quantized layer."""
    complete = []
    for node in nodes:
        if "quantizer" in node.options:
            source = node.inputs[0]
            rounded = Node("quantize", [source], options={"quantizer": node.options["quantizer"]}, shape=source.shape)
            node.inputs = [rounded]
            complete.append(rounded)
        complete.append(node)
    return complete


def _spans(nodes: list[Node], images: Tensor) -> dict[Node, tuple[float, float]]:
    """Smallest and largest value of every operation behind quantized inputs, 0 included."""
    spans = {node: (0.0, 0.0) for node in nodes}
    for part in images.split(_CHUNK):
        values = {nodes[0]: part}
        for node in nodes[1:]:
            inputs = [values[source] for source in node.inputs]
            values[node] = node.options["quantizer"](*inputs) if node.kind == "quantize" else run_node(node, inputs)
        spans = {node: (min(low, float(values[node].min())), max(high, float(values[node].max())))
                 for node, (low, high) in spans.items()}  # fmt: skip
    return spans


def _lattice(node: Node, spans: dict) -> tuple[np.float32, int]:
    """Scale and zero point at which int8 has exactly the levels of the view's quantizer, from zero up."""
    quantizer: Quantizer = node.options["quantizer"]
    low, high = quantizer.limits
    if quantizer.bits < 8 and (low < 0 or spans[node.inputs[0]][0] < 0):
        what = f"{quantizer.bits}-bit activations with a sign"
        raise InputError(f"{what} cannot be exported: int8 clips them at one end only.")
    return np.float32(quantizer.scale.item()), 127 - high if low == 0 else 0


def _alone_before(node: Node, nodes: list[Node]) -> list[Node]:
    """The operations before a "quantize" that nothing else reads, back to the first that can change the scale."""
    found, source = [], node.inputs[0]
    while sum(source in other.inputs for other in nodes) == 1:
        if source.kind in ("conv", "add") or _is_global(source):
            return [*found, source]
        if source.kind != "flatten":
            return []
        found.append(source)
        source = source.inputs[0]
    return []


def _is_global(node: Node) -> bool:
    return node.kind == "average" and tuple(node.options["filter"]) == tuple(node.inputs[0].shape[1:])


class _Assembly(Assembly):
    """`Assembly` with given codes of weights, a QUANTIZE before a layer where its input is not on the layer's lattice
    yet, and a MEAN for the average over the whole picture: unlike AVERAGE_POOL_2D, it may change the scale.
    """

    def __init__(self, nodes: list[Node], scales: dict):
        super().__init__(nodes, scales, "int8", 8, softmax=False)

    def _quantize(self, node: Node, quantization: tuple) -> None:
        tensor = self.tensors[self.index[node.inputs[0]]]
        if (tensor.scale[0], tensor.offset) == quantization:
            self.index[node] = self.index[node.inputs[0]]
        else:
            self._op("QUANTIZE", self._sources(node), node, quantization, {})
        self._keep_layout(node)

    def _average(self, node: Node, quantization: tuple, kind: str = "AVERAGE_POOL_2D") -> None:
        if _is_global(node):
            axes = self._constant("axes", np.array([1, 2], np.int32))
            self._op("MEAN", (*self._sources(node), axes), node, quantization, {"keep": True})
        else:
            super()._average(node, quantization, kind)

    def _weights(self, kind, weights, order, node: Node, source: int, bits: int, axis: int | None) -> tuple[int, int]:
        if "largest" not in node.options:
            return super()._weights(kind, weights, order, node, source, bits, axis)
        largest, step = node.options["largest"], self.tensors[source].step
        rows = np.abs(weights).reshape(len(weights), -1).max(1)
        scale = np.where(largest > 0, rows / np.maximum(largest, 1), 1.0).astype(np.float32)
        exact = weights / scale.astype(np.float64).reshape(-1, *(1,) * (weights.ndim - 1))
        codes = np.rint(exact)
        if np.abs(exact - codes).max() > _OFF_LATTICE:
            raise InputError("the weights of a layer leave their codes when the layers around it are folded into it.")
        scales = step * scale.astype(np.float64)
        bias = np.rint(node.bias.double().numpy() / scales).astype(np.int32)
        name, zero = f"{kind.lower()}_{len(self.ops)}", np.zeros(len(scale), np.int64)
        packed = kind == "CONV_2D" and node.options["bits"] <= 4
        codes = codes.astype(np.int8).transpose(order)
        given = ir.Tensor(f"{name}_weights", codes.shape, "int4" if packed else "int8", scale, zero, axis or 0, codes)
        first = self._tensor(given)
        second = ir.Tensor(f"{name}_bias", bias.shape, "int32", scales.astype(np.float32), zero, 0, bias)
        return first, self._tensor(second)
