"""Ten classes of shapes on textured, cluttered backgrounds, made from a seed in a moment.

For smoke runs and tests, where nothing may be downloaded. Colours, size, place and rotation say nothing of the class,
so that a linear classifier fails and a small convolutional network learns the classes in a few epochs.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from qpatch.data.dataset import Dataset

SIZE = 32  # pixels
RADIUS = (9.0, 13.0)  # of the circle around a shape, pixels
TILT = 0.45  # either way, radians
WAVES, STROKES = 3, 3  # sine gratings per surface, strokes behind a shape


class _Draws:
    """Uniform numbers, one row per image, drawn in one go: the first images do not depend on how many follow."""

    def __init__(self, n: int, seed: int):
        self.values = torch.rand(n, 96, generator=torch.Generator().manual_seed(seed))
        self.used = 0

    def __call__(self, low: float, high: float, *shape: int) -> Tensor:
        """The next numbers of every image, in [low, high), as n×shape×1×1: ready to meet the pixel grid."""
        count = math.prod(shape)
        values = self.values[:, self.used : self.used + count]
        self.used += count
        return (low + (high - low) * values).reshape(len(values), *shape, 1, 1)


def make_shapes(split: str, n: int, seed: int = 0) -> Dataset:
    """`n` images, 3×32×32, the classes taking turns.

    Equal arguments give equal bytes, and a smaller `n` gives the first of the same images.
    """
    draw = _Draws(n, 2 * seed + (split == "test"))
    labels = torch.arange(n) % len(SHAPES)
    axis = torch.arange(SIZE) - (SIZE - 1) / 2
    y, x = axis.reshape(1, 1, -1, 1), axis.reshape(1, 1, 1, -1)  # pixels from the centre; row, column

    radius, turn = draw(*RADIUS, 1), draw(-TILT, TILT, 1)
    row, column = ((SIZE / 2 - radius) * draw(-1, 1, 1) for _ in range(2))
    u = ((x - column) * turn.cos() + (y - row) * turn.sin()) / radius
    v = ((y - row) * turn.cos() - (x - column) * turn.sin()) / radius
    distance = torch.empty_like(u)
    for label, shape in enumerate(SHAPES.values()):
        distance[label :: len(SHAPES)] = shape(u[label :: len(SHAPES)], v[label :: len(SHAPES)])

    ground = draw(0.15, 0.85, 3)
    shift = draw(0.3, 0.5, 1) * torch.where(ground.mean(1, keepdim=True) < 0.5, 1.0, -1.0)
    figure = ground + shift + draw(-0.2, 0.2, 3)  # another brightness than the ground, any hue
    images = ground + _texture(draw, y, x)
    for _ in range(STROKES):
        images = _stroke(images, draw, y, x)
    images = torch.lerp(images, figure + 0.5 * _texture(draw, y, x), _cover(distance * radius))
    images = _stroke(images, draw, y, x)  # and one that may hide a part of the shape
    return Dataset("shapes", split, (255 * images).round().clamp(0, 255).byte(), labels, tuple(SHAPES))


def _texture(draw: _Draws, y: Tensor, x: Tensor) -> Tensor:
    """A sum of coloured sine gratings, n×3×32×32, zero on average."""
    total = 0.0
    for _ in range(WAVES):
        angle, length = draw(0, math.pi, 1), draw(3, 16, 1)
        phase = 2 * math.pi * ((x * angle.cos() + y * angle.sin()) / length + draw(0, 1, 1))
        total = total + draw(-0.1, 0.1, 3) * phase.sin()
    return total


def _stroke(images: Tensor, draw: _Draws, y: Tensor, x: Tensor) -> Tensor:
    """Draw a short straight stroke of any colour."""
    angle, half = draw(0, math.pi, 1), draw(1, 6, 1)
    row, column = draw(-SIZE / 2, SIZE / 2, 1), draw(-SIZE / 2, SIZE / 2, 1)
    along = (x - column) * angle.cos() + (y - row) * angle.sin()
    across = (y - row) * angle.cos() - (x - column) * angle.sin()
    distance = torch.hypot((along.abs() - half).clamp(min=0), across) - draw(0.5, 1.5, 1)
    return torch.lerp(images, draw(0, 1, 3), _cover(distance))


def _cover(distance: Tensor) -> Tensor:
    """How much of a pixel lies inside, in [0, 1], from the signed distance of its centre in pixels (inside < 0)."""
    return (0.5 - distance).clamp(0, 1)


# Signed distances (or near enough) to the outline of each shape, which the unit circle contains.


def _disc(u: Tensor, v: Tensor) -> Tensor:
    return torch.hypot(u, v) - 0.85


def _ring(u: Tensor, v: Tensor) -> Tensor:
    return (torch.hypot(u, v) - 0.75).abs() - 0.17


def _box(u: Tensor, v: Tensor, width: float, height: float) -> Tensor:
    return torch.maximum(u.abs() - width, v.abs() - height)


def _square(u: Tensor, v: Tensor) -> Tensor:
    return _box(u, v, 0.7, 0.7)


def _frame(u: Tensor, v: Tensor) -> Tensor:
    return _box(u, v, 0.58, 0.58).abs() - 0.14


def _triangle(u: Tensor, v: Tensor) -> Tensor:
    return torch.maximum(math.sqrt(0.75) * u.abs() - 0.5 * v, v) - 0.5


def _cross(u: Tensor, v: Tensor) -> Tensor:
    return torch.minimum(_box(u, v, 0.95, 0.25), _box(u, v, 0.25, 0.95))


def _star(u: Tensor, v: Tensor) -> Tensor:
    # Fold the five points onto half of one: the edge runs from the tip (1, 0) to the notch, 0.4 away at 36°.
    fold = math.pi / 5
    angle = (torch.atan2(v, u) % (2 * fold) - fold).abs()  # 0 at a notch's axis, `fold` at a tip's
    length = torch.hypot(u, v)
    along, aside = length * (fold - angle).cos(), length * (fold - angle).sin()
    rise, run = 0.4 * math.sin(fold), 1 - 0.4 * math.cos(fold)
    return ((along - 1) * rise + aside * run) / math.hypot(rise, run)


def _bars(u: Tensor, v: Tensor) -> Tensor:
    middle = 0.6 * (v / 0.6).round().clamp(-1, 1)  # of the nearest of three bars
    return _box(u, v - middle, 0.7, 0.16)


def _crescent(u: Tensor, v: Tensor) -> Tensor:
    return torch.maximum(torch.hypot(u, v) - 0.9, 0.75 - torch.hypot(u - 0.5, v))


def _heart(u: Tensor, v: Tensor) -> Tensor:
    return torch.hypot(u, 0.3 - v - 0.85 * (u.abs() + 0.01).sqrt()) - 0.72


SHAPES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "disc": _disc,
    "ring": _ring,
    "square": _square,
    "frame": _frame,
    "triangle": _triangle,
    "cross": _cross,
    "star": _star,
    "bars": _bars,
    "crescent": _crescent,
    "heart": _heart,
}
