"""Quantized weights and TFLite operations for a folded float network whose activation scales are known."""

from __future__ import annotations

import numpy as np

from qpatch.quant.tflite import graph as ir
from qpatch.quant.tflite.layers import same_padding
from qpatch.quant.tflite.nodes import Node

_LARGEST_BIAS = 2**30  # codes; leaves the accumulator as much again


class Assembly:
    """Builds a `Graph` node by node.

    Args:
        nodes: from `floats.fold`.
        scales: scale and zero point of every node's output.
        activations: "int8" or "int16".
        weight_bits: 8 or 4.
        softmax: end with SOFTMAX.

    Attributes:
        graph: the finished network.
    """

    def __init__(self, nodes: list[Node], scales: dict, activations: str, weight_bits: int, softmax: bool):
        self.activations, self.weight_bits = activations, weight_bits
        self.tensors: list[ir.Tensor] = []
        self.ops: list[ir.Op] = []
        self.index: dict[Node, int] = {}
        self.layout: dict[Node, tuple[int, ...]] = {}  # C, H, W of flattened images
        for node in nodes:
            if node.kind == "input":
                self.index[node] = self._activation("image", node.shape, *scales[node])
            else:
                getattr(self, f"_{node.kind}")(node, scales[node])
        output = self.index[nodes[-1]]
        if softmax:
            scale, zero = (np.float32(1 / 256), -128) if activations == "int8" else (np.float32(1 / 32768), 0)
            output = self._activation("probabilities", nodes[-1].shape, scale, zero)
            self.ops.append(ir.Op("SOFTMAX", (self.index[nodes[-1]],), output, {"beta": 1.0}))
        self.graph = ir.Graph(tuple(self.tensors), tuple(self.ops), self.index[nodes[0]], output)

    def _conv(self, node: Node, quantization: tuple) -> None:
        options = node.options
        depthwise = options["groups"] > 1
        kind = "DEPTHWISE_CONV_2D" if depthwise else "CONV_2D"
        settings = {"stride": options["stride"], "dilation": options["dilation"], "activation": node.activation}
        if depthwise:
            settings["multiplier"] = len(node.weight) // options["groups"]
        source, settings["padding"] = self._padded(node)
        bits = 8 if depthwise else self.weight_bits
        order = (1, 2, 3, 0) if depthwise else (0, 2, 3, 1)
        weights = node.weight.double().numpy()
        weights = self._weights(kind, weights, order, node, source, bits, axis=3 if depthwise else 0)
        self._op(kind, (source, *weights), node, quantization, settings)

    def _linear(self, node: Node, quantization: tuple) -> None:
        weights = node.weight.double()
        layout = self.layout.get(node.inputs[0])
        if layout:  # the columns are C×H×W here, H×W×C in the file
            weights = weights.reshape(-1, *layout).permute(0, 2, 3, 1).flatten(1)
        source = self.index[node.inputs[0]]
        weights = self._weights("FULLY_CONNECTED", weights.numpy(), (0, 1), node, source, 8, axis=None)
        self._op("FULLY_CONNECTED", (source, *weights), node, quantization, {"activation": node.activation})

    def _add(self, node: Node, quantization: tuple) -> None:
        self._op("ADD", self._sources(node), node, quantization, {"activation": node.activation})

    def _average(self, node: Node, quantization: tuple, kind: str = "AVERAGE_POOL_2D") -> None:
        settings = {**node.options, "padding": "VALID", "activation": node.activation}
        self._op(kind, self._sources(node), node, quantization, settings)

    def _max(self, node: Node, quantization: tuple) -> None:
        if len(node.shape) == 3:
            self._average(node, quantization, "MAX_POOL_2D")
            return
        image = self._reshape(self.index[node.inputs[0]], (1, 1, node.shape[0]))  # a ReLU after flattening
        pooled = self._activation("rectified", (node.shape[0], 1, 1), *quantization)
        settings = {**node.options, "padding": "VALID", "activation": node.activation}
        self.ops.append(ir.Op("MAX_POOL_2D", (image,), pooled, settings))
        self.index[node] = self._reshape(pooled, node.shape)
        self._keep_layout(node)

    def _pad(self, node: Node, quantization: tuple) -> None:
        left, right, top, bottom, before, after = node.options["sides"]
        sides = self._constant("paddings", np.array([[0, 0], [top, bottom], [left, right], [before, after]], np.int32))
        self._op("PAD", (*self._sources(node), sides), node, quantization, {})

    def _slice(self, node: Node, quantization: tuple) -> None:
        batch, channels, rows, columns = node.options["index"]
        sizes = (1, *node.inputs[0].shape)
        parts = [part.indices(size) for part, size in zip((batch, channels, rows, columns), sizes, strict=True)]
        parts = [parts[0], parts[2], parts[3], parts[1]]
        ends = [self._constant(name, np.array([part[k] for part in parts], np.int32))
                for k, name in enumerate(("begin", "end", "strides"))]  # fmt: skip
        settings = {"begin_mask": 1, "end_mask": 1}  # the whole batch
        self._op("STRIDED_SLICE", (*self._sources(node), *ends), node, quantization, settings)

    def _flatten(self, node: Node, quantization: tuple) -> None:
        source = node.inputs[0]
        if len(source.shape) == 1:
            self.index[node] = self.index[source]
        else:
            self.index[node] = self._reshape(self.index[source], node.shape)
            self.layout[node] = source.shape
        self._keep_layout(node)

    def _keep_layout(self, node: Node) -> None:
        if node.inputs[0] in self.layout:
            self.layout[node] = self.layout[node.inputs[0]]

    def _sources(self, node: Node) -> tuple[int, ...]:
        return tuple(self.index[source] for source in node.inputs)

    def _padded(self, node: Node) -> tuple[int, str]:
        """The tensor that a convolution reads and its padding scheme; PAD comes before it where neither scheme fits."""
        left, right, top, bottom = node.options["padding"]
        source = node.inputs[0]
        steps = (node.options["stride"], node.options["dilation"])
        same = [same_padding(*span) for span in zip(source.shape[1:], node.weight.shape[2:], *steps, strict=True)]
        if not any(node.options["padding"]):
            return self.index[source], "VALID"
        if same == [(top, bottom), (left, right)]:
            return self.index[source], "SAME"
        padded = Node("pad", [source], options={"sides": (left, right, top, bottom, 0, 0)})
        channels, height, width = source.shape
        padded.shape = (channels, height + top + bottom, width + left + right)
        tensor = self.tensors[self.index[source]]
        self._pad(padded, (tensor.scale[0], tensor.offset))
        return self.index[padded], "VALID"

    def _weights(self, kind, weights, order, node: Node, source: int, bits: int, axis: int | None) -> tuple[int, int]:
        """Quantize weights (output channels first) and bias; add both tensors and return their indices."""
        limit = 2 ** (bits - 1) - 1
        step, bias = self.tensors[source].step, node.bias.double().numpy()
        rows = np.abs(weights).reshape(len(weights), -1).max(1)
        least = np.abs(bias) / (step * _LARGEST_BIAS)  # a bias must fit its integers even where all weights are 0
        scale = np.maximum(np.maximum(rows / limit, least), 1e-12)
        scale = (scale if axis is not None else scale.max(keepdims=True)).astype(np.float32)
        column = scale.astype(np.float64).reshape(-1, *(1,) * (weights.ndim - 1))
        codes = np.clip(np.rint(weights / column), -limit, limit).astype(np.int8).transpose(order)
        zero = np.zeros(len(scale), np.int64)
        name = f"{kind.lower()}_{len(self.ops)}"
        dtype = "int4" if bits == 4 else "int8"
        first = self._tensor(ir.Tensor(f"{name}_weights", codes.shape, dtype, scale, zero, axis or 0, codes))
        scales = step * scale.astype(np.float64)
        wide = np.int32 if self.activations == "int8" else np.int64
        whole = np.rint(bias / scales).astype(wide)
        second = ir.Tensor(f"{name}_bias", whole.shape, whole.dtype.name, scales.astype(np.float32), zero, 0, whole)
        return first, self._tensor(second)

    def _op(self, kind: str, inputs: tuple[int, ...], node: Node, quantization: tuple, settings: dict) -> None:
        output = self._activation(f"{kind.lower()}_{len(self.ops)}", node.shape, *quantization)
        self.ops.append(ir.Op(kind, inputs, output, settings))
        self.index[node] = output

    def _reshape(self, source: int, shape: tuple[int, ...]) -> int:
        """Add RESHAPE to a shape as the file has it, without batch; any batch size stays possible."""
        old = self.tensors[source]
        size = self._constant("shape", np.array([-1, *shape], np.int32))
        output = self._tensor(ir.Tensor(f"reshape_{len(self.ops)}", (1, *shape), old.dtype, old.scale, old.zero))
        self.ops.append(ir.Op("RESHAPE", (source, size), output, {}))
        return output

    def _activation(self, name: str, shape: tuple[int, ...], scale: np.float32, zero: int) -> int:
        shape = (1, shape[1], shape[2], shape[0]) if len(shape) == 3 else (1, *shape)
        return self._tensor(ir.Tensor(name, shape, self.activations, np.array([scale], np.float32), np.array([zero])))

    def _constant(self, name: str, values: np.ndarray) -> int:
        return self._tensor(ir.Tensor(name, values.shape, values.dtype.name, data=values))

    def _tensor(self, tensor: ir.Tensor) -> int:
        self.tensors.append(tensor)
        return len(self.tensors) - 1
