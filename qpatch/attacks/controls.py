"""Control patches: what a patch does that nobody optimised. Their success is the floor of every success rate."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from qpatch.attacks.patch import Patch, as_size, make_mask, round_to_bytes
from qpatch.checks import check_images, check_labels
from qpatch.errors import InputError


def noise_patch(
    size: int | tuple[int, int] = 6, channels: int = 3, shape: str | Tensor = "square", seed: int = 0
) -> Patch:
    """Uniform random bytes: separates what optimisation adds from what any busy square does."""
    pixels = noise_pixels(1, channels, size, seed)[0]
    return Patch(pixels, make_mask(shape, size), None, {"control": "noise", "seed": seed})


def grey_patch(size: int | tuple[int, int] = 6, channels: int = 3, shape: str | Tensor = "square") -> Patch:
    """Mid-grey 0.5: what hiding those pixels does."""
    pixels = torch.full((channels, *as_size(size)), 0.5)
    return Patch(pixels, make_mask(shape, size), None, {"control": "grey"})


def photo_patch(
    images: Tensor,
    labels: Tensor,
    target_class: int | None = None,
    size: int | tuple[int, int] = 6,
    shape: str | Tensor = "square",
    seed: int = 0,
) -> Patch:
    """A photograph shrunk to the patch: of the target class, or of any class where there is no target.

    Args:
        images: float32 (N, C, H, W) in [0, 1] to choose from. labels: int64 (N,).

    Raises:
        InputError: no image of that class.
    """
    pixels = photo_pixels(1, images, labels, target_class, size, seed)[0]
    return Patch(pixels, make_mask(shape, size), target_class, {"control": "photo", "seed": seed})


def noise_pixels(n: int, channels: int, size: int | tuple[int, int], seed: int = 0) -> Tensor:
    """`n` independent noise patches: (n, channels, h, w) on the 8-bit lattice."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (n, channels, *as_size(size)), generator=generator) / 255


def photo_pixels(
    n: int, images: Tensor, labels: Tensor, target_class: int | None, size: int | tuple[int, int], seed: int = 0
) -> Tensor:
    """`n` photographs drawn with replacement and shrunk with antialiasing: (n, C, h, w) on the 8-bit lattice."""
    check_images(images)
    check_labels(labels, len(images))
    pool = torch.arange(len(labels)) if target_class is None else (labels == target_class).nonzero()[:, 0].cpu()
    if len(pool) == 0:
        raise InputError(f"no image of class {target_class} to make a photograph patch from.")
    chosen = pool[torch.randint(len(pool), (n,), generator=torch.Generator().manual_seed(seed))].to(images.device)
    small = F.interpolate(images[chosen], size=as_size(size), mode="bilinear", antialias=True, align_corners=False)
    return round_to_bytes(small.clamp(0, 1))
