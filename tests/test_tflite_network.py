"""The predictor and the twin: probabilities, logits, codes, what is received, the count of queries, gradients."""

import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from qpatch.errors import InputError, ParameterError
from qpatch.models import ResNet8
from qpatch.quant.tflite import convert, network, twin, write
from qpatch.quant.tflite import graph as ir
from qpatch.quant.tflite.ends import input_of
from tests.tflite_cases import Builder


def smooth(n: int, size: int = 32, seed: int = 0) -> torch.Tensor:
    coarse = torch.rand(n, 3, size // 4, size // 4, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse, size=size, mode="bilinear")


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    net = ResNet8(mean=(0.0,) * 3, std=(1.0,) * 3)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.3)
    with torch.no_grad():
        net.train()(smooth(32, seed=1))
    return net.eval()


@pytest.fixture(scope="module")
def files(model) -> dict[str, bytes]:
    calibration = smooth(32, seed=2)
    return {
        "int8": convert(model, calibration, softmax=True),
        "int16": convert(model, calibration, "int16", softmax=True),
        "int4": convert(model, calibration, weight_bits=4),
    }


@pytest.mark.parametrize("name", ["int8", "int16", "int4"])
def test_probabilities_logits_codes_and_queries(files, name):
    net, images = network(files[name]), smooth(7)
    probabilities = net(images)
    assert probabilities.shape == (7, 10) and probabilities.dtype == torch.float32
    assert torch.allclose(probabilities.sum(1), torch.ones(7), atol=0.03)
    assert net.queries == 7
    logits, codes = net.logits(images), net.codes(images)
    assert net.queries == 21 and codes.dtype == torch.int64
    assert net.precision == ("int16" if name == "int16" else "int8") and net.size == len(files[name])
    if name == "int8":
        assert torch.equal(probabilities, (codes + 128).float() / 256)
    if name == "int4":
        assert torch.equal(probabilities, torch.softmax(logits, 1))
    assert (probabilities - torch.softmax(logits, 1)).abs().max() < 0.01


@pytest.mark.parametrize("name", ["int8", "int16", "int4"])
def test_batch_size_and_order_change_nothing(files, name):
    net, images = network(files[name]), smooth(40)
    together = net.codes(images)
    assert torch.equal(together, torch.cat([net.codes(part) for part in images.split(7)]))
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    assert torch.equal(together[order], net.codes(images[order]))


@pytest.mark.parametrize("name", ["int8", "int16", "int4"])
def test_twin_has_the_emulators_logits_and_a_useful_gradient(model, files, name):
    images = smooth(12).requires_grad_()
    logits = twin(files[name])(images)
    assert torch.equal(logits.detach(), network(files[name]).logits(images.detach()))
    labels = logits.argmax(1)
    (ours,) = torch.autograd.grad(F.cross_entropy(logits, labels), images)
    (theirs,) = torch.autograd.grad(F.cross_entropy(model(images), labels), images)
    alike = F.cosine_similarity(ours.flatten(1), theirs.flatten(1)).mean()
    assert alike > {"int8": 0.8, "int16": 0.95, "int4": 0.3}[name]


def test_twin_gradient_reaches_white_and_black_pixels(files):
    images = torch.cat([torch.zeros(1, 3, 32, 32), torch.ones(1, 3, 32, 32)]).requires_grad_()
    twin(files["int8"])(images)[:, 0].sum().backward()
    assert (images.grad.flatten(1).abs().sum(1) > 0).all()


def test_received_is_on_the_lattice_of_the_input(files):
    images = smooth(3)
    for name, step in (("int8", 1 / 255), ("int16", 1 / 32767)):
        received = network(files[name]).received(images)
        assert (received - images).abs().max() <= step / 2 * 1.001
        assert ((received / step).round() - received / step).abs().max() < 1e-2
        assert torch.equal(received, twin(files[name]).received(images))
    bytes_ = torch.randint(0, 256, (2, 3, 32, 32), generator=torch.Generator().manual_seed(0)).float() / 255
    net = network(files["int8"])  # a byte arrives as it is, up to the float32 rounding of 1/255
    assert torch.allclose(net.received(bytes_), bytes_, atol=1e-7)
    assert torch.equal(net.ends.codes(bytes_), (bytes_ * 255).round() - 128)
    assert torch.equal(net.ends.codes(net.received(images)), net.ends.codes(images))


def test_half_a_step_rounds_up(files):
    ends = network(files["int8"]).ends
    images = torch.full((1, 3, 32, 32), 0.5 / 255 * 1.0001)
    assert (ends.codes(images) == -127).all()
    assert (ends.codes(images * 0.999) == -128).all()


def entrance(scale, zero, dtype="int8") -> ir.Tensor:
    return ir.Tensor("image", (1, 8, 8, 3), dtype, np.array([scale], np.float32), np.array([zero]))


@pytest.mark.parametrize(("tensor", "expected"), [
    (entrance(1 / 255, -128), (0, 1)), (entrance(1.0, -128), (0, 255)), (entrance(1 / 127.5, -1), (-1, 1)),
    (entrance(1 / 32767, 0, "int16"), (0, 1)), (entrance(255 / 32767, 0, "int16"), (0, 255)),
    (entrance(1 / 255, 0, "uint8"), (0, 1)), (entrance(1.0, 0, "uint8"), (0, 255)),
    (ir.Tensor("image", (1, 8, 8, 3), "float32"), (0, 1)),
])  # fmt: skip
def test_input_range_is_read_from_scale_and_zero(tensor, expected):
    ends = input_of(tensor)
    assert (ends.low, ends.high) == expected
    override = input_of(tensor, (-2, 3))
    assert (override.low, override.high) == (-2, 3)


def test_an_input_range_that_tells_nothing():
    with pytest.raises(InputError, match="pass input_range"):
        input_of(entrance(1.08, -14))
    with pytest.raises(ParameterError, match="increasing"):
        input_of(entrance(1.0, -128), (1, 0))


def test_a_network_of_bytes_gets_images_times_255(files):
    """The same integers under another scale: 255 times the input scale, and weights 255 times smaller."""
    from qpatch.quant.tflite import read

    graph = read(files["int8"])
    tensors = list(graph.tensors)
    first = graph.ops[0]
    for index, factor in ((graph.input, 255), (first.inputs[1], 1 / 255)):
        old = tensors[index]
        scale = (old.scale.astype(np.float64) * factor).astype(np.float32)
        tensors[index] = ir.Tensor(old.name, old.shape, old.dtype, scale, old.zero, old.axis, old.data)
    other = network(write(ir.Graph(tuple(tensors), graph.ops, graph.input, graph.output)))
    assert (other.ends.low, other.ends.high) == (0, 255)
    images = (smooth(8) * 255).round() / 255
    assert torch.allclose(other.received(images), images)
    assert (other.codes(images) - network(files["int8"]).codes(images)).abs().max() <= 1  # scales are rounded


def test_engines_agree(files):
    pytest.importorskip("ai_edge_litert", reason="ai-edge-litert is not installed")
    images = smooth(6)
    for name in ("int8", "int16"):
        exact, phone = network(files[name]), network(files[name], "litert")
        assert (exact(images) - phone(images)).abs().max() < 0.02
        assert phone.queries == 6 and phone.codes(images).dtype == torch.int64
    pytest.importorskip("tflite_micro", reason="tflite-micro exists for Linux on x86-64 only")
    for name in files:
        exact, micro = network(files[name]), network(files[name], "tflm")
        assert torch.equal(exact.codes(images), micro.codes(images))
        assert torch.equal(exact.logits(images), micro.logits(images))


@pytest.mark.parametrize(("engine", "package"), [("litert", "ai_edge_litert.interpreter"),
                                                 ("tflm", "tflite_micro.python.tflite_micro")])  # fmt: skip
def test_a_missing_interpreter_is_named(files, monkeypatch, engine, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ParameterError, match="pip install .*engine='emulator'"):
        network(files["int8"], engine)


def test_wrong_use_is_one_clear_message(files):
    with pytest.raises(ParameterError, match="unknown engine 'tlfm'.*tflm"):
        network(files["int8"], "tlfm")
    net = network(files["int8"])
    with pytest.raises(InputError, match="C×H×W"):
        net(torch.rand(1, 3, 16, 16))
    with pytest.raises(InputError, match="divide by 255"):
        net(torch.full((1, 3, 32, 32), 200.0))


def test_float_files_are_for_litert_only():
    builder = Builder("int8", (4, 4, 3)).flatten().linear(3)
    graph = builder.graph
    floats = [ir.Tensor(t.name, t.shape, "float32" if t.dtype == "int8" else t.dtype, data=None if t.data is None
              else t.data.astype(np.float32) if t.dtype == "int8" else t.data) for t in graph.tensors]  # fmt: skip
    floats[graph.ops[-1].inputs[2]] = ir.Tensor("bias", (3,), "float32", data=np.zeros(3, np.float32))
    data = write(ir.Graph(tuple(floats), graph.ops, graph.input, graph.output))
    with pytest.raises(InputError, match="engine='litert'"):
        network(data)
    with pytest.raises(InputError, match="engine='litert'"):
        twin(data)
    pytest.importorskip("ai_edge_litert", reason="ai-edge-litert is not installed")
    net = network(data, "litert", input_range=(0, 255))
    images = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    weights = torch.from_numpy(floats[graph.ops[-1].inputs[1]].data)
    assert torch.allclose(net.logits(images), images.permute(0, 2, 3, 1).flatten(1) * 255 @ weights.T, rtol=1e-3)
    assert net.precision == "float" and torch.equal(net.received(images), images)
