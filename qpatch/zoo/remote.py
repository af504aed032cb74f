"""A network that computes on another device and is handled like one on the CPU."""

from __future__ import annotations

import os

import torch
from torch import Tensor, nn

from qpatch.errors import ParameterError


class Remote(nn.Module):
    """A frozen network on `device` that takes and gives CPU tensors, with a gradient to its input.

    So long runs of attacks use an accelerator without a word about devices in any attack, patch, place or random draw, and
    all of these are the same as on the CPU. Only the network's own arithmetic differs, in its last digits.

    Args:
        net: in eval mode; it is moved, and its weights take no gradient from now on.
        device: as torch names it.

    Shapes: images (N, C, H, W) in [0, 1] → logits (N, classes), both on the CPU.
    """

    def __init__(self, net: nn.Module, device: str):
        super().__init__()
        net.to(device).requires_grad_(False)
        object.__setattr__(self, "net", net)  # not a submodule: who asks for parameters shall not find the device
        self.device = device
        self.train(net.training)

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images.to(self.device)).to(images.device)


def on_chosen_device(view: nn.Module) -> nn.Module:
    """The view itself, or a `Remote` one where the environment variable QPATCH_DEVICE names another device than "cpu".

    Raises:
        ParameterError: there is no such device.
    """
    device = os.environ.get("QPATCH_DEVICE", "cpu")
    if device == "cpu":
        return view
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ParameterError(f"QPATCH_DEVICE is {device!r}, and that cannot be used: {reason}. Unset it to use the CPU.") from None
    return Remote(view, device)
