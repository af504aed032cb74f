"""A patch is data: make, save, load and apply it are four separate things."""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from qpatch.checks import check_images
from qpatch.errors import InputError, ParameterError, StoreError, one_of
from qpatch.store import write_atomic

SHAPES = ("square", "circle")


@dataclass(frozen=True, eq=False)
class Patch:
    """A picture that replaces some pixels of an image.

    Args:
        pixels: float32 (C, h, w) in [0, 1].
        mask: float32 (1, h, w) of zeros and ones; only pixels under a one are pasted.
        target: the class that the patch was made to show, or None for an untargeted patch.
        made_on: where the patch comes from (attack, network, bits, seed, steps, ...); anything that JSON can hold.

    Raises:
        InputError: wrong dtype, shape or range.
    """

    pixels: Tensor
    mask: Tensor
    target: int | None = None
    made_on: dict = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.pixels.dtype != torch.float32 or self.pixels.dim() != 3:
            raise InputError(f"patch pixels must be float32 C×h×w, got {self.pixels.dtype} {tuple(self.pixels.shape)}.")
        if not (float(self.pixels.min()) >= 0 and float(self.pixels.max()) <= 1):
            raise InputError("patch pixels must lie in [0, 1]; use pixels.clamp(0, 1).")
        if self.mask.shape != (1, *self.size):
            raise InputError(f"the mask must have shape {(1, *self.size)}, got {tuple(self.mask.shape)}.")
        if not bool(((self.mask == 0) | (self.mask == 1)).all()) or not bool(self.mask.any()):
            raise InputError("the mask must hold zeros and ones only, and at least a single one.")

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.pixels.shape[1], self.pixels.shape[2]

    def rounded(self) -> Patch:
        """The same patch on the 8-bit lattice {0, 1/255, ..., 1}: what a PNG file or a screen can hold."""
        return replace(self, pixels=round_to_bytes(self.pixels))

    def save(self, path: str | Path) -> Path:
        """Write `path`.png (8-bit pixels) and `path`.json (mask, target, origin); return the path of the PNG.

        Loading gives `patch.rounded()` back, bit for bit.

        Raises:
            StoreError: the folder cannot be written.
        """
        png = Path(path).with_suffix(".png")
        data = _png_bytes(self.pixels)
        card = {
            "mask": ["".join("#" if on else "." for on in row) for row in self.mask[0].bool().tolist()],
            "target": self.target,
            "made_on": self.made_on,
            "png_sha256": hashlib.sha256(data).hexdigest(),
        }
        write_atomic(png, data)
        write_atomic(png.with_suffix(".json"), json.dumps(card, indent=1, sort_keys=True) + "\n")
        return png

    @classmethod
    def load(cls, path: str | Path) -> Patch:
        """Read what `save` wrote.

        Raises:
            StoreError: a file is missing or damaged, or the two files do not belong together.
        """
        png = Path(path).with_suffix(".png")
        try:
            data = png.read_bytes()
            card = json.loads(png.with_suffix(".json").read_text())
            mask = torch.tensor([[[float(on == "#") for on in row] for row in card["mask"]]])
            expected, target, made_on = card["png_sha256"], card["target"], card["made_on"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StoreError(f"cannot read the patch {png} and its .json: {error}; make and save it again.") from error
        if hashlib.sha256(data).hexdigest() != expected:
            raise StoreError(f"{png} is not the picture that its .json describes; make and save the patch again.")
        levels = np.atleast_3d(np.asarray(Image.open(io.BytesIO(data))))
        pixels = torch.from_numpy(levels.copy()).permute(2, 0, 1).float() / 255
        return cls(pixels.contiguous(), mask, target, made_on)


def round_to_bytes(pixels: Tensor) -> Tensor:
    """`pixels` in [0, 1], each moved to the nearest multiple of 1/255."""
    return (pixels * 255).round() / 255


def apply_patch(patch: Patch, images: Tensor, places: Tensor) -> Tensor:
    """Paste one patch into every image, exact to the pixel.

    Args:
        patch: what to paste; the result is differentiable in its pixels.
        images: float32 (N, C, H, W) in [0, 1]; not changed.
        places: int64 (N, 2), row and column of the top-left corner in each image.

    Returns:
        The patched images, (N, C, H, W): x ⊙ (1 − M) + P ⊙ M.

    Raises:
        InputError: bad images, other channels than the patch's, or a place at which the patch leaves the image.
    """
    check_images(images)
    if patch.pixels.shape[0] != images.shape[1]:
        raise InputError(f"the patch has {patch.pixels.shape[0]} channels, the images have {images.shape[1]}.")
    check_places(places, images, patch.size)
    return paste(images, patch.pixels, patch.mask, places)


def paste(images: Tensor, pixels: Tensor, mask: Tensor, places: Tensor) -> Tensor:
    """Replace the masked pixels of every image; the unchecked core of `apply_patch`.

    Args:
        images: (N, C, H, W).
        pixels: (C, h, w) for one patch in all images, or (N, C, h, w) for a patch of its own in each.
        mask: (1, h, w) of zeros and ones.
        places: int64 (N, 2).

    Returns:
        A copy of the images (the only full copy made) with the patches in it.
    """
    device = images.device
    down, right = mask[0].to(device).nonzero(as_tuple=True)  # the K offsets under the mask
    places = places.to(device)
    rows, columns = places[:, :1] + down, places[:, 1:] + right  # (N, K)
    values = pixels.to(device)[..., down, right].transpose(-1, -2)  # (K, C) or (N, K, C)
    sample = torch.arange(len(images), device=device)[:, None]
    patched = images.clone()
    patched[sample, :, rows, columns] = values.expand(len(images), -1, -1)
    return patched


def check_places(places: Tensor, images: Tensor, size: tuple[int, int]) -> Tensor:
    """Check that a patch of `size` lies inside every image at its place.

    Raises:
        InputError: the patch is larger than the image, or some place is malformed or out of the image.
    """
    check_fits(size, images.shape[-2:])
    if places.dtype != torch.int64 or places.shape != (len(images), 2):
        raise InputError(f"places must be int64 of shape ({len(images)}, 2), got {places.dtype} {tuple(places.shape)}.")
    last = torch.tensor([images.shape[-2] - size[0], images.shape[-1] - size[1]], device=places.device)
    bad = ((places < 0) | (places > last)).any(dim=1)
    if bool(bad.any()):
        first = int(bad.nonzero()[0])
        raise InputError(
            f"place {tuple(places[first].tolist())} of image {first} puts a {size[0]}×{size[1]} patch outside of it; "
            f"rows run from 0 to {int(last[0])}, columns from 0 to {int(last[1])}."
        )
    return places


def check_fits(size: tuple[int, int], image_size: tuple[int, int]) -> None:
    """Raise an InputError if a patch of `size` is larger than the image."""
    if size[0] > image_size[0] or size[1] > image_size[1]:
        raise InputError(f"a {size[0]}×{size[1]} patch does not fit into {image_size[0]}×{image_size[1]} images.")


def as_size(size: int | tuple[int, int]) -> tuple[int, int]:
    """6 → (6, 6); a pair of positive ints stays.

    Raises:
        ParameterError: anything else.
    """
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(pair) != 2 or not all(isinstance(side, int) and side > 0 for side in pair):
        raise ParameterError(f"a size must be a positive int or a pair of them, got {size!r}.")
    return pair


def make_mask(shape: str | Tensor, size: int | tuple[int, int]) -> Tensor:
    """The mask (1, h, w) of a patch: "square" (all of it), "circle" (the inscribed ellipse), or any (h, w) tensor.

    Raises:
        ParameterError: an unknown shape name. InputError: a tensor of another size.
    """
    height, width = as_size(size)
    if isinstance(shape, Tensor):
        if shape.shape[-2:] != (height, width) or shape.numel() != height * width:
            raise InputError(f"the mask must be {height}×{width} like the patch, got {tuple(shape.shape)}.")
        return (shape.reshape(1, height, width) != 0).float()
    if one_of(shape, SHAPES, "patch shape") == "square":
        return torch.ones(1, height, width)
    y, x = ((torch.arange(side) + 0.5) * 2 / side - 1 for side in (height, width))  # pixel centres in (-1, 1)
    return (y[:, None] ** 2 + x[None] ** 2 <= 1).float()[None]


def _png_bytes(pixels: Tensor) -> bytes:
    levels = (pixels.detach().cpu() * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    Image.fromarray(levels[..., 0] if levels.shape[-1] == 1 else levels).save(buffer, "PNG")
    return buffer.getvalue()
