"""Square (Andriushchenko et al. 2020): random squares, kept where they lower the margin. Two variants, both run by ART.

Within a batch ART draws one place and one colour per step for all images. torchattacks draws them per image, but paper C
ran ART's.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from art.attacks.evasion import SquareAttack
from torch import Tensor, nn

from qpatch.attacks.pixel.base import BATCH, PixelAttack, query_classifier


def square(net: nn.Module, images: Tensor, labels: Tensor, *, norm: float, eps: float, steps: int, p_init: float) -> Tensor:
    """At most `steps` squares of a size that falls from the share `p_init` of the image, within `eps` in `norm`."""
    attack = SquareAttack(query_classifier(net, images), norm=norm, max_iter=steps, eps=eps, p_init=p_init,
                          batch_size=BATCH, verbose=False)  # fmt: skip
    with np.errstate(divide="ignore", invalid="ignore"):  # where no noise is left to move; ART rejects the result
        return torch.from_numpy(attack.generate(images.cpu().numpy(), labels.cpu().numpy()))


L2 = PixelAttack("Square-L2", "Square", "L2", "query", "scores", "ART", partial(square, norm=2))
LINF = PixelAttack("Square-Linf", "Square", "Linf", "query", "scores", "ART", partial(square, norm=np.inf))
