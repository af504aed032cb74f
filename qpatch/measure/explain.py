"""How much of one network's behaviour a control with a single change reproduces."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from qpatch.errors import InputError


def explained(
    base: Tensor, effect: Tensor, control: Tensor, draws: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """The share of a difference between two accuracy curves that a control explains.

    With accuracies a(ε) over the same images: 1 − Σ (a_effect − a_control)² / Σ (a_effect − a_base)², summed over ε.
    One means that the control's curve is the effect's; zero or less that it is no nearer than the base's.

    Args:
        base, effect, control: bool (E, N), who is right at each of E noise sizes about each of N images; for instance
            the float network, the int8 network, and the float network with rounded input.
        draws: resamples of the images for the percentile interval; the three curves of a draw share its images.
        seed: of the resamples.

    Returns:
        value, and the limits of its 95 % interval; (nan, nan, nan) where base and effect do not differ.

    Raises:
        InputError: the three differ in shape or are no E×N tables.
    """
    if base.dim() != 2 or not base.shape == effect.shape == control.shape:
        shapes = ", ".join(str(tuple(t.shape)) for t in (base, effect, control))
        raise InputError(f"base, effect and control must be tables E×N of one shape, got {shapes}.")
    right = np.stack([t.numpy() for t in (base, effect, control)]).astype(np.float64)  # 3×E×N
    n = right.shape[2]
    value = float(_share(right.mean(axis=2)[..., None])[0])
    if np.isnan(value):
        return value, value, value
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=draws)  # how often each image is drawn
    shares = _share(right @ counts.T / n)
    low, high = np.nanquantile(shares, [0.025, 0.975])
    return value, float(low), float(high)


def _share(curves: np.ndarray) -> np.ndarray:
    """From accuracies 3×E×draws to one share per draw; nan where base and effect are equal."""
    base, effect, control = curves
    total = ((effect - base) ** 2).sum(axis=0)
    missed = ((effect - control) ** 2).sum(axis=0)
    return 1 - missed / np.where(total > 0, total, np.nan)
