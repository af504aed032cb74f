"""JSMA (Papernot et al. 2016): raise the two values that help the target class most, again and again. Run by ART.

torchattacks has none. The target class is drawn at random, one for all images of a predicted class, as paper C's script
leaves it to ART.
"""

from __future__ import annotations

import torch
from art.attacks.evasion import SaliencyMapMethod
from torch import Tensor, nn

from qpatch.attacks.pixel.base import BATCH, PixelAttack, logit_classifier


def jsma(net: nn.Module, images: Tensor, labels: Tensor, *, theta: float, gamma: float) -> Tensor:
    """Two values rise by `theta` per step, until the target is shown or the share `gamma` of all values has changed."""
    attack = SaliencyMapMethod(logit_classifier(net, images), theta=theta, gamma=gamma, batch_size=BATCH, verbose=False)
    return torch.from_numpy(attack.generate(images.cpu().numpy()))


ATTACK = PixelAttack("JSMA", "JSMA", "L0", "gradient", "gradients", "ART", jsma)
