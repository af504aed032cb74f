"""GAP: the Google adversarial patch, robust to place, rotation and scale (Brown et al. 2017)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qpatch.attacks.base import PatchAttack
from qpatch.attacks.patch import paste
from qpatch.errors import ParameterError


class GAP(PatchAttack):
    """Adversarial patch by expectation over transformations (Brown et al. 2017, arXiv 1712.09665).

        P = argmax E_{x, place, rotation, scale} [ log p(goal | A(P, x, place, rotation, scale)) ]

    The goal is the target class, log p(goal) = log p_target, or without a target to leave the true class, for which
    the cross entropy −log p_true is maximised as is customary. (The literal log p(goal) = log(1 − p_true) makes
    weaker patches: it hardly has a gradient where the network is unsure.) Every image of a batch gets its own draw of
    the transformation at each step. The finished patch is applied plain; `transformed` applies it as in training.

    Distance measure: L0 (pixels outside the patch do not change).

    Args (beyond PatchAttack's):
        rotation: largest angle in degrees, to either side.
        scale: smallest and largest scale, relative to the patch size. Area budgets count the patch at scale 1.

    Shapes: images (N, C, H, W) in [0, 1], labels (N,) → images (N, C, H, W) in [0, 1]; `fit` → Patch.

    Example:
        >>> attack = GAP(net.at(32), patch_size=6, target=3, steps=500)
        >>> patch = attack.fit(images, labels)
    """

    def __init__(
        self,
        net: nn.Module,
        patch_size: int | tuple[int, int] = 6,
        *,
        rotation: float = 22.5,
        scale: tuple[float, float] = (0.9, 1.1),
        **options,
    ) -> None:
        super().__init__(net, patch_size, **options)
        if not 0 <= rotation <= 180:
            raise ParameterError(f"rotation must lie between 0 and 180 degrees, got {rotation!r}.")
        if len(scale) != 2 or not 0 < scale[0] <= scale[1]:
            raise ParameterError(f"scale must be (smallest, largest) with 0 < smallest ≤ largest, got {scale!r}.")
        self.rotation, self.scale = float(rotation), (float(scale[0]), float(scale[1]))

    def objective(self, scores: Tensor, labels: Tensor, universal: bool) -> Tensor:
        if self.target is not None:
            return F.cross_entropy(scores, torch.full_like(labels, self.target), reduction="none")
        return -F.cross_entropy(scores, labels, reduction="none")

    def render(self, images: Tensor, pixels: Tensor, places: Tensor, generator: torch.Generator) -> Tensor:
        if self.rotation == 0 and self.scale == (1, 1):
            return paste(images, pixels, self.mask, places)
        uniform = torch.rand(2, len(images), generator=generator)
        angle = (2 * uniform[0] - 1) * math.radians(self.rotation)
        scale = self.scale[0] + (self.scale[1] - self.scale[0]) * uniform[1]
        return transformed(images, pixels, self.mask, places, angle, scale)

    def made_on(self) -> dict:
        return super().made_on() | {"rotation": self.rotation, "scale": list(self.scale)}


def transformed(images: Tensor, pixels: Tensor, mask: Tensor, places: Tensor, angle: Tensor, scale: Tensor) -> Tensor:
    """Paste patches that are rotated and scaled about their centre, bilinearly interpolated.

    A corner that leaves the image is cut off. With angle 0 and scale 1 the result equals `paste`.

    Args:
        images: (N, C, H, W); not changed.
        pixels: (C, h, w) or (N, C, h, w). mask: (1, h, w).
        places: int64 (N, 2), top-left corner of the patch before it is rotated and scaled.
        angle: radians (N,), counter-clockwise. scale: (N,).

    Returns:
        Images (N, C, H, W), differentiable in the pixels.
    """
    device, (n, _, height, width), (h, w) = images.device, images.shape, pixels.shape[-2:]
    mask, places, angle, scale = (t.to(device) for t in (mask, places, angle, scale))
    # A window around each patch, pushed back into the image where it would leave it.
    reach = math.ceil(math.hypot(h, w) * float(scale.max())) + 2
    side = torch.tensor([min(reach, height), min(reach, width)], device=device)
    size = torch.tensor([h, w], device=device)
    limit = torch.tensor([height, width], device=device) - side
    corner = torch.minimum((places + (size - side) // 2).clamp(min=0), limit)
    # Where in the patch does each window pixel come from? Offsets from the patch's centre, turned back and unscaled.
    centre = (corner - places).float() - (size - 1) / 2  # of the window's first pixel, (N, 2)
    y = centre[:, :1] + torch.arange(side[0], device=device)
    x = centre[:, 1:] + torch.arange(side[1], device=device)
    cos, sin = (angle.cos() / scale)[:, None, None], (angle.sin() / scale)[:, None, None]
    source_x = cos * x[:, None, :] - sin * y[:, :, None]
    source_y = sin * x[:, None, :] + cos * y[:, :, None]
    grid = torch.stack([source_x * (2 / w), source_y * (2 / h)], dim=-1)
    # Colours premultiplied with the mask: bilinear edges then mix patch and image without a dark seam.
    layers = torch.cat([pixels * mask, mask.expand(*pixels.shape[:-3], 1, h, w)], dim=-3).expand(n, -1, -1, -1)
    layers = F.grid_sample(layers, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    colour, cover = layers[:, :-1], layers[:, -1:].clamp(max=1)
    rows = (corner[:, :1] + torch.arange(side[0], device=device))[:, :, None]
    columns = (corner[:, 1:] + torch.arange(side[1], device=device))[:, None, :]
    sample = torch.arange(n, device=device)[:, None, None]
    patched = images.clone()
    window = patched[sample, :, rows, columns].permute(0, 3, 1, 2)
    patched[sample, :, rows, columns] = (window * (1 - cover) + colour).permute(0, 2, 3, 1)
    return patched
