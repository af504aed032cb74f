"""Where in the image a patch goes."""

from __future__ import annotations

import torch
from torch import Tensor

from qpatch.attacks.patch import as_size, check_fits
from qpatch.errors import InputError, one_of

PLACES = ("random", "corner", "top_left", "top_right", "bottom_left", "bottom_right", "center", "away")


def sample_places(
    kind: str | tuple[int, int],
    n: int,
    image_size: int | tuple[int, int],
    patch_size: int | tuple[int, int],
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw the top-left corner of a patch for each of `n` images.

    Args:
        kind: "random" (uniform over all offsets, the last one included), "corner" (one of the four at random),
            "top_left", "top_right", "bottom_left", "bottom_right", "center", "away" (uniform over the offsets at
            which the patch does not touch the central third of the image, as in LaVAN and in Rao et al. 2020),
            or a fixed (row, column).
        n: number of images.
        image_size, patch_size: in pixels, an int or (height, width).
        generator: source of the randomness (on the CPU); kinds without chance do not need it.

    Returns:
        int64 (n, 2): row and column.

    Raises:
        ParameterError: unknown kind. InputError: the patch does not fit, or never fits beside the centre.
    """
    size, patch = as_size(image_size), as_size(patch_size)
    check_fits(patch, size)
    last = torch.tensor([size[0] - patch[0], size[1] - patch[1]])
    if not isinstance(kind, str):
        place = torch.tensor(kind)
        if place.shape != (2,) or place.dtype != torch.int64 or bool(((place < 0) | (place > last)).any()):
            raise InputError(f"place {kind!r} is not a (row, column) between (0, 0) and {tuple(last.tolist())}.")
        return place.repeat(n, 1)
    one_of(kind, PLACES, "place")
    if generator is None:
        generator = torch.Generator().manual_seed(0)
    if kind == "random":
        return torch.stack([torch.randint(int(end) + 1, (n,), generator=generator) for end in last], dim=1)
    if kind == "corner":
        return torch.randint(2, (n, 2), generator=generator) * last
    if kind == "away":
        return _away_from_centre(n, size, patch, generator)
    fraction = {"top_left": (0, 0), "top_right": (0, 1), "bottom_left": (1, 0), "bottom_right": (1, 1)}
    place = last // 2 if kind == "center" else last * torch.tensor(fraction[kind])
    return place.repeat(n, 1)


def allowed_places(kind: str, image_size: int | tuple[int, int], patch_size: int | tuple[int, int]) -> Tensor:
    """Where "random" or "away" may put a patch: bool (H − h + 1, W − w + 1), one entry per top-left corner.

    Raises:
        ParameterError: another kind. InputError: the patch does not fit, or never fits beside the centre.
    """
    size, patch = as_size(image_size), as_size(patch_size)
    check_fits(patch, size)
    apart = []  # per axis: does the patch at this offset miss the central third?
    for side, length in zip(size, patch):
        offset = torch.arange(side - length + 1)
        apart.append((offset + length <= round(side / 3)) | (offset >= round(2 * side / 3)))
    if one_of(kind, ("random", "away"), "place with a region") == "random":
        return torch.ones(len(apart[0]), len(apart[1]), dtype=torch.bool)
    beside = apart[0][:, None] | apart[1][None]
    if not bool(beside.any()):
        raise InputError(f"a {patch[0]}×{patch[1]} patch always touches the centre of a {size[0]}×{size[1]} image.")
    return beside


def _away_from_centre(
    n: int, size: tuple[int, int], patch: tuple[int, int], generator: torch.Generator | None
) -> Tensor:
    free = allowed_places("away", size, patch).nonzero()
    return free[torch.randint(len(free), (n,), generator=generator)]
