"""C&W L2 (Carlini & Wagner 2017): least squares and a margin, weighted by a constant that is searched. Run by ART.

ART's searches the step along a line, which is why ten steps are enough; torchattacks' follows the original with Adam
and a single constant, so paper C's parameters mean something else there.
"""

from __future__ import annotations

import torch
from art.attacks.evasion import CarliniL2Method
from torch import Tensor, nn

from qpatch.attacks.pixel.base import BATCH, PixelAttack, logit_classifier


def cw_l2(net: nn.Module, images: Tensor, labels: Tensor, *, steps: int, binary_steps: int, initial_const: float, lr: float,
          confidence: float) -> Tensor:  # fmt: skip
    """`binary_steps` constants, `steps` descent steps each; the successful image with the smallest L2 is kept."""
    attack = CarliniL2Method(logit_classifier(net, images), confidence, learning_rate=lr, max_iter=steps,
                             binary_search_steps=binary_steps, initial_const=initial_const, batch_size=BATCH, verbose=False)  # fmt: skip
    return torch.from_numpy(attack.generate(images.cpu().numpy(), labels.cpu().numpy()))


ATTACK = PixelAttack("CW-L2", "C&W", "L2", "gradient", "gradients", "ART", cw_l2)
