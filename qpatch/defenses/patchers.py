"""Where TriQDef's patches come from: a pool that was made beforehand, or expectation over transformations on the spot."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from qpatch.attacks.base import frozen
from qpatch.attacks.gap import transformed
from qpatch.attacks.patch import make_mask, paste
from qpatch.attacks.places import sample_places
from qpatch.errors import InputError, ParameterError
from qpatch.quant import MultiBit


class PatchPool:
    """The offline pool: every image gets one of some ready-made patches, at a place of its own.

    Args:
        stacks: one float tensor (K, C, h, h) in [0, 1] per size; a step draws a size, each image one of its patches.
        place: see `sample_places`.

    Raises:
        InputError: no patches, or patches that are not square pictures in [0, 1].
    """

    def __init__(self, stacks: Sequence[Tensor], place: str = "away"):
        if not stacks or any(s.dim() != 4 or s.shape[2] != s.shape[3] or not len(s) for s in stacks):
            raise InputError("a pool needs at least one stack of square patches, (K, C, h, h).")
        if any(float(s.min()) < 0 or float(s.max()) > 1 for s in stacks):
            raise InputError("the pool's patches must lie in [0, 1].")
        self.stacks, self.place = tuple(stacks), place

    def __call__(
        self, net: MultiBit, images: Tensor, labels: Tensor, widths: tuple[int, ...], generator: torch.Generator
    ) -> Tensor:
        """The images with patches; network, labels and widths do not matter to a pool."""
        stack = self.stacks[int(torch.randint(len(self.stacks), (), generator=generator))]
        chosen = stack[torch.randint(len(stack), (len(images),), generator=generator)]
        places = sample_places(self.place, len(images), images.shape[-2:], stack.shape[-1], generator)
        return paste(images, chosen.to(images.device), make_mask("square", stack.shape[-1]), places)


@dataclass(frozen=True)
class OnlinePatches:
    """Online EOT: P = argmax E_{place, rotation, scale, b ~ B_t} CE(f_b(A(P, x)), y) on the weights of this very step.

    Every iteration back-propagates through one active width drawn at random, shows each patch at a new place, turned
    and scaled at random, and takes a signed step. There is one patch per image. The result is pasted plain.

    Attributes:
        size: side in pixels. place: see `sample_places`.
        iterations, step: signed steps, in units of the [0, 1] range.
        rotation: largest angle in degrees. scale: smallest and largest scale.

    Raises:
        ParameterError: a size, step or number that is not positive.
    """

    size: int = 6
    place: str = "away"
    iterations: int = 10
    step: float = 0.1
    rotation: float = 22.5
    scale: tuple[float, float] = (0.9, 1.1)

    def __post_init__(self):
        if not (self.size > 0 and self.iterations > 0 and self.step > 0 and 0 < self.scale[0] <= self.scale[1]):
            raise ParameterError("size, iterations, step and scale of online patches must be positive.")

    def __call__(
        self, net: MultiBit, images: Tensor, labels: Tensor, widths: tuple[int, ...], generator: torch.Generator
    ) -> Tensor:
        """The images with patches. BatchNorm stays still while they are made."""
        was_training = net.training
        net.eval()
        count, shape, mask = len(images), images.shape[-2:], make_mask("square", self.size)
        pixels = torch.rand(count, images.shape[1], self.size, self.size, generator=generator).to(images.device)
        for _ in range(self.iterations):
            view = net.at(widths[int(torch.randint(len(widths), (), generator=generator))])
            places = sample_places(self.place, count, shape, self.size, generator)
            turn, stretch = torch.rand(2, count, generator=generator)
            angle = (2 * turn - 1) * math.radians(self.rotation)
            scale = self.scale[0] + (self.scale[1] - self.scale[0]) * stretch
            with frozen(view):
                pixels.requires_grad_(True)
                scores = view(transformed(images, pixels, mask, places, angle, scale)).float()
                (gradient,) = torch.autograd.grad(F.cross_entropy(scores, labels, reduction="sum"), pixels)
            pixels = (pixels.detach() + self.step * gradient.sign()).clamp_(0, 1)
        net.train(was_training)
        return paste(images, pixels, mask, sample_places(self.place, count, shape, self.size, generator))
