"""EAD (Chen et al. 2018): C&W with the elastic net β·L1 + L2², by proximal steps that leave most pixels alone. Run by ART.

torchattacks 3.3.0 has none.
"""

from __future__ import annotations

import torch
from art.attacks.evasion import ElasticNet
from torch import Tensor, nn

from qpatch.attacks.pixel.base import BATCH, PixelAttack, logit_classifier


def ead(net: nn.Module, images: Tensor, labels: Tensor, *, steps: int, binary_steps: int, initial_const: float, lr: float,
        beta: float, rule: str) -> Tensor:  # fmt: skip
    """`binary_steps` constants, `steps` proximal steps each; the success with the smallest `rule` ("EN") is kept."""
    attack = ElasticNet(logit_classifier(net, images), learning_rate=lr, binary_search_steps=binary_steps, max_iter=steps,
                        beta=beta, initial_const=initial_const, decision_rule=rule, batch_size=BATCH, verbose=False)  # fmt: skip
    return torch.from_numpy(attack.generate(images.cpu().numpy(), labels.cpu().numpy()))


ATTACK = PixelAttack("EAD", "EAD", "L1", "gradient", "gradients", "ART", ead)
