"""A view made ready for an attack or a table: the same function of the image, with a quarter less work.

Its weights are frozen, so BatchNorm goes into the convolution before it; a ReLU that only feeds unsigned quantizers goes
into these; and two layers that quantize the same input alike do it once. Scores differ from the view's by rounding,
gradients to the image too. (Not how integers are made for a device: there BatchNorm is folded *before* quantization.)
"""

from __future__ import annotations

import copy
from collections import Counter

import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from qpatch.checks import check_eval
from qpatch.errors import InputError
from qpatch.quant.multibit import QuantizedLayer, plain_layer
from qpatch.quant.quantizers import LSQ, Quantizer, Symmetric
from qpatch.quant.ste import fake_quantize

_ONE_SCALE = (Symmetric, LSQ)  # quantizers that round to multiples of one scale, with zero as code 0


class _Tracer(fx.Tracer):
    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, (Quantizer, nn.Conv2d, nn.BatchNorm2d)) or super().is_leaf_module(module, name)


class Rectified(nn.Module):
    """A ReLU and an unsigned quantizer in one: negative values become code 0 and pass no gradient.

    Args:
        quantizer: one whose smallest code is 0 and stands for 0.
    """

    def __init__(self, quantizer: Quantizer):
        super().__init__()
        self.quantizer = quantizer

    def forward(self, x: Tensor) -> Tensor:
        inner = self.quantizer
        return fake_quantize(x, inner.scale, *inner.limits, ste=inner.ste, rectified=True)


def fused(view: nn.Module) -> nn.Module:
    """A frozen copy of a network that computes the same scores faster.

    Args:
        view: of a `MultiBit`, or any network that `torch.fx` can trace; in eval mode. It is not changed, and later
            changes of its weights do not reach the copy.

    Returns:
        A module in eval mode whose weights take no gradient. Its layers keep their names where they are left.

    Raises:
        InputError: the view is in train mode, or its forward pass depends on values of the image (a Python `if`).
    """
    check_eval(view)
    twin = copy.deepcopy(view)
    for name, layer in [(name, module) for name, module in twin.named_modules() if isinstance(module, QuantizedLayer)]:
        twin.set_submodule(name, nn.Sequential(layer.input_quantizer, plain_layer(layer)))
    try:
        net = fx.GraphModule(twin, _Tracer().trace(twin))
    except fx.proxy.TraceError as error:
        kind = type(view).__name__
        raise InputError(f"{kind} cannot be fused, because torch.fx cannot trace it ({error}); use it as it is.") from error
    _fold_norms(net)
    _quantize_before_padding(net)
    _quantize_once(net)
    _absorb_relus(net)
    net.graph.lint()
    net.delete_all_unused_submodules()
    net.recompile()
    return net.eval().requires_grad_(False)


def _module(net: fx.GraphModule, node: fx.Node, kinds: type | tuple[type, ...]) -> nn.Module | None:
    """The module that a node calls, if it is of one of these kinds."""
    module = net.get_submodule(node.target) if node.op == "call_module" else None
    return module if isinstance(module, kinds) else None


def _fold_norms(net: fx.GraphModule) -> None:
    calls = Counter(node.target for node in net.graph.nodes if node.op == "call_module")
    for node in list(net.graph.nodes):
        norm = _module(net, node, nn.BatchNorm2d)
        before = node.args[0] if norm is not None else None
        conv = _module(net, before, nn.Conv2d) if before is not None and len(before.users) == 1 else None
        if conv is None or calls[before.target] > 1 or calls[node.target] > 1:  # a layer used twice stays as it is
            continue
        net.set_submodule(before.target, fuse_conv_bn_eval(conv, norm))
        if isinstance(norm, BatchNormAct2d):  # timm's, with the activation inside
            net.set_submodule(node.target, norm.act)
        else:
            node.replace_all_uses_with(before)
            net.graph.erase_node(node)


def _quantize_before_padding(net: fx.GraphModule) -> None:
    """Zero padding and a quantizer that keeps zero may change places, so that other rules see the quantizer's real input."""
    for node in list(net.graph.nodes):
        pad = node.args[0] if _module(net, node, _ONE_SCALE) is not None else None
        if not isinstance(pad, fx.Node) or pad.target is not F.pad or pad.kwargs.get("value") or len(pad.users) > 1:
            continue
        with net.graph.inserting_before(pad):
            earlier = net.graph.call_module(node.target, (pad.args[0],))
        pad.replace_input_with(pad.args[0], earlier)
        node.replace_all_uses_with(pad)
        net.graph.erase_node(node)


def _quantize_once(net: fx.GraphModule) -> None:
    """One quantizer for all layers that have the same input, range and estimator."""
    seen: dict[tuple, fx.Node] = {}
    for node in list(net.graph.nodes):
        quantizer = _module(net, node, _ONE_SCALE)
        if quantizer is None:
            continue
        key = (node.args[0], type(quantizer), quantizer.limits, quantizer.ste, quantizer.scale.item())
        first = seen.setdefault(key, node)
        if first is not node:
            node.replace_all_uses_with(first)
            net.graph.erase_node(node)


def _absorb_relus(net: fx.GraphModule) -> None:
    for node in list(net.graph.nodes):
        if _module(net, node, nn.ReLU) is None:
            continue
        quantizers = [_module(net, user, _ONE_SCALE) for user in node.users]
        if not quantizers or any(quantizer is None or quantizer.limits[0] != 0 for quantizer in quantizers):
            continue
        for user, quantizer in zip(list(node.users), quantizers):
            net.set_submodule(user.target, Rectified(quantizer))
        node.replace_all_uses_with(node.args[0])
        net.graph.erase_node(node)
