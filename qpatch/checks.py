"""Input checks shared by every public entry: one clear message that says the fix."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qpatch.errors import InputError


def check_images(images: Tensor, net: nn.Module | None = None) -> Tensor:
    """Check that `images` is a float32 NCHW batch in [0, 1], on the device of `net`.

    Raises:
        InputError: wrong type, dtype, shape, range or device; the message says how to mend it.
    """
    if not isinstance(images, Tensor):
        raise InputError(f"images must be a torch.Tensor, got {type(images).__name__}; use torch.from_numpy(...).")
    if images.dtype == torch.uint8:
        raise InputError("images are uint8; use images.float() / 255 to bring them to float32 in [0, 1].")
    if images.dtype != torch.float32:
        raise InputError(f"images must be float32, got {images.dtype}; use images.float().")
    if images.dim() != 4:
        raise InputError(f"images must be a batch N×C×H×W, got shape {tuple(images.shape)}; use images.unsqueeze(0) for one.")
    if images.shape[1] not in (1, 3):
        hint = "; they look like NHWC: use images.permute(0, 3, 1, 2)" if images.shape[-1] in (1, 3) else ""
        raise InputError(f"images must have 1 or 3 channels in dimension 1, got shape {tuple(images.shape)}{hint}.")
    if images.numel() == 0:
        raise InputError("the batch of images is empty.")
    if net is not None:
        device = device_of(net)
        if device is not None and device != images.device:
            raise InputError(f"images are on {images.device} but the network is on {device}; use images.to({str(device)!r}).")
    low, high = torch.aminmax(images.detach())
    low, high = float(low), float(high)
    if not (low >= 0 and high <= 1):  # also false for NaN
        hint = " divide by 255" if high > 2 else " clamp to [0, 1]; normalisation is the network's first layer, not yours"
        raise InputError(f"images must lie in [0, 1], got [{low:.4g}, {high:.4g}];{hint}.")
    return images


def check_labels(labels: Tensor, n: int) -> Tensor:
    """Check that `labels` is an int64 vector of length `n`.

    Raises:
        InputError: wrong type, dtype, length, or a negative class.
    """
    if not isinstance(labels, Tensor) or labels.dtype != torch.int64 or labels.shape != (n,):
        got = f"{labels.dtype} {tuple(labels.shape)}" if isinstance(labels, Tensor) else type(labels).__name__
        raise InputError(f"labels must be an int64 tensor of shape ({n},), got {got}.")
    if n and int(labels.min()) < 0:
        raise InputError("labels must be class indices ≥ 0.")
    return labels


def check_eval(net: nn.Module) -> nn.Module:
    """Check that no part of `net` is in train mode, so that BatchNorm and dropout stay still.

    Raises:
        InputError: some module is in train mode.
    """
    for name, module in net.named_modules():
        if module.training:
            where = f" (module {name!r})" if name else ""
            raise InputError(f"the network is in train mode{where}; call net.eval() first.")
    return net


def device_of(net: nn.Module) -> torch.device | None:
    """The device of the network's first parameter or buffer, or None if it has neither."""
    for tensor in net.parameters():
        return tensor.device
    for tensor in net.buffers():
        return tensor.device
    return None
