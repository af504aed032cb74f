"""LaVAN: localized and visible adversarial noise (Karmon, Zoran, Goldberg 2018)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qpatch.attacks.base import PatchAttack
from qpatch.errors import ParameterError


class LaVAN(PatchAttack):
    """Localized and visible adversarial noise (Karmon et al. 2018, arXiv 1801.02608).

    Descends on a difference of scores before softmax, M(x) = scores:

        targeted      M_source − M_target, source = the highest class other than the target
        untargeted    M_true − M_source,   source = the highest class other than the true one

    so the objective is below zero exactly where the attack succeeds. The patch is pasted as it is, without rotation
    or scaling, and clipped to [0, 1] (the paper's "image domain"; its unbounded "network domain" is not a picture).

    Distance measure: L0 (pixels outside the patch do not change).

    Args (beyond PatchAttack's):
        confidence: `fit` stops rewarding an image once its margin passes this many score units, so that images which
            are fooled by far do not dominate the mean over the batch. None lifts the limit. Image-specific attacks do
            not need it: there each image has its own patch.
        stop_at: an image-specific patch is finished at this probability of success (the paper: 0.9). None optimises
            to the end.

    Shapes: images (N, C, H, W) in [0, 1], labels (N,) → images (N, C, H, W) in [0, 1]; `fit` → Patch.

    Example:
        >>> attack = LaVAN(net.at(32), patch_size=6, place="corner", steps=200)
        >>> adversarial = attack(images, labels)
        >>> patch = attack.fit(images, labels)
    """

    resample = False

    def __init__(
        self,
        net: nn.Module,
        patch_size: int | tuple[int, int] = 6,
        *,
        confidence: float | None = 5.0,
        stop_at: float | None = None,
        **options,
    ) -> None:
        super().__init__(net, patch_size, **options)
        if confidence is not None and not confidence > 0:
            raise ParameterError(f"confidence must be positive or None, got {confidence!r}.")
        self.confidence = math.inf if confidence is None else confidence
        self.stop_at = stop_at

    def objective(self, scores: Tensor, labels: Tensor, universal: bool) -> Tensor:
        anchor = labels if self.target is None else torch.full_like(labels, self.target)
        others = scores.masked_fill(F.one_hot(anchor, scores.shape[1]).bool(), -math.inf)
        margin = scores.gather(1, anchor[:, None])[:, 0] - others.amax(dim=1)
        loss = margin if self.target is None else -margin
        return loss.clamp(min=-self.confidence) if universal else loss

    def made_on(self) -> dict:
        confidence = None if math.isinf(self.confidence) else self.confidence
        return super().made_on() | {"confidence": confidence}
