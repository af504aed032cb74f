"""What input defenses share: a defended network is a network, with a gradient for the attacker who knows the defense."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from qpatch.checks import check_images
from qpatch.errors import ParameterError

InputDefense = Callable[[Tensor], Tensor]
"""Images (N, C, H, W) in [0, 1] → cleaned images of the same form; the labels are not known to it."""


class _Instead(torch.autograd.Function):
    """Forward the defended images, backward the gradient as if they were the approximation."""

    @staticmethod
    def forward(context, approximation: Tensor, defended: Tensor) -> Tensor:
        return defended.clone()

    @staticmethod
    def backward(context, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class Defended(nn.Module):
    """net(defense(x)), for attacks and tables as any other network.

    The defense is given what the network would have received: an integer network brings images to its own input
    lattice first, and a microcontroller can only clean what it has.

    The gradient is BPDA's (Athalye et al. 2018, section 4.1): forward the defense D itself, backward a differentiable
    g in its place, ∂ net(D(x)) / ∂x := ∂ net(z) / ∂z · ∂g / ∂x at z = D(x). g is `defense.approximation` where there
    is one, else the identity. So an adaptive attacker needs no more than `torchattacks.PGD(Defended(net, defense))`.

    Args:
        net: classifier of images in [0, 1].
        defense: see `InputDefense`; deterministic ones give a deterministic network.

    Raises:
        ParameterError: the defense is not callable.
        InputError (on call): malformed images.

    Example:
        >>> logits = Defended(net, JPEG(quality=75))(images)
    """

    def __init__(self, net: nn.Module, defense: InputDefense):
        super().__init__()
        if not callable(defense):
            raise ParameterError(f"a defense is called with images, but {type(defense).__name__} cannot be called.")
        self.net, self.defense = net, defense
        self.train(net.training)

    def received(self, images: Tensor) -> Tensor:
        """What the network behind the defense gets, without gradient: float32 (N, C, H, W) in [0, 1]."""
        check_images(images)
        with torch.no_grad():
            seen = self.net.received(images) if hasattr(self.net, "received") else images
            return self.defense(seen.detach().clamp(0, 1))

    def forward(self, images: Tensor) -> Tensor:
        """What the network says of the cleaned images: (N, classes)."""
        approximation = getattr(self.defense, "approximation", lambda x: x)
        return self.net(_Instead.apply(approximation(images), self.received(images)))
