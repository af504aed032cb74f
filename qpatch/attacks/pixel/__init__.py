"""The ten pixel attacks of *David and Goliath* in twelve variants, with the parameters of its run scripts.

`attack("DeepFool", net, images, labels, task="cifar10")` returns adversarial images. Gradient attacks take a network
that gives logits (a float one, or `tflite.twin` of an integer one); query attacks take one that gives probabilities
(`Probabilities(float net)`, or `tflite.network`), count its queries and never see a gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qpatch.attacks.base import frozen
from qpatch.attacks.pixel import autoattack, boundary, cw_l2, cw_linf, deepfool, ead, geoda, jsma, pgd, square, zoo
from qpatch.attacks.pixel.base import BATCH, PixelAttack, Probabilities, seeded
from qpatch.attacks.pixel.published import TASKS, published, published_table
from qpatch.checks import check_eval, check_images, check_labels
from qpatch.errors import InputError, one_of

ATTACKS: dict[str, PixelAttack] = {
    found.name: found
    for found in (pgd.ATTACK, deepfool.ATTACK, jsma.ATTACK, cw_l2.ATTACK, cw_linf.ATTACK, ead.ATTACK, autoattack.ATTACK,
                  zoo.ATTACK, square.L2, square.LINF, boundary.ATTACK, geoda.ATTACK)  # fmt: skip
}

ANY_SIZE = ("PGD", "Square-Linf")  # for the latter on a few rows of features see `qpatch.attacks.pixel.small`

__all__ = ["ANY_SIZE", "ATTACKS", "BATCH", "TASKS", "PixelAttack", "Probabilities", "attack", "published", "published_table", "seeded"]


def attack(
    name: str, net: nn.Module, images: Tensor, labels: Tensor, task: str = "cifar10", *, seed: int = 0, **overrides
) -> Tensor:
    """Attack every image, right or wrong when clean, with paper C's parameters for the task.

    The images go in batches of `BATCH`, or one by one where the library does so; batch and image k start from
    seed + k. So a run in parts is equal to a run in one go, as long as the parts are multiples of the batch.

    Args:
        name: one of `ATTACKS`.
        net: in eval mode; logits for a gradient attack, probabilities for a query attack. It stays as it is.
        images: float32 (N, C, H, W) in [0, 1]; not changed.
        labels: int64 (N,).
        task: "cifar10", "vww" or "coffee": whose parameters to take.
        seed: fixes all random draws; the global generators of numpy, Python and torch get their states back.
        overrides: parameters in place of the published ones.

    Returns:
        Adversarial images, float32 in [0, 1], on the device of `images`. Nothing is rounded.

    Raises:
        ParameterError: unknown attack, task or parameter.
        InputError: train mode, malformed images or labels, logits where probabilities are needed or no gradient.
    """
    chosen = ATTACKS[one_of(name, ATTACKS, "attack")]
    parameters = published(name, task, **overrides)
    check_eval(net)
    check_images(images, net)
    check_labels(labels, len(images))
    if min(images.shape[-2:]) < 8 and name not in ANY_SIZE:
        raise InputError(f"{name} needs images of at least 8×8 pixels, got {tuple(images.shape[-2:])}.")
    size, made = 1 if chosen.one_by_one else BATCH, []
    with frozen(net):
        for first in range(0, len(images), size):
            part = slice(first, first + size)
            with seeded(seed + first):
                made.append(chosen.run(net, images[part].clone(), labels[part].to(images.device), **parameters))
    return torch.cat(made).to(images.device, torch.float32).clamp_(0, 1).detach()
