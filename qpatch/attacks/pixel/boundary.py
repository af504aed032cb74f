"""Boundary (Brendel et al. 2018): walk along the decision boundary towards the image, seeing labels only. Run by ART.

torchattacks has none. ART starts from a random image that it draws from an unseeded generator; here the start is drawn
in the same way from the seed. Where no random image is adversarial the attack gives up, as in ART.
"""

from __future__ import annotations

import numpy as np
import torch
from art.attacks.evasion import BoundaryAttack
from torch import Tensor, nn

from qpatch.attacks.pixel.base import BATCH, PixelAttack, query_classifier


def boundary(net: nn.Module, images: Tensor, labels: Tensor, *, delta: float, epsilon: float, steps: int, trials: int,
             samples: int, init_tries: int) -> Tensor:  # fmt: skip
    """`steps` steps along the sphere (`delta`) and towards the image (`epsilon`), with at most `trials` tries each."""
    classifier = query_classifier(net, images)
    attack = BoundaryAttack(classifier, batch_size=BATCH, targeted=False, delta=delta, epsilon=epsilon, max_iter=steps,
                            num_trial=trials, sample_size=samples, init_size=1, verbose=False)  # fmt: skip
    found = images.cpu().numpy().copy()
    for number, image in enumerate(found):
        start = _start(classifier, image, init_tries)
        if start is not None:
            found[number] = attack.generate(image[None], x_adv_init=start[None])[0]
    return torch.from_numpy(found)


def _start(classifier, image: np.ndarray, tries: int) -> np.ndarray | None:
    """The first of some uniformly random images that is not of the class that the network gives to `image`."""
    drawn = np.random.uniform(0, 1, (tries, *image.shape)).astype(np.float32)
    own = classifier.predict(image[None]).argmax()
    for start in drawn:
        if classifier.predict(start[None]).argmax() != own:
            return start
    return None


ATTACK = PixelAttack("Boundary", "Boundary", "L2", "query", "labels", "ART", boundary, one_by_one=True)
