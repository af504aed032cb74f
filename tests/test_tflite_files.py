"""Reading and writing .tflite files, and refusing bad ones with one clear message."""

import numpy as np
import pytest
import torch

from qpatch.errors import DataError, InputError, QpatchError
from qpatch.quant.tflite import network, read, write
from qpatch.quant.tflite import graph as ir
from qpatch.quant.tflite.reader import parse, unpack4
from qpatch.quant.tflite.surgery import core
from qpatch.quant.tflite.writer import pack4
from tests.tflite_cases import Builder


def classifier(dtype="int8", softmax=True, **options) -> ir.Graph:
    builder = Builder(dtype, (6, 6, 3), **options).conv(4, stride=(2, 2), activation="RELU")
    builder.pool("AVERAGE", (3, 3), (3, 3)).flatten().linear(5)
    return (builder.softmax() if softmax else builder).graph


@pytest.mark.parametrize("dtype", ["int8", "int16"])
def test_what_is_written_is_read(dtype):
    graph = classifier(dtype)
    again = read(write(graph))
    assert (again.input, again.output, again.precision) == (graph.input, graph.output, dtype)
    for ours, theirs in zip(graph.ops, again.ops, strict=True):
        assert vars(ours) == vars(theirs)
    for ours, theirs in zip(graph.tensors, again.tensors, strict=True):
        assert (ours.name, ours.shape, ours.dtype, ours.axis) == (theirs.name, theirs.shape, theirs.dtype, theirs.axis)
        assert np.array_equal(ours.scale, theirs.scale) and np.array_equal(ours.zero, theirs.zero)
        assert (ours.data is None) == (theirs.data is None)
        assert ours.data is None or np.array_equal(ours.data, theirs.data)
    assert write(graph) == write(again)


def test_int4_is_packed_two_to_a_byte_low_half_first():
    codes = np.array([1, -1, 7, -8, 3], np.int8)
    packed = pack4(codes)
    assert packed.tolist() == [0xF1, 0x87, 0x03]
    assert unpack4(packed, 5).tolist() == codes.tolist()


def test_a_file_is_read_from_bytes_and_from_a_path(tmp_path):
    data = write(classifier())
    (tmp_path / "net.tflite").write_bytes(data)
    images = torch.rand(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    path = tmp_path / "net.tflite"
    nets = [network(source, input_range=(-1, 1)) for source in (data, path, str(path))]
    assert all(torch.equal(net(images), nets[0](images)) for net in nets)
    with pytest.raises(DataError, match="no .tflite file at"):
        read(tmp_path / "other.tflite")
    with pytest.raises(DataError, match="bytes or as a path"):
        read(3)


def test_every_truncation_is_one_clear_message():
    data = write(classifier())
    for end in [0, 3, 8, 20, *range(40, len(data) - 1, 61)]:
        with pytest.raises(QpatchError) as caught:
            read(data[:end])
        assert isinstance(caught.value, DataError) and "\n" not in str(caught.value)


def test_what_is_no_tflite():
    for data in (b"", b"hello", b"\x89PNG" * 100, np.random.default_rng(0).bytes(500)):
        with pytest.raises(DataError, match="not a .tflite"):
            read(data)


def changed(graph: ir.Graph, index: int, **fields) -> ir.Graph:
    tensors = list(graph.tensors)
    old = tensors[index]
    tensors[index] = ir.Tensor(**{name: fields.get(name, getattr(old, name)) for name in
                                  ("name", "shape", "dtype", "scale", "zero", "axis", "data")})  # fmt: skip
    return ir.Graph(tuple(tensors), graph.ops, graph.input, graph.output)


@pytest.mark.parametrize("batch", [-1, 0, 2])
def test_a_batch_that_is_not_one(batch):
    graph = classifier()
    with pytest.raises(InputError, match="batch 1"):
        read(write(changed(graph, graph.input, shape=(batch, 6, 6, 3))))


def test_what_is_no_classifier():
    image = Builder("int8").conv(3).graph
    with pytest.raises(InputError, match="not a classifier"):
        read(write(image))
    graph = classifier()
    with pytest.raises(InputError, match="takes 1×H×W×3"):
        read(write(changed(graph, graph.input, shape=(1, 108))))
    with pytest.raises(InputError, match="int32"):
        read(write(changed(graph, graph.output, dtype="int32")))


def test_two_inputs_and_two_outputs():
    from qpatch.quant.tflite.reader import model_of
    from qpatch.quant.tflite.writer import pack

    for what in ("inputs", "outputs"):
        model = model_of(write(classifier()))
        setattr(model.subgraphs[0], what, [0, 3])
        with pytest.raises(InputError, match=f"has 2 {what}"):
            read(pack(model))


def test_operations_that_only_the_interpreters_know():
    model_bytes = write(classifier())
    graph = parse(model_bytes)
    ops = (ir.Op("SOFTPLUS_NOT_REAL", *[(0,), 1]),) + graph.ops[1:]
    from qpatch.quant.tflite.emulator import Integers

    with pytest.raises(InputError, match="SOFTPLUS_NOT_REAL.*engine='litert'"):
        Integers(ir.Graph(graph.tensors, ops, graph.input, graph.output))


def test_floats_at_the_ends_are_cut_off():
    builder = Builder("int8", (6, 6, 3))
    inner = builder.activation((1, 6, 6, 3), 1 / 255, -128)
    builder.tensors[0] = ir.Tensor("image", (1, 6, 6, 3), "float32")
    builder.op("QUANTIZE", (0,), inner)
    builder.conv(4, stride=(3, 3)).pool("AVERAGE").flatten().linear(3)
    data = write(builder.graph)
    graph = read(core(data))
    assert graph.input == inner and graph.ops[0].kind == "CONV_2D"
    images = torch.rand(3, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    net = network(data)
    assert net.precision == "int8" and torch.allclose(net.received(images), torch.floor(images * 255 + 0.5) / 255)
    assert net.codes(images).shape == (3, 3)
