"""A float network as paper C deploys it: float, int16 and int8, from files that are made on the spot."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from qpatch.errors import one_of
from qpatch.quant import tflite

PRECISIONS = ("float", "int16", "int8")


def files(net: nn.Module, calibration: Tensor, precisions: Iterable[str] = PRECISIONS) -> dict[str, bytes]:
    """Precision → .tflite of the network, for the integer precisions.

    Args:
        net: a float network in eval mode.
        calibration: images that choose the activation ranges, see `qpatch.zoo.calibration_images`.
        precisions: any of `PRECISIONS`.

    Raises:
        ParameterError: an unknown precision.
    """
    wanted = [one_of(name, PRECISIONS, "precision") for name in precisions]
    return {name: tflite.convert(net, calibration, name) for name in wanted if name != "float"}


def deploy(net: nn.Module, calibration: Tensor, precisions: Iterable[str] = PRECISIONS) -> dict[str, nn.Module]:
    """Precision → network that computes on the very integers of the .tflite; "float" is `net` itself.

    The integer networks give probabilities and have no gradient; `twins` has one.
    """
    made = files(net, calibration, precisions)
    return {name: net if name == "float" else tflite.network(made[name]) for name in precisions}


def twins(net: nn.Module, calibration: Tensor, precisions: Iterable[str] = PRECISIONS) -> dict[str, nn.Module]:
    """Precision → network with logits and a straight-through gradient, for white-box attacks; "float" is `net`."""
    made = files(net, calibration, precisions)
    return {name: net if name == "float" else tflite.twin(made[name]) for name in precisions}
