"""How far training moved the weights: the plainest explanation of transfer between two networks."""

from __future__ import annotations

import torch
from torch import nn

from qpatch.errors import InputError


def weight_distance(first: nn.Module, second: nn.Module) -> dict[str, float]:
    """Distance and cosine between the latent (unquantized) convolution and linear weights of two networks.

    Args:
        first, second: networks or views of one architecture; `first` is the reference.

    Returns:
        relative: ‖w₂ − w₁‖ / ‖w₁‖ over all weights together; cosine: ⟨w₁, w₂⟩ / (‖w₁‖ ‖w₂‖).

    Raises:
        InputError: the networks have different weights.
    """
    one, two = _latent(first), _latent(second)
    if [w.shape for w in one] != [w.shape for w in two]:
        raise InputError("the two networks differ in their layers; compare networks of one architecture.")
    a, b = (torch.cat([w.detach().flatten().double() for w in weights]) for weights in (one, two))
    return {"relative": float((b - a).norm() / a.norm()), "cosine": float(a @ b / (a.norm() * b.norm()))}


def _latent(net: nn.Module) -> list[torch.Tensor]:
    kinds = (nn.Conv1d, nn.Conv2d, nn.Linear)
    return [module._parameters["weight"] for module in net.modules() if isinstance(module, kinds)]
