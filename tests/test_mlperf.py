"""MLPerf Tiny's networks: Keras arrays in our layers, the interpreter as judge, and what is said where files miss."""

import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from qpatch import data, measure
from qpatch.errors import DataError, ParameterError
from qpatch.zoo import mlperf
from qpatch.zoo.tasks import TASKS, available

SHAPES = {"conv2d": (3, 16, 3), "conv2d_1": (16, 16, 3), "conv2d_2": (16, 16, 3), "conv2d_3": (16, 32, 3),
          "conv2d_4": (32, 32, 3), "conv2d_5": (16, 32, 1), "conv2d_6": (32, 64, 3), "conv2d_7": (64, 64, 3),
          "conv2d_8": (32, 64, 1)}  # fmt: skip
NORMS = (16, 16, 16, 32, 32, 64, 64)


def keras_arrays() -> dict[str, np.ndarray]:
    """Random ResNet-8 weights under Keras' names."""
    random = np.random.default_rng(0)
    arrays = {}
    for name, (before, after, kernel) in SHAPES.items():
        arrays[f"{name}/kernel"] = random.normal(0, (2 / (before * kernel**2)) ** 0.5, (kernel, kernel, before, after))
        arrays[f"{name}/bias"] = random.normal(0, 0.1, after)
    for number, channels in enumerate(NORMS):
        name = f"batch_normalization_{number}" if number else "batch_normalization"
        arrays[f"{name}/gamma"], arrays[f"{name}/beta"] = random.uniform(0.5, 1.5, (2, channels))
        arrays[f"{name}/moving_mean"] = random.normal(0, 1, channels)
        arrays[f"{name}/moving_variance"] = random.uniform(0.001, 1, channels)  # small ones show a wrong epsilon
    arrays["dense/kernel"], arrays["dense/bias"] = random.normal(0, 1, (64, 10)), random.normal(0, 1, 10)
    return {name: array.astype(np.float32) for name, array in arrays.items()}


def as_keras_computes(arrays: dict[str, np.ndarray], images: torch.Tensor) -> torch.Tensor:
    """ResNet-8 written down from the benchmark's layer graph, on images from 0 to 255."""
    weights = {name: torch.from_numpy(array) for name, array in arrays.items()}

    def conv(x, number, stride=1):
        name = f"conv2d_{number}" if number else "conv2d"
        kernel = weights[f"{name}/kernel"].permute(3, 2, 0, 1)
        if kernel.shape[-1] == 3:  # SAME padding
            x = F.pad(x, (1, 1, 1, 1) if stride == 1 else (0, 1, 0, 1))
        return F.conv2d(x, kernel, weights[f"{name}/bias"], stride)

    def norm(x, number):
        name = f"batch_normalization_{number}" if number else "batch_normalization"
        mean, variance = weights[f"{name}/moving_mean"], weights[f"{name}/moving_variance"]
        scale = weights[f"{name}/gamma"] / (variance + 0.001).sqrt()
        return (x - mean[:, None, None]) * scale[:, None, None] + weights[f"{name}/beta"][:, None, None]

    x = norm(conv(images, 0), 0).relu()
    x = (x + norm(conv(norm(conv(x, 1), 1).relu(), 2), 2)).relu()
    for first, norms in ((3, 3), (6, 5)):
        inner = norm(conv(norm(conv(x, first, 2), norms).relu(), first + 1), norms + 1)
        x = (conv(x, first + 2, 2) + inner).relu()
    return x.mean((2, 3)) @ weights["dense/kernel"] + weights["dense/bias"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("QPATCH_DATA", str(tmp_path))
    monkeypatch.setenv("QPATCH_CACHE", str(tmp_path / "cache"))
    (tmp_path / "mlperf_tiny").mkdir()
    return tmp_path / "mlperf_tiny"


def test_keras_weights_in_our_layers(folder):
    arrays = keras_arrays()
    np.savez(folder / "mlperf_tiny_resnet8_fp32.npz", **arrays)
    net = mlperf.load("resnet8")
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = as_keras_computes(arrays, images * 255)
        assert expected.std() > 1 and torch.allclose(net(images), expected, rtol=1e-4, atol=1e-2)
    assert not net.training


def test_missing_damaged_or_foreign_files(folder):
    with pytest.raises(DataError, match="data not present.*mlcommons/tiny.*QPATCH_DATA"):
        mlperf.load("resnet8")
    with pytest.raises(DataError, match="pretrainedResnet_quant.tflite"):
        mlperf.tflite("resnet8")
    weights = folder / "mlperf_tiny_resnet8_fp32.npz"
    arrays = keras_arrays()
    np.savez(weights, **arrays)
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(DataError, match="is damaged"):
        mlperf.load("resnet8")
    np.savez(weights, **{name: array for name, array in arrays.items() if name != "conv2d_7/kernel"})
    with pytest.raises(DataError, match="does not hold the weights of resnet8.*conv2d_7/kernel"):
        mlperf.load("resnet8")
    np.savez(weights, **arrays | {"dense/bias": np.zeros(3, np.float32)})
    with pytest.raises(DataError, match="does not hold the weights of resnet8"):
        mlperf.load("resnet8")
    with zipfile.ZipFile(weights, "w") as empty:
        empty.writestr("dense.npy", b"no array")
    with pytest.raises(DataError, match="is damaged"):
        mlperf.load("resnet8")
    with pytest.raises(ParameterError, match="resnet8, mobilenetv1_025"):
        mlperf.load("resnet20")
    with pytest.raises(ParameterError, match="float, int8"):
        mlperf.tflite("resnet8", "int16")


def test_an_absent_task_says_what_to_do(folder):
    for name in ("vww", "coffee"):
        here, reason = available(name)
        assert not here and "data not present" in reason and "QPATCH_DATA" in reason
        with pytest.raises(DataError):
            TASKS[name].load("test")
    assert available("shapes") == (True, "")
    with pytest.raises(ParameterError, match="cifar10, vww, coffee"):
        available("imagenet")


# ------------------------------------------------------------------------------------------------ the real files


def need(*files: str) -> None:
    given = Path(os.environ.get("QPATCH_DATA", "")) / "mlperf_tiny"
    if not all((given / file).exists() for file in files):
        pytest.skip(f"QPATCH_DATA holds no mlperf_tiny/{', '.join(files)}")


@pytest.mark.parametrize("name", mlperf.SOURCES)
def test_the_float_tflite_file_says_the_same(name):
    source = mlperf.SOURCES[name]
    need(source.weights, source.tflite["float"])
    interpreter = pytest.importorskip("ai_edge_litert.interpreter").Interpreter(str(mlperf.tflite(name, "float")))
    interpreter.allocate_tensors()
    (inner,), (outer,) = interpreter.get_input_details(), interpreter.get_output_details()
    net, said = mlperf.load(name), []
    images = torch.rand(6, 3, *inner["shape"][1:3], generator=torch.Generator().manual_seed(1))
    for image in images:
        interpreter.set_tensor(inner["index"], (image * source.range).permute(1, 2, 0)[None].numpy())
        interpreter.invoke()
        said.append(torch.from_numpy(interpreter.get_tensor(outer["index"])[0].copy()))
    with torch.no_grad():
        assert torch.allclose(net(images).softmax(1), torch.stack(said), atol=1e-5)


def test_resnet8_reaches_the_benchmarks_accuracy():
    need("mlperf_tiny_resnet8_fp32.npz")
    try:
        test = data.load("cifar10", "test")
    except DataError:
        pytest.skip("CIFAR-10 is not on this machine")
    assert measure.accuracy(mlperf.load("resnet8"), test.floats(), test.labels) == pytest.approx(0.8719, abs=2e-4)
