"""PGD (Madry et al. 2018) in L∞ with restarts, run by torchattacks.

Paper C runs ART's, which repeats all restarts on all images. An image that one restart has fooled needs no other, so
here only the others go on: the adversarial accuracy is the same. An image that no restart fools keeps the noise of the
first one, as in ART, because that noise may still fool a quantized network.
"""

from __future__ import annotations

import torch
import torchattacks
from torch import Tensor, nn

from qpatch.attacks.pixel.base import Anchored, PixelAttack


def pgd(net: nn.Module, images: Tensor, labels: Tensor, *, eps: float, step_share: float, steps: int, restarts: int) -> Tensor:
    """At most `restarts` runs of `steps` sign steps of length step_share · eps, each from a random start."""
    model = Anchored(net, images.device)
    attack = torchattacks.PGD(model, eps=eps, alpha=step_share * eps, steps=steps)
    found, alive = images.clone(), torch.arange(len(images), device=images.device)
    for restart in range(restarts):
        tried = attack(images[alive], labels[alive])
        with torch.no_grad():
            fooled = model(tried).argmax(dim=1) != labels[alive]
        taken = fooled if restart else torch.ones_like(fooled)
        found[alive[taken]] = tried[taken]
        alive = alive[~fooled]
        if len(alive) == 0:
            break
    return found


ATTACK = PixelAttack("PGD", "PGD", "Linf", "gradient", "gradients", "torchattacks", pgd)
