"""Hits as bits: how the stored runs keep who is fooled."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def pack(bits: Tensor) -> Tensor:
    """bool (R, N) → uint8 (R, ⌈N / 8⌉), eight images per byte."""
    return torch.from_numpy(np.packbits(bits.cpu().numpy(), axis=1))


def unpack(packed: Tensor, n: int) -> Tensor:
    """The inverse: uint8 (R, ⌈n / 8⌉) → bool (R, n)."""
    return torch.from_numpy(np.unpackbits(packed.numpy(), axis=1, count=n).astype(bool))
