"""Small .tflite networks, built operation by operation, and the judge: TFLite Micro's own interpreter."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from qpatch.quant.tflite import graph as ir
from qpatch.quant.tflite.emulator import Integers
from qpatch.quant.tflite.layers import same_padding
from qpatch.quant.tflite.writer import write

ONE = (1, 1)


class Builder:
    """A chain of random operations of one activation type; `tensor` is the index of the last output."""

    def __init__(self, dtype: str, shape: tuple[int, int, int] = (6, 6, 3), seed: int = 0):
        self.rng = np.random.default_rng(seed)
        self.dtype, self.tensors, self.ops = dtype, [], []
        self.tensor = self.activation((1, *shape))

    def activation(self, shape, scale=None, zero=None, dtype=None) -> int:
        dtype = dtype or self.dtype
        scale = scale or self.rng.uniform(0.01, 0.05) * (1 / 256 if dtype == "int16" else 1)
        zero = (0 if dtype == "int16" else int(self.rng.integers(-128, 128))) if zero is None else zero
        name, scale = f"t{len(self.tensors)}", np.array([scale], np.float32)
        return self.add(ir.Tensor(name, tuple(shape), dtype, scale, np.array([zero])))

    def constant(self, values, dtype=None, scale=(), axis=0) -> int:
        values = np.asarray(values)
        zero = np.zeros(len(scale), np.int64)
        return self.add(ir.Tensor(f"c{len(self.tensors)}", values.shape, dtype or values.dtype.name,
                                  np.asarray(scale, np.float32), zero, axis, values))  # fmt: skip

    def add(self, tensor: ir.Tensor) -> int:
        self.tensors.append(tensor)
        return len(self.tensors) - 1

    def op(self, kind: str, inputs: tuple[int, ...], output: int, **options) -> Builder:
        self.ops.append(ir.Op(kind, inputs, output, options))
        self.tensor = output
        return self

    @property
    def last(self) -> ir.Tensor:
        return self.tensors[self.tensor]

    @property
    def graph(self) -> ir.Graph:
        return ir.Graph(tuple(self.tensors), tuple(self.ops), 0, self.tensor)

    def weights(self, shape, channels: int, axis: int, bits: int = 8, per_channel: bool = True) -> tuple[int, int]:
        limit = 2 ** (bits - 1) - 1
        scale = self.rng.uniform(0.002, 0.02, channels if per_channel else 1).astype(np.float32)
        codes = self.rng.integers(-limit, limit + 1, shape).astype(np.int8)
        first = self.constant(codes, "int4" if bits == 4 else "int8", scale, axis)
        wide = np.int64 if self.dtype == "int16" else np.int32
        bias = self.rng.integers(-3000, 3000, channels).astype(wide)
        return first, self.constant(bias, scale=(self.last.step * scale.astype(np.float64)))

    def conv(self, channels=4, kernel=(3, 3), stride=ONE, dilation=ONE, padding="SAME", activation="NONE", bits=8):
        weights = self.weights((channels, *kernel, self.last.shape[3]), channels, 0, bits)
        output = self.activation(self._window(channels, kernel, stride, dilation, padding))
        return self.op("CONV_2D", (self.tensor, *weights), output, stride=stride, dilation=dilation, padding=padding,
                       activation=activation)  # fmt: skip

    def depthwise(self, multiplier=1, kernel=(3, 3), stride=ONE, padding="SAME", activation="NONE"):
        channels = self.last.shape[3] * multiplier
        weights = self.weights((1, *kernel, channels), channels, 3)
        output = self.activation(self._window(channels, kernel, stride, ONE, padding))
        return self.op("DEPTHWISE_CONV_2D", (self.tensor, *weights), output, stride=stride, dilation=ONE,
                       padding=padding, activation=activation, multiplier=multiplier)  # fmt: skip

    def linear(self, features=5, activation="NONE"):
        weights = self.weights((features, self.last.shape[1]), features, 0, per_channel=False)
        output = self.activation((1, features))
        return self.op("FULLY_CONNECTED", (self.tensor, *weights), output, activation=activation)

    def pool(self, kind, kernel=(2, 2), stride=(2, 2), padding="VALID", activation="NONE"):
        shape = self._window(self.last.shape[3], kernel, stride, ONE, padding)
        output = self.activation(shape, self.last.step, self.last.offset)
        return self.op(f"{kind}_POOL_2D", (self.tensor,), output, filter=kernel, stride=stride, padding=padding,
                       activation=activation)  # fmt: skip

    def flatten(self):
        size = int(np.prod(self.last.shape))
        shape = self.constant(np.array([-1, size], np.int32))
        output = self.activation((1, size), self.last.step, self.last.offset)
        return self.op("RESHAPE", (self.tensor, shape), output)

    def softmax(self, beta=1.0):
        scale, zero = (1 / 32768, 0) if self.dtype == "int16" else (1 / 256, -128)
        return self.op("SOFTMAX", (self.tensor,), self.activation(self.last.shape, scale, zero), beta=beta)

    def _window(self, channels, kernel, stride, dilation, padding) -> tuple[int, ...]:
        sizes = []
        for size, k, s, d in zip(self.last.shape[1:3], kernel, stride, dilation, strict=True):
            total = sum(same_padding(size, k, s, d)) if padding == "SAME" else 0
            sizes.append((size + total - (k - 1) * d - 1) // s + 1)
        return (1, *sizes, channels)


def random_codes(graph: ir.Graph, n: int, seed: int = 0) -> Tensor:
    """int64 codes N×… of the input tensor, extremes included."""
    tensor = graph.tensors[graph.input]
    low, high = tensor.range
    codes = torch.randint(low, high + 1, (n, *tensor.shape[1:]), generator=torch.Generator().manual_seed(seed))
    codes[0], codes[1] = low, high
    return codes


def emulate(graph: ir.Graph, codes: Tensor) -> Tensor:
    """Output codes of the emulator, int64."""
    net = Integers(graph)
    x = (codes - graph.tensors[graph.input].offset).float()
    with torch.no_grad():
        y = net(x.permute(0, 3, 1, 2) if x.dim() == 4 else x)[net.last]
    y = y.permute(0, 2, 3, 1) if y.dim() == 4 else y
    return y.long() + graph.tensors[graph.output].offset


def tflm(graph: ir.Graph, codes: Tensor) -> Tensor:
    """Output codes of TFLite Micro, int64; skips where it is not installed."""
    runtime = pytest.importorskip(
        "tflite_micro.python.tflite_micro.runtime", reason="tflite-micro exists for Linux on x86-64 only"
    )
    net = runtime.Interpreter.from_bytes(write(graph), arena_size=2**22)
    dtype = ir.numpy_type(graph.tensors[graph.input].dtype)
    rows = []
    for code in codes.numpy().astype(dtype):
        net.set_input(code[None], 0)
        net.invoke()
        rows.append(net.get_output(0)[0].copy())
    return torch.from_numpy(np.stack(rows)).long()
