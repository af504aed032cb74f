"""ZOO (Chen et al. 2017): C&W with gradients estimated from differences of scores, a few coordinates at a time. Run by ART.

torchattacks has none. ART passes every batch through a spline zoom of factor one, which takes longer than the network;
it is left out here, and nothing else is changed. Two peculiarities of ART stay, as in paper C's runs: the noise itself
is clipped to [0, 1], so that the attack only brightens, and every step adds the whole noise so far once more.
"""

from __future__ import annotations

import numpy as np
import torch
from art.attacks.evasion import ZooAttack
from torch import Tensor, nn

from qpatch.attacks.pixel.base import BATCH, PixelAttack, query_classifier


class _Zoo(ZooAttack):
    """ART's ZOO for images that keep their size."""

    def _loss(self, x, x_adv, target, c_weight):
        distance = np.square(x - x_adv).reshape(len(x_adv), -1).sum(1)
        scores = self.estimator.predict(x_adv, batch_size=2 * self.nb_parallel)
        other = np.where(target == 1, -np.inf, scores).max(1)
        margin = np.maximum((scores * target).sum(1) - other + self.confidence, 0)
        return scores, distance, c_weight * margin + distance


def zoo(net: nn.Module, images: Tensor, labels: Tensor, *, steps: int, binary_steps: int, initial_const: float, h: float,
        coordinates: int, lr: float) -> Tensor:  # fmt: skip
    """Central differences of step `h` on random `coordinates`, Adam, and a search of the constant in `binary_steps`."""
    attack = _Zoo(query_classifier(net, images), learning_rate=lr, max_iter=steps, binary_search_steps=binary_steps,
                  initial_const=initial_const, use_resize=False, use_importance=False, nb_parallel=coordinates,
                  batch_size=1, variable_h=h, verbose=False)  # fmt: skip
    return torch.from_numpy(attack.generate(images.cpu().numpy(), labels.cpu().numpy()))


ATTACK = PixelAttack("ZOO", "ZOO", "L2", "query", "scores", "ART", zoo, one_by_one=True)
