"""From an nn.Module to a list of float operations that TFLite has, by torch.fx."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from qpatch.errors import InputError
from qpatch.models.normalize import Normalize
from qpatch.quant.tflite.floats import run_node
from qpatch.quant.tflite.nodes import Node


class _Tracer(fx.Tracer):
    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, (Normalize, nn.Conv2d, nn.Linear)) or super().is_leaf_module(module, name)


def trace(model: nn.Module, images: Tensor) -> list[Node]:
    """The operations of `model`, in order; the first is the input, the last the logits.

    Raises:
        InputError: a module or function without a counterpart here, or a forward that torch.fx cannot follow.
    """
    try:
        recorded = _Tracer().trace(model)
    except (fx.proxy.TraceError, TypeError, ValueError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        message = f"the network's forward cannot be traced ({reason}); write it without data-dependent code."
        raise InputError(message) from error
    nodes: dict[fx.Node, Node] = {}
    order: list[Node] = []
    for entry in recorded.nodes:
        if entry.op == "output":
            last = entry.args[0]
            if not isinstance(last, fx.Node):
                raise InputError("the network must return one tensor of logits.")
            return _until(nodes[last], order)
        if entry.op == "placeholder":
            if order:
                raise InputError("the network must take one tensor of images.")
            node = Node("input", [])
        elif entry.op == "get_attr":
            raise InputError(f"the network uses the tensor {entry.target!r} directly; only modules may hold weights.")
        else:
            module = model.get_submodule(entry.target) if entry.op == "call_module" else None
            node = _convert(entry, module, nodes)
        nodes[entry] = node
        _append(node, order, images)
    raise InputError("the network returns nothing.")


def _append(node: Node, order: list[Node], images: Tensor) -> None:
    """Put a node, after the ones that it reads, at the end of the list, and fill in its shape."""
    if node not in order:
        for source in node.inputs:
            _append(source, order, images)
        order.append(node)
        _measure(node, images)


def _until(last: Node, order: list[Node]) -> list[Node]:
    if last.inputs and len(last.shape) == 1:
        return order[: order.index(last) + 1]
    raise InputError(f"the network must return logits N×classes, got N×{'×'.join(map(str, last.shape))}.")


def _convert(entry: fx.Node, module: nn.Module | None, nodes: dict[fx.Node, Node]) -> Node:
    inputs = [nodes[argument] for argument in entry.args if isinstance(argument, fx.Node)]
    inputs += [nodes[argument] for argument in entry.kwargs.values() if isinstance(argument, fx.Node)]
    rest = [argument for argument in entry.args if not isinstance(argument, fx.Node)]
    if module is not None:
        make = MODULES.get(type(module))
        node = make(module, inputs) if make else None
        what = f"module {entry.target!r} ({type(module).__name__})"
    else:
        name = entry.target if isinstance(entry.target, str) else entry.target.__name__
        make = FUNCTIONS.get(entry.target)
        node = make(inputs, *rest, **entry.kwargs) if make else None
        what = f"{name}()"
    if node is None:
        raise InputError(f"{what} cannot be written to .tflite; supported are convolution, linear, BatchNorm, ReLU, "
                         "pooling, addition, zero padding, flatten and dropout.")  # fmt: skip
    return node


def _measure(node: Node, images: Tensor) -> None:
    """Fill in the shape by running the node on zeros of its inputs' shapes."""
    if node.kind == "input":
        node.shape = tuple(images.shape[1:])
        return
    try:
        node.shape = tuple(run_node(node, [torch.zeros(1, *source.shape) for source in node.inputs]).shape[1:])
    except RuntimeError as error:
        raise InputError(f"the network does not take images of shape {tuple(images.shape[1:])}: {error}") from error


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)


def _conv(module: nn.Conv2d, inputs: list[Node]) -> Node | None:
    depthwise = module.groups == module.in_channels
    if module.padding_mode != "zeros" or isinstance(module.padding, str) or (module.groups > 1 and not depthwise):
        return None
    (top, left) = _pair(module.padding)
    options = {"stride": _pair(module.stride), "dilation": _pair(module.dilation), "groups": module.groups,
               "padding": (left, left, top, top)}  # fmt: skip
    bias = torch.zeros(module.out_channels) if module.bias is None else module.bias.detach().clone()
    return Node("conv", inputs, module.weight.detach().clone(), bias, options=options)


def _linear(module: nn.Linear, inputs: list[Node]) -> Node:
    bias = torch.zeros(module.out_features) if module.bias is None else module.bias.detach().clone()
    return Node("linear", inputs, module.weight.detach().clone(), bias)


def _batchnorm(module: nn.BatchNorm2d, inputs: list[Node]) -> Node | None:
    if module.running_var is None:
        return None
    factor = (module.running_var + module.eps).rsqrt()
    if module.affine:
        factor = factor * module.weight
    summand = -module.running_mean * factor + (module.bias if module.affine else 0)
    return Node("affine", inputs, factor.detach(), summand.detach())


def _normalize(module: Normalize, inputs: list[Node]) -> Node:
    factor = 1 / module.std.flatten()
    return Node("affine", inputs, factor, -module.mean.flatten() * factor)


def _pool(kind: str) -> Callable:
    def make(inputs: list[Node], size, stride=None, padding=0, *rest, **keywords) -> Node | None:
        plain = {"dilation": 1, "ceil_mode": False, "count_include_pad": True, "return_indices": False}
        usual = all(keywords.pop(key, value) in (value, None) for key, value in plain.items())
        if not usual or rest or any(value is not None for value in keywords.values()) or _pair(padding) != (0, 0):
            return None
        return Node(kind, inputs, options={"filter": _pair(size), "stride": _pair(stride or size)})

    return make


def _pool_module(kind: str) -> Callable:
    def make(module: nn.MaxPool2d | nn.AvgPool2d, inputs: list[Node]) -> Node | None:
        names = ("dilation", "ceil_mode", "count_include_pad", "divisor_override", "return_indices")
        keywords = {name: getattr(module, name) for name in names if hasattr(module, name)}
        return _pool(kind)(inputs, module.kernel_size, module.stride, module.padding, **keywords)

    return make


def _global_average(inputs: list[Node], size) -> Node | None:
    if _pair(size) != (1, 1):
        return None
    filter_ = inputs[0].shape[1:]
    return Node("average", inputs, options={"filter": filter_, "stride": filter_})


def _mean(inputs: list[Node], dim=None, keepdim: bool = False) -> Node | None:
    if dim is None or sorted(axis % 4 for axis in dim) != [2, 3]:
        return None
    pooled = _global_average(inputs, 1)
    return pooled if keepdim else Node("flatten", [pooled])


def _pad(inputs: list[Node], sides, mode: str = "constant", value: float | None = None) -> Node | None:
    if mode != "constant" or value not in (None, 0) or len(sides) % 2 or any(side < 0 for side in sides):
        return None
    sides = (*sides, *(0,) * (6 - len(sides)))
    return Node("pad", inputs, options={"sides": sides}) if len(sides) == 6 else None


def _slice(inputs: list[Node], index) -> Node | None:
    index = index if isinstance(index, tuple) else (index,)
    plain = all(isinstance(part, slice) for part in index) and index[:1] == (slice(None),)
    if not plain or len(inputs[0].shape) != 3 or any((part.step or 1) < 1 for part in index):
        return None
    return Node("slice", inputs, options={"index": index + (slice(None),) * (4 - len(index))})


def _flatten(inputs: list[Node], start: int = 0, end: int = -1) -> Node | None:
    return Node("flatten", inputs) if start == 1 and end in (-1, 3) else None


def _add(inputs: list[Node], *rest, **keywords) -> Node | None:
    return Node("add", inputs) if len(inputs) == 2 and not rest and keywords.get("alpha", 1) == 1 else None


def _relu(inputs: list[Node], inplace: bool = False) -> Node:
    return Node("relu", inputs, activation="RELU")


def _relu6(inputs: list[Node], inplace: bool = False) -> Node:
    return Node("relu", inputs, activation="RELU6")


def _same(inputs: list[Node], *rest, **keywords) -> Node:
    return inputs[0]


MODULES: dict[type, Callable[[Any, list[Node]], Node | None]] = {
    nn.Conv2d: _conv,
    nn.Linear: _linear,
    nn.BatchNorm2d: _batchnorm,
    nn.BatchNorm1d: _batchnorm,
    Normalize: _normalize,
    nn.ReLU: lambda module, inputs: _relu(inputs),
    nn.ReLU6: lambda module, inputs: _relu6(inputs),
    nn.MaxPool2d: _pool_module("max"),
    nn.AvgPool2d: _pool_module("average"),
    nn.AdaptiveAvgPool2d: lambda module, inputs: _global_average(inputs, module.output_size),
    nn.ZeroPad2d: lambda module, inputs: _pad(inputs, module.padding),
    nn.Flatten: lambda module, inputs: _flatten(inputs, module.start_dim, module.end_dim),
    nn.Dropout: lambda module, inputs: _same(inputs),
    nn.Dropout2d: lambda module, inputs: _same(inputs),
    nn.Identity: lambda module, inputs: _same(inputs),
}

FUNCTIONS: dict[Any, Callable[..., Node | None]] = {
    operator.add: _add, operator.iadd: _add, torch.add: _add, "add": _add, "add_": _add,
    F.relu: _relu, torch.relu: _relu, "relu": _relu, "relu_": _relu, F.relu6: _relu6,
    F.pad: _pad, operator.getitem: _slice,
    torch.flatten: _flatten, "flatten": _flatten,
    F.max_pool2d: _pool("max"), F.avg_pool2d: _pool("average"),
    F.adaptive_avg_pool2d: _global_average, torch.mean: _mean, "mean": _mean,
    F.dropout: _same, "contiguous": _same,
}  # fmt: skip
