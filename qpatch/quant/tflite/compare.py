"""Where engines differ: the codes of every operation of a file, engine by engine."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from qpatch.errors import one_of
from qpatch.quant.tflite.addition import Add
from qpatch.quant.tflite.emulator import Integers
from qpatch.quant.tflite.ends import Input, input_of
from qpatch.quant.tflite.engines import LiteRT, TFLM
from qpatch.quant.tflite.graph import Graph
from qpatch.quant.tflite.layers import Product
from qpatch.quant.tflite.predictor import twin
from qpatch.quant.tflite.reader import read
from qpatch.quant.tflite.surgery import core, until

REFERENCE = "tflm"
SIMULATION = "simulation"  # what most papers run: float32 arithmetic, rounded once after every layer
COMPARED = ("emulator", "twin", SIMULATION, "litert", REFERENCE)


def layer_codes(data: bytes, images: Tensor, engine: str) -> list[Tensor]:
    """The output codes of every operation, int64 N×values in the file's order of values.

    Args:
        data: an integer .tflite.
        images: float32 (N, C, H, W) in [0, 1]; a few.
        engine: one of `COMPARED`. The interpreters run the file once per operation, cut off after it.

    Raises:
        ParameterError: unknown engine, or its package is not installed.
    """
    one_of(engine, COMPARED, "engine")
    data = core(data)
    graph = read(data)
    ends = input_of(graph.tensors[graph.input])
    if engine in ("litert", REFERENCE):
        kind = LiteRT if engine == "litert" else TFLM
        parts = ((until(data, step), _cut(graph, step)) for step in range(len(graph.ops)))
        return [kind(file, part, ends)(images, "output").flatten(1).long() for file, part in parts]
    found = _ours(data, graph, ends, images, engine)
    return [_in_file_order(values) + graph.tensors[index].offset for index, values in found]


def layer_differences(data: bytes, images: Tensor, engines: Iterable[str], reference: str = REFERENCE) -> list[dict]:
    """For every operation and engine: the share of codes that differ from the reference's, and by how much at most.

    Returns:
        rows with step (from 0), kind, engine, share, largest.
    """
    kinds = [op.kind for op in read(core(data)).ops]
    expected = layer_codes(data, images, reference)
    rows = []
    for engine in engines:
        for step, (codes, wanted) in enumerate(zip(layer_codes(data, images, engine), expected, strict=True)):
            gap = (codes - wanted).abs()
            share, largest = float((gap > 0).float().mean()), int(gap.max())
            rows.append({"step": step, "kind": kinds[step], "engine": engine, "share": share, "largest": largest})
    return rows


def simulate(layer: torch.nn.Module, *inputs: Tensor) -> Tensor:
    """A layer as a fake-quantization simulation has it: float32 arithmetic and one rounding, halves to even."""
    if isinstance(layer, Product):
        steps = layer.steps
        real = layer.accumulate(inputs[0]).float() * steps.slope + (steps.bias * steps.factor).float()
        return real.round().clamp(steps.low, steps.high)
    if isinstance(layer, Add):
        real = inputs[0] * layer.slopes[0] + inputs[1] * layer.slopes[1]
        return real.round().clamp(layer.low, layer.high)
    return layer(*inputs)


def _ours(data: bytes, graph: Graph, ends: Input, images: Tensor, engine: str) -> Iterable[tuple[int, Tensor]]:
    net = twin(data).integers if engine == "twin" else Integers(graph)
    values = {net.first: ends.relative(images)}
    with torch.set_grad_enabled(engine == "twin"):
        if engine == "twin":
            values[net.first].requires_grad_()
        for layer, reads, write in zip(net.layers, net.reads, net.writes, strict=True):
            inputs = [values[i] for i in reads]
            values[write] = simulate(layer, *inputs) if engine == SIMULATION else layer(*inputs)
    return [(write, values[write].detach()) for write in net.writes]


def _cut(graph: Graph, step: int) -> Graph:
    return Graph(graph.tensors, graph.ops[: step + 1], graph.input, graph.ops[step].output)


def _in_file_order(values: Tensor) -> Tensor:
    return (values.permute(0, 2, 3, 1) if values.dim() == 4 else values).flatten(1).long()
