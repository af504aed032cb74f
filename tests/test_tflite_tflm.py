"""The emulator against TFLite Micro, operation by operation: every output code of every random input."""

import numpy as np
import pytest
import torch

from tests.tflite_cases import ONE, Builder, emulate, random_codes, tflm

DTYPES = ("int8", "int16")
CASES = {
    "conv": lambda b: b.conv(),
    "conv relu": lambda b: b.conv(7, activation="RELU"),
    "conv relu6": lambda b: b.conv(activation="RELU6"),
    "conv stride 2 same": lambda b: b.conv(stride=(2, 2)),
    "conv stride 2 1 valid": lambda b: b.conv(kernel=(2, 3), stride=(2, 1), padding="VALID"),
    "conv dilated": lambda b: b.conv(dilation=(2, 2)),
    "conv even kernel": lambda b: b.conv(kernel=(4, 4), stride=(2, 2)),
    "depthwise": lambda b: b.depthwise(),
    "depthwise 2 relu": lambda b: b.depthwise(2, stride=(2, 2), activation="RELU"),
    "linear": lambda b: b.flatten().linear(9),
    "linear relu": lambda b: b.flatten().linear(9, "RELU").linear(4),
    "average": lambda b: b.pool("AVERAGE", (3, 3), (2, 2)),
    "average same": lambda b: b.pool("AVERAGE", (3, 3), (2, 2), "SAME"),
    "average global": lambda b: b.pool("AVERAGE", (6, 6), (6, 6)),
    "max": lambda b: b.pool("MAX"),
    "max same relu": lambda b: b.pool("MAX", (3, 3), (2, 2), "SAME", "RELU"),
    "softmax": lambda b: b.flatten().linear(10).softmax(),
    "deep": lambda b: b.conv(8, activation="RELU").depthwise().conv(6, ONE).pool("MAX").flatten().linear().softmax(),
}


def check(builder: Builder, n: int = 8) -> None:
    graph = builder.graph
    codes = random_codes(graph, n)
    assert torch.equal(emulate(graph, codes), tflm(graph, codes))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_operation(case, dtype):
    for seed in range(3):
        check(CASES[case](Builder(dtype, seed=seed)))


def test_packed_int4_weights():
    check(Builder("int8", (5, 5, 3)).conv(3, bits=4).conv(4, bits=4, activation="RELU"))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ["NONE", "RELU"])
def test_addition(dtype, activation):
    for seed in range(4):
        builder = Builder(dtype, (16, 16, 2), seed)
        first = builder.tensor
        second = builder.conv(2, ONE).tensor
        output = builder.activation(builder.last.shape)
        check(builder.op("ADD", (first, second), output, activation=activation))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("same", [True, False])
@pytest.mark.parametrize("keep", [True, False])
def test_mean(dtype, same, keep):
    builder = Builder(dtype, (5, 4, 3), seed=2)
    axes = builder.constant(np.array([1, 2], np.int32))
    quantization = (builder.last.step, builder.last.offset) if same else (None, None)
    output = builder.activation((1, 1, 1, 3) if keep else (1, 3), *quantization)
    check(builder.op("MEAN", (builder.tensor, axes), output, keep=keep), 30)


@pytest.mark.parametrize("dtype", DTYPES)
def test_pad_and_slice(dtype):
    builder = Builder(dtype, (6, 6, 4))
    scale, zero = builder.last.step, builder.last.offset
    ends = [builder.constant(np.array(v, np.int32)) for v in ([0, 0, 1, 0], [0, 0, 6, 3], [1, 2, 2, 1])]
    output = builder.activation((1, 3, 3, 3), scale, zero)
    builder.op("STRIDED_SLICE", (builder.tensor, *ends), output, begin_mask=3, end_mask=3)
    sides = builder.constant(np.array([[0, 0], [1, 0], [0, 2], [1, 1]], np.int32))
    check(builder.op("PAD", (builder.tensor, sides), builder.activation((1, 4, 5, 5), scale, zero)))


def test_requantize():
    builder = Builder("int8", (4, 4, 3), seed=1)
    check(builder.op("QUANTIZE", (builder.tensor,), builder.activation(builder.last.shape)), 20)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [0.003, 0.1, 0.4, 2.0])
@pytest.mark.parametrize("classes", [2, 10])
def test_softmax_at_all_temperatures(dtype, scale, classes):
    builder = Builder(dtype, (1, 1, classes))
    image = builder.activation((1, classes), scale / (256 if dtype == "int16" else 1), 0)
    builder.tensors[0], builder.tensor = builder.tensors[image], 0
    builder.softmax()
    graph = builder.graph
    codes = random_codes(graph, 60)
    codes[2:30] = codes[2:30] // 16  # close scores, too
    assert torch.equal(emulate(graph, codes), tflm(graph, codes))


@pytest.mark.parametrize("kind", ["FULLY_CONNECTED", "CONV_2D"])
def test_accumulators_beside_every_step(kind):
    """Weights of zero leave the bias alone in the accumulator, so each step can be looked at from both sides."""
    builder = Builder("int8", (1, 1, 3), seed=5)
    if kind == "FULLY_CONNECTED":
        builder.flatten()
    source, scale, target = builder.tensor, 0.004, 0.3
    real = builder.last.step * scale / target
    steps = (np.arange(-150, 150) - 0.5) / real
    bias = np.concatenate([np.floor(steps), np.ceil(steps)]).astype(np.int32)
    conv = kind == "CONV_2D"
    n = len(bias)
    shape = (n, 1, 1, 3) if conv else (n, 3)
    weights = builder.constant(np.zeros(shape, np.int8), scale=[scale] * (n if conv else 1))
    bias = builder.constant(bias, scale=[builder.last.step * scale])
    output = builder.activation((1, 1, 1, n) if conv else (1, n), target, 3)
    options = {"stride": ONE, "dilation": ONE, "padding": "VALID"} if conv else {}
    check(builder.op(kind, (source, weights, bias), output, activation="NONE", **options), 2)
