"""The attack inside adversarial patch training: a patch for each image of this very step, pixels and place."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qpatch.attacks.base import frozen
from qpatch.attacks.patch import make_mask, paste
from qpatch.attacks.places import allowed_places, sample_places
from qpatch.errors import ParameterError, one_of

LOCATIONS = ("fixed", "random", "full")
_MOVES = torch.tensor([[-1, 0], [1, 0], [0, -1], [0, 1]])


def patch_pgd(
    view_for: Callable[[int, Tensor | None], nn.Module], images: Tensor, labels: Tensor, *, size: int, place: str,
    iterations: int, step: float, location: str = "fixed", stride: int = 2, generator: torch.Generator,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Image-specific patches by signed ascent on the cross-entropy, with the place search of Rao et al. (2020).

    Every iteration takes one gradient step on the pixels. With location "full" it also tries the four moves by `stride`
    and takes the best one where it raises the loss; with "random" one move per image, drawn at random; a move off
    the image or into a forbidden region is not tried. Only the network's predictions decide about a move.

    Args:
        view_for: gives the attacked network for an iteration, in eval mode: (iteration, mean loss of the iteration
            before, None at the first) → network. One that always gives the same network attacks a single width.
        images, labels: float32 (N, C, H, W) in [0, 1], int64 (N,).
        size: side of the patch in pixels.
        place: where patches may lie, see `sample_places`.
        iterations: gradient steps.
        step: of a signed step, in units of the [0, 1] range.
        location: one of `LOCATIONS`.
        stride: length of a move in pixels.
        generator: of the start (uniform pixels, places) and of random moves.

    Returns:
        pixels (N, C, size, size) in [0, 1] and places int64 (N, 2).

    Raises:
        ParameterError: an unknown location rule, or a number that is not positive.
    """
    one_of(location, LOCATIONS, "location rule")
    if not (step > 0 and iterations > 0 and stride > 0):
        raise ParameterError(f"step, iterations and stride must be positive, got {step}, {iterations}, {stride}.")
    mask = make_mask("square", size)
    places = sample_places(place, len(images), images.shape[-2:], size, generator)
    pixels = torch.rand(len(images), images.shape[1], size, size, generator=generator).to(images.device)
    allowed = allowed_places(place, images.shape[-2:], size)
    before = None
    for iteration in range(iterations):
        view = view_for(iteration, before)
        with frozen(view):
            pixels.requires_grad_(True)
            losses = F.cross_entropy(view(paste(images, pixels, mask, places)).float(), labels, reduction="none")
            (gradient,) = torch.autograd.grad(losses.sum(), pixels)
        pixels, losses = pixels.detach(), losses.detach()
        before = losses.mean()
        if location != "fixed":
            places = _moved(view, images, labels, pixels, mask, places, losses, allowed, stride, location, generator)
        pixels = (pixels + step * gradient.sign()).clamp_(0, 1)
    return pixels, places


@torch.no_grad()
def _moved(view, images, labels, pixels, mask, places, losses, allowed, stride, location, generator) -> Tensor:
    """The places after one search: of the tried moves that raise the loss, the best is taken."""
    moves = _MOVES[:, None] if location == "full" else _MOVES[torch.randint(4, (len(places),), generator=generator)][None]
    highest, chosen = losses.clone(), places.clone()
    for move in moves:
        there = places + stride * move
        legal = ((there >= 0) & (there < torch.tensor(allowed.shape))).all(dim=1)
        legal[legal.clone()] = allowed[tuple(there[legal].T)]
        there = torch.where(legal[:, None], there, places)
        found = F.cross_entropy(view(paste(images, pixels, mask, there)).float(), labels, reduction="none")
        better = legal & (found > highest).cpu()
        highest = torch.where(better.to(found.device), found, highest)
        chosen = torch.where(better[:, None], there, chosen)
    return chosen
