"""DeepFool (Moosavi-Dezfooli et al. 2016): step to the nearest boundary of the linearised network. Run by ART.

ART's has paper C's overshoot and takes the gradients of all classes; torchattacks' leaves the image as soon as it is
fooled and has no upper number of classes. An image that is misclassified when clean is pushed out of its wrong class.
"""

from __future__ import annotations

import torch
from art.attacks.evasion import DeepFool
from torch import Tensor, nn

from qpatch.attacks.pixel.base import BATCH, PixelAttack, logit_classifier


def deepfool(net: nn.Module, images: Tensor, labels: Tensor, *, overshoot: float, steps: int) -> Tensor:
    """At most `steps` steps; the total is then made longer by the share `overshoot`. The labels are not used."""
    net = logit_classifier(net, images)
    attack = DeepFool(net, max_iter=steps, epsilon=overshoot, nb_grads=net.nb_classes, batch_size=BATCH, verbose=False)
    return torch.from_numpy(attack.generate(images.cpu().numpy()))


ATTACK = PixelAttack("DeepFool", "DeepFool", "L2", "gradient", "gradients", "ART", deepfool)
