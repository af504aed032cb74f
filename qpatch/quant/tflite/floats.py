"""Float operations, run and simplified: BatchNorm and normalisation are folded into weights, ReLU into its source."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from qpatch.quant.tflite.nodes import Node


def run_node(node: Node, inputs: list[Tensor]) -> Tensor:
    """One operation on its inputs, float32."""
    y = _COMPUTE[node.kind](node, *inputs)
    if node.activation != "NONE":
        y = F.relu(y) if node.activation == "RELU" else F.relu6(y)
    return y


@torch.no_grad()
def run(nodes: list[Node], images: Tensor) -> dict[Node, Tensor]:
    """The output of every operation."""
    values = {nodes[0]: images}
    for node in nodes[1:]:
        values[node] = run_node(node, [values[source] for source in node.inputs])
    return values


def _conv(node: Node, x: Tensor) -> Tensor:
    options = node.options
    x = F.pad(x, options["padding"]) if any(options["padding"]) else x
    return F.conv2d(x, node.weight, node.bias, options["stride"], 0, options["dilation"], options["groups"])


def _affine(node: Node, x: Tensor) -> Tensor:
    shape = (1, -1) + (1,) * (x.dim() - 2)
    return x * node.weight.view(shape) + node.bias.view(shape)


_COMPUTE = {
    "conv": _conv,
    "linear": lambda node, x: F.linear(x, node.weight, node.bias),
    "affine": _affine,
    "add": lambda node, a, b: a + b,
    "average": lambda node, x: F.avg_pool2d(x, node.options["filter"], node.options["stride"]),
    "max": lambda node, x: F.max_pool2d(x, node.options["filter"], node.options["stride"]),
    "pad": lambda node, x: F.pad(x, node.options["sides"]),
    "slice": lambda node, x: x[node.options["index"]],
    "flatten": lambda node, x: x.flatten(1),
    "relu": lambda node, x: x,
}


def fold(nodes: list[Node]) -> list[Node]:
    """The same network with fewer operations; none of kind "affine" or "relu" is left.

    An affine operation (BatchNorm, normalisation) goes into the weights before it. At the network's entrance it goes
    into the weights after it where that is exact: always for its factor, for its summand only where the convolution
    pads nothing, because padding puts 0 *after* the normalisation. What cannot be folded becomes a depthwise 1×1
    convolution. A ReLU becomes the fused activation of the operation before it, or of a 1×1 max pooling.
    """
    nodes = _renamed(nodes)
    for node in list(nodes):
        readers = [other for other in nodes if node in other.inputs]
        source = node.inputs[0] if node.inputs else None
        alone = source is not None and sum(source in other.inputs for other in nodes) == 1
        if node.kind == "affine":
            if alone and source.kind in ("conv", "linear") and source.activation == "NONE":
                _scale_output(source, node)
                _drop(nodes, node)
            elif len(readers) == 1 and _can_follow(node, readers[0]):
                _scale_input(readers[0], node)
                _drop(nodes, node)
            else:
                _to_depthwise(node)
        elif node.kind == "relu":
            if alone and source.kind in ("conv", "linear", "add", "max", "average") and source.activation == "NONE":
                source.activation = node.activation
                _drop(nodes, node)
            else:
                node.kind, node.options = "max", {"filter": (1, 1), "stride": (1, 1)}
    for node in list(nodes):
        if node.kind == "conv" and node.inputs[0].kind == "pad" and _reads(nodes, node.inputs[0]) == 1:
            _take_padding(nodes, node)
    return nodes


def _renamed(nodes: list[Node]) -> list[Node]:
    """Copies of the nodes that read each other's copies."""
    copies: dict[Node, Node] = {}
    for node in nodes:
        copies[node] = replace(node, inputs=[copies[source] for source in node.inputs], options=dict(node.options))
    return list(copies.values())


def _reads(nodes: list[Node], node: Node) -> int:
    return sum(other.inputs.count(node) for other in nodes)


def _drop(nodes: list[Node], node: Node) -> None:
    """Take a node out: whoever read it reads what it read."""
    for other in nodes:
        other.inputs = [node.inputs[0] if source is node else source for source in other.inputs]
    nodes.remove(node)


def _scale_output(node: Node, affine: Node) -> None:
    node.weight = node.weight * affine.weight.view(-1, *(1,) * (node.weight.dim() - 1))
    node.bias = node.bias * affine.weight + affine.bias


def _can_follow(affine: Node, reader: Node) -> bool:
    if reader.kind != "conv" or reader.options["groups"] != 1:
        return False
    return not affine.bias.any() or not any(reader.options["padding"])


def _scale_input(node: Node, affine: Node) -> None:
    node.bias = node.bias + (node.weight * affine.bias.view(1, -1, 1, 1)).sum((1, 2, 3))
    node.weight = node.weight * affine.weight.view(1, -1, 1, 1)


def _to_depthwise(node: Node) -> None:
    node.kind = "conv" if len(node.shape) == 3 else node.kind
    channels = len(node.bias)
    if node.kind == "affine":
        node.kind, node.weight = "linear", torch.diag(node.weight)
        return
    node.weight = node.weight.view(channels, 1, 1, 1)
    node.options = {"stride": (1, 1), "dilation": (1, 1), "groups": channels, "padding": (0, 0, 0, 0)}


def _take_padding(nodes: list[Node], conv: Node) -> None:
    pad = conv.inputs[0]
    sides = pad.options["sides"]
    if any(sides[4:]):
        return
    conv.options["padding"] = tuple(a + b for a, b in zip(conv.options["padding"], sides[:4], strict=True))
    _drop(nodes, pad)
