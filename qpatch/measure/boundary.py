"""The distance of an image to the decision boundary, measured on the function that the network really computes.

Every network goes through the same four parts, so that their distances can be compared:

1. *Directions.* A minimal-norm attack follows the network's (straight-through) gradient and ends just beyond the
   boundary. Directions found on other networks can be added; they show where a network's own gradient leads astray.
2. *Rays.* Along each direction the network itself is asked, from near to far, where its answer first changes; then the
   crossing is bisected. No gradient is involved, so this also works on an integer interpreter.
3. *Pulling back.* A network that rounds its input receives the same from many images. Of these the nearest is taken:
   every value goes back until just before the network would notice.
4. *Refinement.* The attack starts again from the nearest point so far, and parts 2 and 3 follow once more.

The nearest crossing is kept. It is an upper bound of the true distance, and the image beyond it is the proof.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qpatch.attacks.base import frozen
from qpatch.checks import check_eval, check_images, check_labels
from qpatch.errors import InputError, ParameterError, one_of

NORMS = ("L2", "Linf")
_GROWTH = 1.3  # from one point of a ray to the next
_INWARD, _OUTWARD = 7, 24  # points on a ray before and after the change itself: 0.16 to 543 times its length
_HALVINGS = 9  # of the last interval; the crossing is then exact to 1 part in 2,000
_SMALLEST = 0.002  # length of the first step, half a step of an 8-bit image, where the boundary seems to be nearer
_BATCH = 250


@dataclass(frozen=True)
class Boundary:
    """Where a network changes its answer, for N images.

    Attributes:
        points: float32 (N, C, H, W) in [0, 1]: images just beyond the boundary; the clean image where there is none.
        distance: float32 (N,): size of the smallest change found, in units of [0, 1] pixels; inf where no crossing was
            found, nan for images that the network gets wrong when clean.
        received: float32 (N,): size of the smallest change found in what the network receives, after it has rounded its
            input; equal to `distance` for a network that does not.
    """

    points: Tensor
    distance: Tensor
    received: Tensor


def size(change: Tensor, norm: str = "L2") -> Tensor:
    """The norm of each change, (N, C, H, W) → (N,)."""
    flat = change.flatten(1)
    return flat.norm(dim=1) if one_of(norm, NORMS, "norm") == "L2" else flat.abs().amax(1)


def boundary_distance(
    net: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    gradient: nn.Module | None = None,
    directions: Iterable[Tensor] = (),
    norm: str = "L2",
    steps: int = 60,
) -> Boundary:
    """The distance of each image to the nearest image that the network does not assign to `labels`.

    Args:
        net: the judged network in eval mode: images to scores, with or without gradients. If it has a method
            `received`, that says what it makes of its input before anything else.
        images: float32 (N, C, H, W) in [0, 1].
        labels: int64 (N,).
        gradient: a differentiable network to follow, logits; by default `net`.
        directions: more changes to try, each (N, C, H, W); only their directions matter.
        norm: "L2" or "Linf".
        steps: gradient steps of the attack; the refinement takes half as many.

    Returns:
        A `Boundary`; its distances are upper bounds.

    Raises:
        ParameterError: unknown norm, or steps below 2.
        InputError: train mode, malformed images or labels, or a network without gradients.
    """
    _check(net, images, labels, norm)
    if not isinstance(steps, int) or steps < 2:
        raise ParameterError(f"the attack needs at least 2 steps, got {steps!r}.")
    follow = net if gradient is None else gradient
    start = minimal_change(follow, images, labels, norm=norm, steps=steps)
    found = _on_rays(net, images, labels, (start, *directions), norm)
    again = minimal_change(follow, images, labels, norm=norm, steps=steps // 2, start=found.points - images)
    return nearest([found, _on_rays(net, images, labels, (again,), norm)])


def along(net: nn.Module, images: Tensor, labels: Tensor, change: Tensor, *, norm: str = "L2") -> Boundary:
    """The first crossing on the ray image + t · change, t > 0, clipped to [0, 1].

    The ray is walked outwards in steps of 30 %, up to far beyond the corner of the pixel cube, and the step in which
    the answer changes is bisected. Only the network's answers are used.

    Args:
        change: (N, C, H, W), for instance of an adversarial image, or from `random_changes`. A ray without length
            crosses nothing.

    Raises:
        InputError: as for `boundary_distance`, or changes that do not have the images' shape.
    """
    _check(net, images, labels, norm)
    if change.shape != images.shape:
        raise InputError(f"changes must have the images' shape {tuple(images.shape)}, got {tuple(change.shape)}.")
    labels, near = labels.to(images.device), torch.zeros(len(images), device=images.device)
    far = torch.full_like(near, math.inf)
    alive = right = torch.nonzero(~_leaves(net, images, labels)).flatten()
    for power in range(-_INWARD, _OUTWARD + 1):
        gone = _leaves(net, _at(images[alive], change[alive], _GROWTH**power), labels[alive])
        far[alive[gone]] = _GROWTH**power
        alive = alive[~gone]
        if len(alive) == 0:
            break
        near[alive] = _GROWTH**power
    crossed = torch.nonzero(far.isfinite()).flatten()
    for _ in range(_HALVINGS):
        middle = (near[crossed] + far[crossed]) / 2
        gone = _leaves(net, _at(images[crossed], change[crossed], middle), labels[crossed])
        far[crossed[gone]], near[crossed[~gone]] = middle[gone], middle[~gone]
    points, distance = images.clone(), torch.full_like(far, math.nan)
    points[crossed] = pulled_back(net, images[crossed], _at(images[crossed], change[crossed], far[crossed]))
    distance[right] = math.inf
    received = distance.clone()
    distance[crossed] = size(points - images, norm)[crossed]
    received[crossed] = size(_received(net, points) - _received(net, images), norm)[crossed]
    return Boundary(points, distance, received)


@torch.no_grad()
def pulled_back(net: nn.Module, images: Tensor, points: Tensor) -> Tensor:
    """The images nearest to `images` from which a network receives the same as from `points`.

    Every value is moved back by bisection as long as the network's `received` does not change. A network without such a
    method receives what it is given, and gets `points` back.
    """
    if not hasattr(net, "received") or len(images) == 0:
        return points
    wanted, change = net.received(points), points - images
    low, high = torch.zeros_like(images), (net.received(images) != wanted).float()
    for _ in range(12):
        middle = (low + high) / 2
        same = net.received((images + middle * change).clamp(0, 1)) == wanted
        low, high = torch.where(same, low, middle), torch.where(same, middle, high)
    back = (images + high * change).clamp(0, 1)
    return torch.where(net.received(back) == wanted, back, points)


def minimal_change(
    net: nn.Module, images: Tensor, labels: Tensor, *, norm: str = "L2", steps: int = 60, start: Tensor | None = None
) -> Tensor:
    """The smallest change that a minimal-norm attack finds: (N, C, H, W), or its last try where it finds none.

    After the fast minimum-norm attack (Pintor et al. 2021): walk down the margin of the true class inside a ball; the
    ball shrinks while the point is adversarial and grows while it is not, by less and less. Lengths are shares of the
    ball's radius, which starts at the distance of the linearised boundary, so no step size is tied to a data set.

    Args:
        net: differentiable, images to logits, in eval mode.
        start: (N, C, H, W), changes to start from; by default none.

    Raises:
        InputError: the network's output has no gradient.
    """
    parts = [slice(first, first + _BATCH) for first in range(0, len(images), _BATCH)]
    labels = labels.to(images.device)
    with frozen(net):
        return torch.cat([_walk(net, images[part], labels[part], norm, steps, None if start is None else start[part])
                          for part in parts])  # fmt: skip


def random_changes(images: Tensor, norm: str = "L2", seed: int = 0) -> Tensor:
    """A random direction per image, of length 0.1 in L2 (uniform on the sphere) or 1/255 in Linf (random signs)."""
    drawn = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed)).to(images.device)
    if one_of(norm, NORMS, "norm") == "Linf":
        return drawn.sign() / 255
    return 0.1 * drawn / _wide(size(drawn))


def nearest(found: Iterable[Boundary]) -> Boundary:
    """Image by image, the nearest of some boundaries of one network; each distance is the smallest found."""
    best, *others = found
    for other in others:
        win = other.distance < best.distance
        best = Boundary(torch.where(_wide(win), other.points, best.points), best.distance.minimum(other.distance),
                        best.received.minimum(other.received))  # fmt: skip
    return best


def _on_rays(net: nn.Module, images: Tensor, labels: Tensor, changes: Iterable[Tensor], norm: str) -> Boundary:
    """The nearest crossing along some changes, and along the same with the square root of each value's size.

    Where the input is rounded, a value that moves by k steps costs only k − ½ in the image that is handed in. For a
    linear network the best k then falls off more slowly than the gradient, nearly as its root.
    """
    rays = [ray for change in changes for ray in (change, _root(change))]
    return nearest(along(net, images, labels, ray, norm=norm) for ray in rays)


def _root(change: Tensor) -> Tensor:
    """sign(c) · √|c|, scaled to the L2 norm that the change has."""
    root = change.sign() * change.abs().sqrt()
    return root * _wide(size(change) / size(root).clamp_min(1e-12))


def _walk(net: nn.Module, images: Tensor, labels: Tensor, norm: str, steps: int, start: Tensor | None) -> Tensor:
    change = torch.zeros_like(images) if start is None else start.clone()
    best, smallest, radius = change.clone(), torch.full((len(images),), math.inf, device=images.device), None
    for step in range(steps):
        margin, slope = _margin(net, images + change, labels)
        outside, length = margin < 0, size(change, norm)
        better = outside & (length < smallest)
        best[better], smallest[better] = change[better], length[better]
        linear = length + margin.abs() / _steepness(slope, norm)  # at most so far is the linearised boundary
        if radius is None:
            radius = torch.where(outside, length, linear).clamp_min(_SMALLEST)
        rate = 0.5 * (1 + math.cos(math.pi * step / steps))
        reach = torch.where(smallest.isinf(), linear.clamp(1.2 * radius, 2 * radius), radius)
        radius = torch.where(outside, radius.minimum(smallest) * (1 - 0.05 * rate), reach * (1 + 0.05 * rate))
        down = slope.sign() if norm == "Linf" else slope / _wide(_steepness(slope, norm))
        change = _into_ball(change - _wide(radius * (0.01 + 0.99 * rate)) * down, radius, norm)
        change = (images + change).clamp(0, 1) - images
    return torch.where(_wide(smallest.isinf()), change, best)


def _steepness(slope: Tensor, norm: str) -> Tensor:
    """The dual norm of a gradient: how much a change of size 1 can do, (N,)."""
    return (size(slope) if norm == "L2" else slope.flatten(1).abs().sum(1)).clamp_min(1e-12)


def _into_ball(change: Tensor, radius: Tensor, norm: str) -> Tensor:
    if norm == "Linf":
        return change.maximum(-_wide(radius)).minimum(_wide(radius))
    return change * _wide((radius / size(change).clamp_min(1e-12)).clamp_max(1))


def _margin(net: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """True logit minus the best other one, (N,), and its gradient; negative where the image is misclassified."""
    images = images.clone().requires_grad_()
    logits = net(images)
    if not logits.requires_grad:
        raise InputError("this network has no gradient; pass a differentiable one as `gradient`.")
    margin = logits.gather(1, labels[:, None])[:, 0] - logits.scatter(1, labels[:, None], -math.inf).amax(1)
    return margin.detach(), torch.autograd.grad(margin.sum(), images)[0]


@torch.no_grad()
def _leaves(net: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Whether the network gives another answer than the label: bool (N,)."""
    answers = [net(part).argmax(1) for part in images.split(_BATCH)] if len(images) else [labels]
    return torch.cat(answers) != labels


@torch.no_grad()
def _received(net: nn.Module, images: Tensor) -> Tensor:
    return net.received(images) if hasattr(net, "received") else images


def _at(images: Tensor, change: Tensor, t: Tensor | float) -> Tensor:
    return (images + (_wide(t) if isinstance(t, Tensor) else t) * change).clamp(0, 1)


def _wide(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)


def _check(net: nn.Module, images: Tensor, labels: Tensor, norm: str) -> None:
    one_of(norm, NORMS, "norm")
    check_eval(net)
    check_images(images, net)
    check_labels(labels, len(images))
