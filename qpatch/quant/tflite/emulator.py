"""The whole integer network as an nn.Module: exact like TFLite Micro, batched, and differentiable straight through."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qpatch.errors import InputError
from qpatch.quant.tflite import layers, shapes
from qpatch.quant.tflite.addition import Add
from qpatch.quant.tflite.graph import Graph
from qpatch.quant.tflite.softmax import Softmax

KINDS: dict[str, type[nn.Module]] = {
    "CONV_2D": layers.Product,
    "DEPTHWISE_CONV_2D": layers.Product,
    "FULLY_CONNECTED": layers.Product,
    "ADD": Add,
    "AVERAGE_POOL_2D": shapes.Pool,
    "MAX_POOL_2D": shapes.Pool,
    "MEAN": shapes.Mean,
    "PAD": shapes.Pad,
    "STRIDED_SLICE": shapes.Slice,
    "RESHAPE": shapes.Reshape,
    "QUANTIZE": shapes.Requantize,
    "RELU": shapes.Rectify,
    "RELU6": shapes.Rectify,
    "SOFTMAX": Softmax,
}


class Integers(nn.Module):
    """Codes in, codes out: every operation of the file, in its order.

    Args:
        graph: an integer network, see `reader.read`.

    Attributes:
        first, last: index of the input tensor and of the output tensor.
        scores: index of the tensor with the class scores before a final SOFTMAX.

    Raises:
        InputError: an operation that the emulator does not know, or a float network.
    """

    def __init__(self, graph: Graph):
        super().__init__()
        if graph.precision == "float":
            raise InputError("this .tflite computes in floating point; run it with engine='litert'.")
        ops, self.first, self.last = graph.ops, graph.input, graph.output
        self.scores = graph.scores
        unknown = sorted({op.kind for op in ops} - set(KINDS))
        if unknown:
            raise InputError(f"the emulator does not know {', '.join(unknown)}; run this .tflite with engine='litert'.")
        self.layers = nn.ModuleList(KINDS[op.kind](op, graph.tensors) for op in ops)
        activations = {self.first, *(op.output for op in ops)}
        self.reads = [tuple(i for i in op.inputs if i in activations) for op in ops]
        self.writes = [op.output for op in ops]
        self.kinds = [op.kind for op in ops]

    def forward(self, x: Tensor, keep: tuple[int, ...] = ()) -> dict[int, Tensor]:
        """Run the network on codes minus zero point, float32 N×C×H×W.

        Returns:
            by tensor index: the scores, the output, and the tensors that `keep` names, all minus their zero points.
        """
        wanted = {self.last, self.scores, *keep}
        last_use = {i: step for step, reads in enumerate(self.reads) for i in reads}
        values = {self.first: x}
        with torch.backends.nnpack.flags(enabled=False):  # its Winograd convolutions are not exact
            for step, (layer, reads, write) in enumerate(zip(self.layers, self.reads, self.writes, strict=True)):
                values[write] = layer(*(values[i] for i in reads))
                for i in reads:
                    if last_use[i] == step and i not in wanted:
                        values.pop(i, None)
        return {i: values[i] for i in wanted}
