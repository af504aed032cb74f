"""AutoAttack (Croce & Hein 2020) in L∞, run by torchattacks: four attacks, each on the images that the others left.

torchattacks' own AutoAttack makes 10 steps where the published one makes 100, so the four parts are put together here.
An image that none of them fools stays clean, as in the authors' program.
"""

from __future__ import annotations

import torch
import torchattacks
from torch import Tensor, nn

from qpatch.attacks.pixel.base import Anchored, PixelAttack
from qpatch.errors import one_of


def autoattack(net: nn.Module, images: Tensor, labels: Tensor, *, eps: float, parts: list[str], steps: int, queries: int) -> Tensor:
    """The named `parts` in turn, all with bound `eps`; "apgd-t" needs at least four classes."""
    model = Anchored(net, images.device)
    with torch.no_grad():
        classes = model(images[:1]).shape[1]
    shared = {"eps": eps, "norm": "Linf", "seed": int(torch.randint(2**31, ()))}
    makers = {
        "apgd-ce": lambda: torchattacks.APGD(model, steps=steps, loss="ce", **shared),
        "apgd-t": lambda: torchattacks.APGDT(model, steps=steps, n_classes=classes, **shared),
        "fab-t": lambda: torchattacks.FAB(model, steps=steps, multi_targeted=True, n_classes=classes, **shared),
        "square": lambda: torchattacks.Square(model, n_queries=queries, **shared),
    }
    attacks = [makers[one_of(part, makers, "part of AutoAttack")]() for part in parts]
    found, alive = images.clone(), torch.arange(len(images), device=images.device)
    for attack in attacks:
        tried = attack(images[alive], labels[alive])
        with torch.no_grad():
            fooled = model(tried).argmax(dim=1) != labels[alive]
        found[alive[fooled]] = tried[fooled]
        alive = alive[~fooled]
        if len(alive) == 0:
            break
    return found


ATTACK = PixelAttack("AutoAttack", "AutoAttack", "Linf", "gradient", "gradients", "torchattacks", autoattack)
