"""Patches as pictures on disk: written as 8-bit PNG files, which a printer or a screen takes, and read back."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from qpatch.attacks import Patch
from qpatch.checks import check_images
from qpatch.errors import InputError, StoreError


def printed(patch: Patch) -> Patch:
    """The patch after a PNG file: saved, and loaded from what lies on disk."""
    with tempfile.TemporaryDirectory() as folder:
        return Patch.load(patch.save(Path(folder) / "patch"))


def printed_each(pixels: Tensor, columns: int = 25) -> Tensor:
    """A patch for each image after a PNG file: all of them side by side on one sheet, saved and cut out again.

    Args:
        pixels: float32 (N, C, h, w) in [0, 1].
        columns: patches per row of the sheet.

    Returns:
        float32 (N, C, h, w) on the 8-bit lattice.
    """
    with tempfile.TemporaryDirectory() as folder:
        return read_sheet(save_sheet(pixels, Path(folder) / "sheet.png", columns), len(pixels), pixels.shape[-2:])


def save_sheet(pixels: Tensor, path: str | Path, columns: int = 25) -> Path:
    """Write patches (N, C, h, w) in [0, 1] side by side as one 8-bit PNG; places that are left over are black.

    Raises:
        InputError: malformed patches.
        StoreError: the file cannot be written.
    """
    check_images(pixels)
    count, channels, height, width = pixels.shape
    rows = -(-count // columns)
    sheet = torch.zeros(rows * columns, channels, height, width)
    sheet[:count] = pixels.detach().cpu()
    sheet = sheet.view(rows, columns, channels, height, width).permute(0, 3, 1, 4, 2)  # to rows × h × columns × w × C
    levels = (sheet * 255).round().to(torch.uint8).reshape(rows * height, columns * width, channels).numpy()
    try:
        Image.fromarray(levels[..., 0] if channels == 1 else levels).save(path, "PNG")
    except OSError as error:
        raise StoreError(f"cannot write the sheet {path}: {error}.") from error
    return Path(path)


def read_sheet(path: str | Path, count: int, size: tuple[int, int]) -> Tensor:
    """The first `count` patches of a sheet that `save_sheet` wrote, float32 (N, C, h, w).

    Raises:
        InputError: the picture is no sheet of patches of this size, or of fewer.
        StoreError: the file cannot be read.
    """
    try:
        levels = np.atleast_3d(np.asarray(Image.open(path)))
    except OSError as error:
        raise StoreError(f"cannot read the sheet {path}: {error}.") from error
    (height, width), (tall, wide, channels) = size, levels.shape
    rows, columns = tall // height, wide // width
    if tall % height or wide % width or rows * columns < count:
        raise InputError(f"{path} has {tall}×{wide} pixels, which is no sheet of {count} patches of {height}×{width}.")
    cut = torch.from_numpy(levels.copy()).view(rows, height, columns, width, channels).permute(0, 2, 4, 1, 3)
    return cut.reshape(rows * columns, channels, height, width)[:count].float() / 255
