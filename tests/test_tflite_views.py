"""A quantized view in integers: its codes, its levels, its decisions, and what cannot be exported."""

import copy

import numpy as np
import pytest
import timm
import torch
from torch import nn

from qpatch import data
from qpatch.errors import InputError
from qpatch.quant import MultiBit, Policy, calibrate, tflite
from qpatch.quant.tflite.emulator import Integers
from qpatch.quant.tflite.engines import TFLM, LiteRT
from qpatch.quant.tflite.reader import model_of, unpack4
from qpatch.quant.tflite.schema import numbers
from qpatch.quant.tflite.views import export
from qpatch.quant.tflite.writer import pack
from tests.untrained import untrained

WIDTHS = (8, 5, 4, 2)
IMAGES = data.load("shapes", "train").floats(slice(0, 64))


@pytest.fixture(scope="module")
def net() -> MultiBit:
    return untrained(0)


@pytest.fixture(scope="module")
def files(net) -> dict[int, bytes]:
    return {bits: export(net.at(bits), IMAGES[:32]) for bits in WIDTHS}


@pytest.mark.parametrize("bits", WIDTHS)
def test_weights_are_the_views_codes_in_the_narrowest_type(net, files, bits):
    graph = tflite.read(files[bits])
    given = [graph.tensors[op.inputs[1]] for op in graph.ops if op.kind in ("CONV_2D", "FULLY_CONNECTED")]
    layers = [m for m in net.at(bits).modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    left = [m.weight_quantizer.integers(m._parameters["weight"]).numpy() for m in layers]
    for tensor in given:
        codes = np.moveaxis(tensor.data, -1, 1)
        match = [k for k, own in enumerate(left) if own.shape == codes.shape and (np.abs(own) == np.abs(codes)).all()]
        assert match, tensor.name
        turned = left.pop(match[0]) * codes  # a negative factor of BatchNorm turns the signs of a whole channel
        assert all((turned[k] >= 0).all() or (turned[k] <= 0).all() for k in range(len(codes)))
        inner = np.abs(tensor.data).max() < 127
        assert tensor.dtype == ("int4" if bits <= 4 and inner else "int8")
        assert np.abs(tensor.data).max() == (2 ** (bits - 1) - 1 if inner else 127)
    assert not left


@pytest.mark.parametrize("bits", WIDTHS)
def test_activations_have_the_views_levels_and_no_others(net, files, bits):
    graph = tflite.read(files[bits])
    integers, ends = Integers(graph), tflite.network(files[bits]).ends
    read = [op.inputs[0] for op in graph.ops if op.kind == "CONV_2D"][1:]  # the first reads the picture, at 8 bits
    found = integers(ends.relative(IMAGES), keep=tuple(read))
    for index in read:
        assert graph.tensors[index].offset == 127 - (2**bits - 1)
        assert float(found[index].min()) == 0 and float(found[index].max()) <= 2**bits - 1
    steps = {round(float(m.input_quantizer.scale), 6) for m in net.at(bits).modules() if isinstance(m, nn.Conv2d)}
    assert {round(graph.tensors[index].step, 6) for index in read} <= steps


def test_integers_decide_as_the_view(net, files):
    view = net.at(8)
    with torch.no_grad():
        expected = view(IMAGES)
    logits = tflite.network(files[8]).logits(IMAGES)
    assert (logits - expected).norm() < 0.1 * (expected - expected.mean(0)).norm()


def test_without_branches_only_the_last_rounding_is_new():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 8, 3, 2), nn.ReLU(),
                          nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))  # fmt: skip
    net = calibrate(MultiBit(model, (4,), Policy("symmetric")).eval(), IMAGES)
    file = export(net.at(4), IMAGES)
    graph = tflite.read(file)
    first = next(op.output for op in graph.ops if op.kind == "CONV_2D")
    values = Integers(graph)(tflite.network(file).ends.relative(IMAGES), keep=(first,))
    quantizer = net.at(4)[2].input_quantizer
    with torch.no_grad():
        codes = quantizer.integers(net.at(4)[:2](IMAGES))
    assert (codes == values[first]).float().mean() > 0.999  # pictures are whole bytes; one rounding is behind them


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_interpreters_run_it(files, bits):
    if not tflite.installed("tflm"):
        pytest.skip("tflite-micro exists for Linux on x86-64 only")
    emulator, micro = tflite.network(files[bits]), tflite.network(files[bits], "tflm")
    assert torch.equal(emulator.codes(IMAGES[:4]), micro.codes(IMAGES[:4]))


def test_no_interpreter_runs_weights_packed_at_two_bits(files):
    """Why two-bit weights are kept as four-bit codes; once this fails, they can be packed tighter."""
    if not (tflite.installed("tflm") and tflite.installed("litert")):
        pytest.skip("both interpreters are needed")
    model, types = model_of(files[2]), numbers("TensorType")
    for tensor in (tensor for tensor in model.subgraphs[0].tensors if tensor.type == types["INT4"]):
        codes = unpack4(np.asarray(model.buffers[tensor.buffer].data, np.uint8), int(np.prod(tensor.shape)))
        assert set(np.unique(codes)) <= {-1, 0, 1} and codes.size % 4 == 0
        a, b, c, d = (codes[k::4].astype(np.uint8) & 3 for k in range(4))
        model.buffers[tensor.buffer].data, tensor.type = a | b << 2 | c << 4 | d << 6, types["INT2"]
    data, graph = pack(model), tflite.read(files[2])
    assert len(data) < len(files[2])
    for engine in (TFLM, LiteRT):
        with pytest.raises((InputError, RuntimeError), match="refuses|prepare|allocate"):
            engine(data, graph, tflite.network(files[2]).ends)(IMAGES[:1], "output")


def test_the_view_is_not_changed_and_the_bytes_repeat(net, files):
    before = copy.deepcopy(net.at(2).state_dict())
    assert export(net.at(2), IMAGES[:32]) == files[2]
    assert all(torch.equal(before[name], tensor) for name, tensor in net.at(2).state_dict().items())


def test_what_cannot_be_exported(net):
    with pytest.raises(InputError, match="no quantized layer"):
        export(net.at(32), IMAGES)
    with pytest.raises(InputError, match="train mode"):
        export(copy.deepcopy(net.at(8)).train(), IMAGES)
    model = timm.create_model("qpatch_resnet8").eval()
    other = calibrate(MultiBit(model, (8,), Policy("asymmetric", range="max")).eval(), IMAGES)
    with pytest.raises(InputError, match="symmetric quantizers"):
        export(other.at(8), IMAGES)
    narrow = calibrate(MultiBit(model, (4,), Policy("symmetric", first_last=None)).eval(), IMAGES)
    with pytest.raises(InputError, match="with a sign"):
        export(narrow.at(4), IMAGES)
