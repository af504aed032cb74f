"""How far an adversarial image is from its clean one, in four norms, and as the attacked network receives both.

An integer network rounds its input, so noise below half a step never reaches it. Paper C's scripts measure the image
before this rounding. With `net` given, both images are rounded first, as that network does.
"""

from __future__ import annotations

import pandas as pd
from torch import Tensor, nn

from qpatch.checks import check_images
from qpatch.errors import InputError, ParameterError

NORMS = ("l0", "l1", "l2", "linf")
TOLERANCE = 1e-5  # a third of the input step of an int16 network


def received(net: nn.Module | None, images: Tensor) -> Tensor:
    """What reaches the network: its own `received(images)` where it rounds its input, else the images themselves."""
    return net.received(images) if hasattr(net, "received") else images


def distortion(
    clean: Tensor, adversarial: Tensor, net: nn.Module | None = None, *, tolerance: float = TOLERANCE
) -> pd.DataFrame:
    """L0, L1, L2 and L∞ of adversarial − clean, per image.

    Args:
        clean, adversarial: float32 (N, C, H, W) in [0, 1].
        net: the network whose input rounding to apply to both; None, or a float network, applies none.
        tolerance: a value that changes by no more counts as unchanged in L0, in [0, 1] units; methods that work in
            arctanh space move every value by about 1e-7.

    Returns:
        One row per image: l0 (number of changed values, out of C·H·W), l1 and l2 (summed over values), linf; the last
        three in [0, 1] units.

    Raises:
        InputError: malformed images, or images of different shapes.
        ParameterError: a negative tolerance.
    """
    if tolerance < 0:
        raise ParameterError(f"the tolerance must not be negative, got {tolerance}.")
    difference = _difference(clean, adversarial, net)
    size = difference.abs()
    return pd.DataFrame({
        "l0": (size > tolerance).sum(1).numpy(), "l1": size.sum(1).numpy(), "l2": difference.norm(dim=1).numpy(),
        "linf": size.amax(1).numpy(),
    })  # fmt: skip


def kept(clean: Tensor, adversarial: Tensor, net: nn.Module | None) -> Tensor:
    """The part of a perturbation δ that reaches the network as received δ̃: ⟨δ̃, δ⟩ / ⟨δ, δ⟩, float32 (N,).

    1 if it all arrives, 0 if it is rounded away, above 1 if rounding makes it larger; nan where δ is zero.
    """
    intended = _difference(clean, adversarial, None)
    arrived = _difference(clean, adversarial, net)
    return ((arrived * intended).sum(1) / (intended**2).sum(1)).float()


def _difference(clean: Tensor, adversarial: Tensor, net: nn.Module | None) -> Tensor:
    if clean.shape != adversarial.shape:
        raise InputError(f"clean and adversarial images differ in shape: {tuple(clean.shape)}, {tuple(adversarial.shape)}.")
    check_images(clean)
    check_images(adversarial)
    return (received(net, adversarial) - received(net, clean)).detach().cpu().double().flatten(1)
