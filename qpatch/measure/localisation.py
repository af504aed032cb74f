"""How well a defense finds a patch, beside the chance level of a patch elsewhere; what becomes of the predictions."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from qpatch.attacks.patch import as_size, check_places, make_mask, paste
from qpatch.errors import InputError

DETECTED = 0.5  # overlap from which a patch counts as detected (Tarchoun et al. 2023, section 4.1)


def patch_masks(places: Tensor, size: int | tuple[int, int], image_size: int | tuple[int, int]) -> Tensor:
    """Where the patches lie: bool (N, H, W).

    Args:
        places: int64 (N, 2), top-left corners.
        size, image_size: in pixels.

    Raises:
        InputError: a place at which the patch leaves the image.
    """
    empty = torch.zeros(len(places), 1, *as_size(image_size))
    check_places(places, empty, as_size(size))
    return paste(empty, torch.ones(1, *as_size(size)), make_mask("square", size), places)[:, 0].bool()


def overlap(found: Tensor, true: Tensor) -> Tensor:
    """Intersection over union per image, float32 (N,) in [0, 1]; 1 where both masks are empty.

    Args:
        found, true: bool (N, H, W).

    Raises:
        InputError: masks of different shapes, or no masks.
    """
    if found.shape != true.shape or found.dtype != torch.bool or true.dtype != torch.bool:
        raise InputError(f"masks must be bool and of one shape, got {tuple(found.shape)} and {tuple(true.shape)}.")
    union = (found | true).sum((1, 2))
    return torch.where(union > 0, (found & true).sum((1, 2)) / union.clamp(min=1), 1.0)


@dataclass(frozen=True)
class Localisation:
    """How well masks hit their patches.

    Attributes:
        n: images.
        iou: mean overlap with the patch. iou_elsewhere: with a patch of this size at a random place, the chance level.
        detected: share of images with an overlap above 0.5. detected_elsewhere: the same at the random place.
        covered: mean share of the patch's pixels that are masked.
        beside: mean number of masked pixels that are not patch.
    """

    n: int
    iou: float
    iou_elsewhere: float
    detected: float
    detected_elsewhere: float
    covered: float
    beside: float


def localisation(found: Tensor, true: Tensor, elsewhere: Tensor) -> Localisation:
    """Compare the masks that a defense found with the true ones and with others of the same size.

    Args:
        found, true, elsewhere: bool (N, H, W).
    """
    hit, chance = overlap(found, true), overlap(found, elsewhere)
    both, patch = (found & true).sum((1, 2)), true.sum((1, 2))
    return Localisation(
        n=len(found), iou=float(hit.mean()), iou_elsewhere=float(chance.mean()),
        detected=float((hit > DETECTED).float().mean()), detected_elsewhere=float((chance > DETECTED).float().mean()),
        covered=float((both / patch).mean()), beside=float((found.sum((1, 2)) - both).float().mean()),
    )  # fmt: skip


@dataclass(frozen=True)
class Repair:
    """What a defense at the input does to predictions, as Tarchoun et al. (2023) count it.

    Attributes:
        attacked: images that are right when clean and wrong under the patch, without the defense.
        recovered: share of these that the defense makes right; nan if there are none.
        resisted: images that are right both ways, without the defense.
        lost: share of these that the defense makes wrong; nan if there are none.
    """

    attacked: int
    recovered: float
    resisted: int
    lost: float


def repair(clean: Tensor, patched: Tensor, defended: Tensor, labels: Tensor) -> Repair:
    """Recovery and loss from predicted classes, int64 (N,) each.

    Args:
        clean, patched: without the defense. defended: of the patched images, with the defense. labels: true classes.
    """
    fooled, firm = (clean == labels) & (patched != labels), (clean == labels) & (patched == labels)
    right = defended == labels
    rate = lambda part, of: int(part.sum()) / int(of.sum()) if bool(of.any()) else math.nan  # noqa: E731
    return Repair(int(fooled.sum()), rate(fooled & right, fooled), int(firm.sum()), rate(firm & ~right, firm))
