"""Conversion: folding, scales and zero points of the policy, and what is refused."""

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

import qpatch.models  # noqa: F401  (registers our networks with timm)
from qpatch.errors import InputError, ParameterError
from qpatch.models.normalize import Normalize
from qpatch.quant import MultiBit
from qpatch.quant.tflite import convert, network, read
from qpatch.quant.tflite.floats import fold, run
from qpatch.quant.tflite.policy import asymmetric, symmetric
from qpatch.quant.tflite.trace import trace


def smooth(n: int, size: int, seed: int = 0) -> torch.Tensor:
    coarse = torch.rand(n, 3, size // 4, size // 4, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse, size=size, mode="bilinear")


def settled(model: nn.Module, images: torch.Tensor) -> nn.Module:
    """The network with BatchNorm statistics of these images, and with scales and shifts that are not 1 and 0."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.3)
    with torch.no_grad():
        model.train()(images)
    return model.eval()


NETWORKS = {
    "qpatch_resnet8": 32, "qpatch_resnet20": 32, "qpatch_vgg11": 32, "qpatch_mobilenetv1_025": 96,
    "qpatch_coffee_cnn": 64 * 3 + 32, "qpatch_coffee_dscnn": 64,
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_our_networks_are_folded_exactly_and_converted(name):
    images = smooth(6, NETWORKS[name])
    torch.manual_seed(1)
    model = settled(timm.create_model(name), images)
    nodes = fold(trace(model, images))
    assert not {"affine", "relu"} & {node.kind for node in nodes}
    with torch.no_grad():
        expected, folded = model(images), run(nodes, images)[nodes[-1]]
    assert (expected - folded).abs().max() < 1e-4 * max(1, float(expected.abs().max()))
    deep = 3 if "mobilenet" in name else 1  # its depthwise layers suffer most from 8-bit weights, above all untrained
    for activations, limit in (("int8", 0.3 * deep), ("int16", 0.17 * deep)):
        logits = network(convert(model, images, activations)).logits(images)
        assert (logits - expected).norm() < limit * (expected - expected.mean()).norm()


def test_policy_of_scales_and_zero_points():
    images = smooth(8, 32)
    model = settled(timm.create_model("qpatch_resnet8", mean=(0.0,) * 3, std=(1.0,) * 3), images)
    for activations, input_scale, output_scale in (("int8", 1 / 255, 1 / 256), ("int16", 1 / 32767, 1 / 32768)):
        graph = read(convert(model, images, activations, softmax=True))
        tensors = graph.tensors
        zero = -128 if activations == "int8" else 0
        assert (tensors[graph.input].scale[0], tensors[graph.input].offset) == (np.float32(input_scale), zero)
        assert (tensors[graph.output].scale[0], tensors[graph.output].offset) == (np.float32(output_scale), zero)
        assert [op.kind for op in graph.ops].count("CONV_2D") == 9
        for op in graph.ops:
            source, target = tensors[op.inputs[0]], tensors[op.output]
            if op.kind in ("CONV_2D", "FULLY_CONNECTED"):
                weights, bias = tensors[op.inputs[1]], tensors[op.inputs[2]]
                assert len(weights.scale) == (len(weights.data) if op.kind == "CONV_2D" else 1)
                assert not weights.zero.any() and np.abs(weights.data).max() == 127 and weights.dtype == "int8"
                assert np.allclose(bias.scale, source.scale * weights.scale, rtol=1e-6)
                assert bias.dtype == ("int32" if activations == "int8" else "int64")
            if op.kind in ("AVERAGE_POOL_2D", "RESHAPE"):
                assert (source.step, source.offset) == (target.step, target.offset)
            if op.options.get("activation") == "RELU":
                assert target.offset == zero  # after ReLU the whole int8 range is used
    same = [read(convert(model, images, kind)) for kind in ("int8", "int16")]
    for ours, theirs in zip(same[0].ops, same[1].ops, strict=True):  # int16x8 has the very same weights
        for index, other in zip(ours.inputs[1:2], theirs.inputs[1:2], strict=True):
            if ours.kind == "CONV_2D":
                assert np.array_equal(same[0].tensors[index].data, same[1].tensors[other].data)


def test_ranges_by_hand():
    scale, zero = asymmetric(0.0, 2.55)
    assert (float(scale), zero) == (pytest.approx(0.01), -128)
    scale, zero = asymmetric(-1.0, 1.55)
    assert (float(scale), zero) == (pytest.approx(0.01), -28)
    scale, zero = symmetric(-3.2767, 1.0)
    assert (float(scale), zero) == (pytest.approx(1e-4), 0)


def test_int4_weights_are_packed():
    images = smooth(8, 32)
    model = settled(timm.create_model("qpatch_resnet8", mean=(0.0,) * 3, std=(1.0,) * 3), images)
    eight, four = convert(model, images), convert(model, images, weight_bits=4)
    graph = read(four)
    kinds = {op.kind: graph.tensors[op.inputs[1]].dtype for op in graph.ops if len(op.inputs) == 3}
    assert kinds == {"CONV_2D": "int4", "FULLY_CONNECTED": "int8"}
    weights = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Conv2d))
    assert len(eight) - len(four) == pytest.approx(weights / 2, abs=1000)


def test_same_arguments_same_bytes():
    images = smooth(4, 32)
    model = settled(timm.create_model("qpatch_resnet8"), images)
    assert convert(model, images) == convert(model, images)


class Small(nn.Module):
    def __init__(self, mean, std, padding):
        super().__init__()
        self.normalize = Normalize(mean, std)
        self.conv = nn.Conv2d(3, 4, 3, padding=padding)
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        return self.fc(F.relu(self.conv(self.normalize(x))).mean((2, 3)))


@pytest.mark.parametrize(("mean", "padding", "kinds"), [
    (0.0, 1, ["CONV_2D"]), (0.5, 0, ["CONV_2D"]), (0.5, 1, ["DEPTHWISE_CONV_2D", "CONV_2D"]),
])  # fmt: skip
def test_normalisation_is_folded_where_that_is_exact(mean, padding, kinds):
    torch.manual_seed(0)
    model = Small((mean,) * 3, (0.25, 0.5, 0.2), padding).eval()
    images = smooth(16, 16)
    graph = read(convert(model, images))
    assert [op.kind for op in graph.ops][: len(kinds)] == kinds
    nodes = fold(trace(model, images))
    with torch.no_grad():
        assert torch.allclose(run(nodes, images)[nodes[-1]], model(images), atol=1e-5)


class Odd(nn.Module):
    """Shapes and orders that our own networks do not have."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=2, stride=2)
        self.pool = nn.MaxPool2d(2)
        self.norm = nn.BatchNorm2d(6)
        self.fc1, self.fc2 = nn.Linear(6 * 4 * 4, 8), nn.Linear(8, 3)

    def forward(self, x):
        x = torch.relu(self.norm(self.pool(self.conv(x))))
        x = x + F.relu6(x)
        return self.fc2(F.relu(self.fc1(torch.flatten(x, 1))))


def test_a_plain_network_with_flattening_and_late_norm():
    torch.manual_seed(0)
    images = smooth(16, 16)
    model = settled(Odd(), images)
    net = network(convert(model, images, "int16"))
    with torch.no_grad():
        expected = model(images)
    assert (net.logits(images) - expected).norm() < 0.02 * expected.norm()


def test_a_dead_channel_with_a_large_bias():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).eval()
    with torch.no_grad():
        model[0].weight[1] = 0
        model[0].bias[1] = 30.0
    images = smooth(16, 16)
    with torch.no_grad():
        expected = model(images)
    assert (network(convert(model, images)).logits(images) - expected).abs().max() < 0.1 * expected.abs().max()


def tiny(*middle: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), *middle, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).eval()


@pytest.mark.parametrize(("layer", "message"), [
    (nn.Sigmoid(), "Sigmoid"), (nn.Conv2d(4, 4, 3, padding="same"), "Conv2d"), (nn.Conv2d(4, 4, 3, groups=2), "Conv2d"),
    (nn.MaxPool2d(3, 2, 1), "MaxPool2d"), (nn.InstanceNorm2d(4), "InstanceNorm2d"),
])  # fmt: skip
def test_unsupported_modules_are_named(layer, message):
    with pytest.raises(InputError, match=f"{message}.*cannot be written"):
        convert(tiny(layer), smooth(4, 16))


def test_what_cannot_be_calibrated():
    model, images = tiny(), smooth(4, 16)
    with pytest.raises(InputError, match="all zero"):
        convert(model, torch.zeros(4, 3, 16, 16))
    with pytest.raises(InputError, match="all constant"):
        convert(model, torch.full((4, 3, 16, 16), 0.5))
    with pytest.raises(InputError, match="lie in"):
        convert(model, images * float("nan"))
    with pytest.raises(InputError, match="train mode"):
        convert(tiny().train(), images)
    with pytest.raises(ParameterError, match="activations"):
        convert(model, images, "int4")
    with pytest.raises(ParameterError, match="beside int16"):
        convert(model, images, "int16", 4)
    with pytest.raises(InputError, match="return logits"):
        convert(nn.Sequential(nn.Conv2d(3, 4, 3)).eval(), images)


def test_a_forward_that_cannot_be_traced_and_a_quantized_view():
    class Branching(nn.Module):
        def forward(self, x):
            return x.flatten(1) if x.sum() > 0 else x

    with pytest.raises(InputError, match="cannot be traced"):
        convert(Branching().eval(), smooth(4, 16))
    net = MultiBit(tiny(), bits=(4,)).eval()
    assert convert(net.at(32), smooth(4, 16))
    with pytest.raises(InputError, match="QuantizedConv2d"):
        convert(net.at(4), smooth(4, 16))
