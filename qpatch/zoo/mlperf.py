"""MLPerf Tiny's own trained networks: float weights in our timm networks, and its .tflite files.

They are not ours to ship: they are looked for in the folder `mlperf_tiny` under QPATCH_DATA or in the cache. Paper C
evaluates this very MobileNetV1 (its file is MLPerf Tiny's, byte for byte); its ResNet-8 has the same layers and other
weights, for inputs in [0, 1] instead of [0, 255].

Banbury, C. et al. MLPerf Tiny Benchmark. NeurIPS Datasets and Benchmarks, 2021. Apache-2.0.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np
import timm
import torch
from torch import Tensor, nn

import qpatch.models  # noqa: F401  (registers our networks with timm)
from qpatch.data import folders
from qpatch.errors import DataError, one_of

EPS = 1e-3  # of every BatchNorm, Keras' default; the layer graphs say the same
HOW = (
    "They come from GitHub, mlcommons/tiny (Apache-2.0), benchmark/training/{image_classification,visual_wake_words}/"
    "trained_models: put the .tflite files, and the float weights as .npz (the docstring of qpatch.zoo.mlperf.load has "
    "the command that makes them from Keras' .h5 files), in a folder mlperf_tiny and set QPATCH_DATA to the folder "
    "above it."
)


@dataclass(frozen=True)
class Source:
    """Where one network's parts are: timm name and the largest input value (1 or 255), file names in the folder."""

    model: str
    range: float
    weights: str
    tflite: Mapping[str, str]


SOURCES = {
    "resnet8": Source(
        "qpatch_resnet8", 255.0, "mlperf_tiny_resnet8_fp32.npz",
        {"float": "pretrainedResnet.tflite", "int8": "pretrainedResnet_quant.tflite"},
    ),
    "mobilenetv1_025": Source(
        "qpatch_mobilenetv1_025", 1.0, "mlperf_tiny_vww_mbv1_025_fp32.npz",
        {"float": "vww_96_float.tflite", "int8": "vww_96_int8.tflite"},
    ),
}  # fmt: skip


def path(file: str, root: str | os.PathLike | None = None) -> Path:
    """The path of one file of MLPerf Tiny.

    Args:
        file: its name, for instance "calibration_samples_idxs.npy".
        root: folder in which to look first, in place of QPATCH_DATA.

    Raises:
        DataError: it is not on this machine; the message says how to get it.
    """
    return folders.find(("mlperf_tiny",), root, (file,), f"The file looked for is {file}. {HOW}") / file


def tflite(name: str, precision: str = "int8", root: str | os.PathLike | None = None) -> Path:
    """The path of a network's .tflite file; precision "float" or "int8".

    Raises:
        ParameterError: no such network or precision.
        DataError: as for `path`.
    """
    files = SOURCES[one_of(name, SOURCES, "MLPerf Tiny network")].tflite
    return path(files[one_of(precision, files, "precision")], root)


def load(name: str, root: str | os.PathLike | None = None) -> nn.Module:
    """The float network in eval mode: [0, 1] NCHW images to logits.

    "resnet8" scores 87.19 % on CIFAR-10's 10,000 test images; "mobilenetv1_025" is for Visual Wake Words, class 1 a
    person. The benchmark's ResNet-8 takes values from 0 to 255; the normalisation layer multiplies for it.

    The .npz holds every array under Keras' name (layer/weight, convolutions height × width × in × out). Made from .h5:

        weights = {}
        keep = lambda name, item: weights.update({name.split("/", 1)[-1][:-2]: item[()]}) if name[-2:] == ":0" else None
        h5py.File("pretrainedResnet.h5")["model_weights"].visititems(keep)
        numpy.savez("mlperf_tiny_resnet8_fp32.npz", **weights)

    Raises:
        ParameterError: no such network.
        DataError: the weights are not on this machine, are damaged, or do not fit.
    """
    source = SOURCES[one_of(name, SOURCES, "MLPerf Tiny network")]
    file = path(source.weights, root)
    try:
        with np.load(file, allow_pickle=False) as stored:
            weights = {key: torch.from_numpy(np.asarray(stored[key], np.float32)) for key in stored.files}
    except (OSError, ValueError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{file} is damaged ({error}); get it again. {HOW}") from error
    model = timm.create_model(source.model, mean=(0.0,) * 3, std=(1 / source.range,) * 3)
    try:
        with torch.no_grad():
            _fill(model, weights)
    except (KeyError, RuntimeError) as error:
        raise DataError(f"{file} does not hold the weights of {name} ({error}); get it again. {HOW}") from error
    return model.eval()


def _fill(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy Keras' arrays into the layers of the same kind, in order; Keras numbers each kind apart, from none to 1.

    A bias that Keras has before a BatchNorm, and ours has not, is taken off that BatchNorm's mean.
    """
    numbers = {kind: count() for kind in ("conv2d", "depthwise_conv2d", "batch_normalization")}

    def layer(kind: str) -> str:
        number = next(numbers[kind])
        return f"{kind}_{number}" if number else kind

    bias = None
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.groups > 1:
            name = layer("depthwise_conv2d")
            module.weight.copy_(weights[f"{name}/depthwise_kernel"].permute(2, 3, 0, 1))
            bias = weights[f"{name}/bias"]
        elif isinstance(module, nn.Conv2d):
            name = layer("conv2d")
            module.weight.copy_(weights[f"{name}/kernel"].permute(3, 2, 0, 1))
            bias = weights[f"{name}/bias"]
            if module.bias is not None:
                module.bias.copy_(bias)
        elif isinstance(module, nn.BatchNorm2d):
            name = layer("batch_normalization")
            module.eps = EPS
            module.weight.copy_(weights[f"{name}/gamma"])
            module.bias.copy_(weights[f"{name}/beta"])
            module.running_mean.copy_(weights[f"{name}/moving_mean"] - bias)
            module.running_var.copy_(weights[f"{name}/moving_variance"])
        elif isinstance(module, nn.Linear):
            module.weight.copy_(weights["dense/kernel"].T)
            module.bias.copy_(weights["dense/bias"])
