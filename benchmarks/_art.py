"""ART's universal patch (AdversarialPatchPyTorch), with the transformations that our GAP draws."""

from __future__ import annotations

import numpy as np
import torch
from art.attacks.evasion import AdversarialPatchPyTorch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

from qpatch.attacks import Patch, make_mask

ROTATION, SCALE = 22.5, (0.9, 1.1)  # degrees, and relative to the patch: the defaults of GAP


def art_patch(
    net: nn.Module, images: Tensor, labels: Tensor, *, size: int, epochs: int, batch: int, rate: float = 5 / 255,
    target: int | None = None, seed: int = 0,
) -> Patch:  # fmt: skip
    """A square patch made by ART with Adam.

    Args:
        epochs: passes over the images; ART counts these, not steps.
        rate: step size; the default is ART's own, five grey levels.
        target: the class to show, or None for an untargeted patch.
    """
    torch.manual_seed(seed)
    np.random.seed(seed)  # ART draws its transformations from the global generators
    classes = net(images[:1]).shape[1]
    estimator = PyTorchClassifier(
        net, nn.CrossEntropyLoss(), tuple(images.shape[1:]), classes, clip_values=(0, 1), device_type="cpu")
    share = size / images.shape[-1]  # ART's scale is relative to the image
    attack = AdversarialPatchPyTorch(
        estimator, rotation_max=ROTATION, scale_min=SCALE[0] * share, scale_max=SCALE[1] * share, learning_rate=rate,
        max_iter=epochs, batch_size=batch, patch_shape=(images.shape[1], size, size), patch_type="square",
        optimizer="Adam", targeted=target is not None, verbose=False,
    )  # fmt: skip
    wanted = labels if target is None else torch.full_like(labels, target)
    pixels, _ = attack.generate(images.numpy(), np.eye(classes, dtype=np.float32)[wanted.numpy()])
    pixels = torch.from_numpy(np.asarray(pixels, dtype=np.float32)).clamp(0, 1)
    return Patch(pixels, make_mask("square", size), target).rounded()
