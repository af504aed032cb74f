"""The activation ranges of paper C's policy: what calibration sees, and the scale and zero point that follow."""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor

from qpatch.checks import check_images
from qpatch.errors import InputError
from qpatch.quant.tflite.floats import run
from qpatch.quant.tflite.nodes import Node

_CHUNK = 50


def check_calibration(images: Tensor) -> None:
    """Refuse calibration images from which no activation range can be learned.

    Raises:
        InputError: not a batch of images in [0, 1] (NaN included), or every image is one constant colour.
    """
    check_images(images)
    if bool((images.flatten(1).amax(1) == images.flatten(1).amin(1)).all()):
        value = float(images.flatten()[0])
        what = "zero" if not images.any() else f"constant (the first is {value:.4g} everywhere)"
        raise InputError(f"the calibration images are all {what}; pass real images, a few hundred of the training set.")


def ranges(nodes: list[Node], images: Tensor) -> dict[Node, tuple[float, float]]:
    """Smallest and largest value of every operation on the calibration images, 0 included."""
    found = {node: (0.0, 0.0) for node in nodes}
    for part in images.split(_CHUNK):
        for node, values in run(nodes, part).items():
            low, high = found[node]
            found[node] = min(low, float(values.min())), max(high, float(values.max()))
    return found


def activation_scales(
    nodes: list[Node], spans: dict[Node, tuple[float, float]], activations: str
) -> dict[Node, tuple[np.float32, int]]:
    """Scale and zero point of every operation's output."""
    chosen: dict[Node, tuple[np.float32, int]] = {}
    for node in nodes:
        if node.kind == "input":
            chosen[node] = (np.float32(1 / 255), -128) if activations == "int8" else (np.float32(1 / 32767), 0)
        elif node.kind in ("average", "max", "pad", "slice", "flatten"):
            chosen[node] = chosen[node.inputs[0]]
        else:
            low, high = spans[node]
            if not math.isfinite(high - low):
                raise InputError("the network gives infinite or undefined values on the calibration images.")
            chosen[node] = asymmetric(low, high) if activations == "int8" else symmetric(low, high)
    return chosen


def asymmetric(low: float, high: float) -> tuple[np.float32, int]:
    """int8: scale and zero point whose codes −128…127 cover low…high, which includes 0."""
    scale = np.float32(max(high - low, 1e-6) / 255)
    return scale, int(np.clip(math.floor(-128 - low / float(scale) + 0.5), -128, 127))


def symmetric(low: float, high: float) -> tuple[np.float32, int]:
    """int16: scale whose codes −32767…32767 cover low…high; the zero point is 0."""
    return np.float32(max(high, -low, 1e-6) / 32767), 0
