"""MLPerf Tiny's own .tflite files through our loader; skipped where they or CIFAR-10 are not on the machine."""

import pytest
import torch

from qpatch import data, measure
from qpatch.errors import DataError
from qpatch.quant import tflite
from qpatch.zoo import mlperf


def file(name: str, precision: str = "int8"):
    try:
        return mlperf.tflite(name, precision)
    except DataError as error:
        pytest.skip(f"optional data: {error}")


def cifar10():
    try:
        return data.load("cifar10", "test")
    except DataError as error:
        pytest.skip(f"optional data: {error}")


def test_resnet8_is_recognised_as_a_network_of_bytes_and_scores_as_published():
    path, test = file("resnet8"), cifar10()
    net = tflite.network(path)
    assert (net.ends.low, net.ends.high, net.precision) == (0, 255, "int8")
    accuracy = measure.accuracy(net, test.floats(), test.labels, batch=500)
    assert abs(accuracy - 0.8697) <= 0.001 + 1e-9
    if tflite.installed("litert"):
        phone = tflite.network(path, "litert")
        assert measure.accuracy(phone, test.floats(), test.labels, batch=500) == pytest.approx(0.8697, abs=2e-4)


def test_float_resnet8_needs_to_be_told_its_range():
    if not tflite.installed("litert"):
        pytest.skip("ai-edge-litert is not installed")
    net, test = tflite.network(file("resnet8", "float"), "litert", input_range=(0, 255)), cifar10()
    assert measure.accuracy(net, *test.take(slice(0, 1000))) == pytest.approx(0.8719, abs=0.02)
    assert net.precision == "float"


@pytest.mark.parametrize("name", ["resnet8", "mobilenetv1_025"])
def test_emulator_equals_tflite_micro(name):
    if not tflite.installed("tflm"):
        pytest.skip("tflite-micro exists for Linux on x86-64 only")
    path = file(name)
    exact, micro, twin = tflite.network(path), tflite.network(path, "tflm"), tflite.twin(path)
    images = torch.rand(6, *exact.ends.shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(exact.codes(images), micro.codes(images))
    assert torch.equal(exact.logits(images), micro.logits(images))
    assert torch.equal(twin(images).detach(), exact.logits(images))
