"""Square for small inputs and for features that are no pixels, on which every place counts.

ART draws a square's place from 0 to H − s − 1 and W − s − 1, so the last row and column never get one. On a picture that
is one row of pixels in thirty; of a table of 3×10 features it is a third of them. Here the input gets one more row and
column, which the network never sees: then every place is drawn, all with equal probability.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from qpatch.attacks.pixel import attack


class Bordered(nn.Module):
    """A network that does not see the last row and column of its input."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net
        self.train(net.training)

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images[..., :-1, :-1])


def square(net: nn.Module, images: Tensor, labels: Tensor, *, eps: float, queries: int, seed: int = 0) -> Tensor:
    """Square (Andriushchenko et al. 2020) in L∞, run by ART, over all rows and columns.

    Args:
        net: in eval mode; probabilities (N, classes).
        images: float32 (N, C, H, W) in [0, 1], of any size; not changed.
        labels: int64 (N,).
        eps: largest change of a value.
        queries: most squares per image; the share of values in one starts at 0.05, as in paper C, and falls.
        seed: fixes all random draws.

    Returns:
        Adversarial images, float32 in [0, 1].

    Raises:
        InputError: train mode, malformed images or labels, or logits where probabilities are needed.
    """
    wide = F.pad(images, (0, 1, 0, 1))
    made = attack("Square-Linf", Bordered(net), wide, labels, seed=seed, eps=eps, steps=queries)
    return made[..., :-1, :-1].contiguous()
