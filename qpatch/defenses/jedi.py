"""Jedi (Tarchoun et al. 2023): find the patch by its entropy, and paint over it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from skimage.filters.rank import entropy
from skimage.restoration import inpaint_biharmonic
from torch import Tensor

from qpatch.attacks.equiluminant import LUMA
from qpatch.checks import check_images
from qpatch.defenses.mask_completion import MaskCompletion
from qpatch.errors import InputError, ParameterError, one_of

RULES = ("image", "clean")
_IN_IMAGE = np.array([np.zeros((3, 3)), np.ones((3, 3)), np.zeros((3, 3))])  # pixels of different images do not touch


@dataclass(frozen=True, eq=False)
class Jedi:
    """Local entropy above a threshold → small clusters away → mask completed to a patch's shape → inpainting.

    A pixel is suspicious if the entropy of some window around it exceeds, with μ and σ of clean training images,

        "image"   μ + (w_tolerance + w_image) σ   (equation 1; w_image = (mean entropy of this image − μ) / σ)
        "clean"   μ + w_tolerance σ               (the same for every image)

    Attackers who know it: `Defended(net, jedi)` lets gradients pass straight through, and `qpatch.attacks.Equiluminant`
    makes patches that have no entropy.

    Scaled to 32×32 pixels: windows of 3 to 7 pixels (there 9, 13, 17 on 224), moved by one pixel (there half a window),
    and few grey levels: among 256 hardly two of a window's 9 or 25 pixels are equal, so its entropy would be that of
    its size. Inpainting is biharmonic (there coherence transport, which scikit-image does not have).

    Attributes:
        mean, std: μ and σ of the windows' entropies over clean images, in bits, one per window; see `fitted`.
        windows: odd sides of the windows in pixels.
        levels: grey levels of which entropy is taken, 2 to 256.
        tolerance: w_tolerance.
        rule: "image" or "clean".
        least: smallest cluster that is kept, in pixels (the released code: 0.5 % of the image).
        completion: the autoencoder of the second step; None leaves it out.

    Raises:
        ParameterError: a malformed setting.
        InputError (on call): malformed images, or images without three colours.

    Source:
        Tarchoun, Ben Khalifa, Mahjoub, Abu-Ghazaleh, Alouani 2023, "Jedi: Entropy-based localization and removal of
        adversarial patches", CVPR, and its released MATLAB code.

    Example:
        >>> jedi = Jedi.fitted(training_images, completion=train_completion())
        >>> found, cleaned = jedi.mask(images), jedi(images)   # bool (N, H, W), float32 (N, 3, H, W) in [0, 1]
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    windows: tuple[int, ...] = (3,)
    levels: int = 8
    tolerance: float = 1.5
    rule: str = "image"
    least: int = 6
    completion: MaskCompletion | None = None

    def __post_init__(self):
        one_of(self.rule, RULES, "threshold rule")
        if not self.windows or any(window < 3 or window % 2 == 0 for window in self.windows):
            raise ParameterError(f"windows are odd numbers of pixels from 3 on, got {self.windows}.")
        if not len(self.mean) == len(self.std) == len(self.windows):
            raise ParameterError(f"mean and std need one number per window, got {len(self.mean)} and {len(self.std)}.")
        if not 2 <= self.levels <= 256 or self.least < 1:
            raise ParameterError(f"levels lie from 2 to 256 and least from 1 on, got {self.levels} and {self.least}.")

    @classmethod
    def fitted(cls, images: Tensor, windows: Sequence[int] = (3,), levels: int = 8, **options) -> Jedi:
        """With μ and σ of these clean training images, float32 (N, 3, H, W) in [0, 1]; options as for the class."""
        maps = entropy_maps(images, windows, levels)
        mean, std = (tuple(values.tolist()) for values in (maps.mean((1, 2, 3)), maps.std((1, 2, 3))))
        return cls(mean, std, tuple(windows), levels, **options)

    def suspicious(self, images: Tensor) -> Tensor:
        """Where the entropy is too high, small clusters left out: bool (N, H, W)."""
        maps = entropy_maps(images, self.windows, self.levels)
        mean, std = (torch.tensor(values).view(-1, 1, 1, 1) for values in (self.mean, self.std))
        base = maps.mean((2, 3), keepdim=True) if self.rule == "image" else mean
        return without_small((maps > base + self.tolerance * std).any(dim=0), self.least)

    def mask(self, images: Tensor) -> Tensor:
        """Where the patch is thought to be: bool (N, H, W), on the images' device."""
        found = self.suspicious(images)
        return (found if self.completion is None else self.completion.complete(found)).to(images.device)

    def __call__(self, images: Tensor) -> Tensor:
        return inpaint(images, self.mask(images))


def entropy_maps(images: Tensor, windows: Sequence[int], levels: int) -> Tensor:
    """Shannon entropy of the grey levels in a window around every pixel, in bits; borders are mirrored.

    Args:
        images: float32 (N, 3, H, W) in [0, 1].
        windows: odd sides in pixels.
        levels: number of grey levels, equally wide.

    Returns:
        float32 (windows, N, H, W), each from 0 to log₂ min(levels, window²).
    """
    check_images(images)
    if images.shape[1] != 3:
        raise InputError(f"Jedi takes colour images (N, 3, H, W), got {tuple(images.shape)}.")
    grey = (images.detach().cpu() * torch.tensor(LUMA).view(1, 3, 1, 1)).sum(1)
    codes = (grey * levels).floor().clamp(0, levels - 1).byte().numpy()
    maps = []
    for window in windows:
        reach = window // 2
        padded = np.pad(codes, ((0, 0), (reach, reach), (reach, reach)), mode="symmetric")
        local = entropy(padded, np.ones((1, window, window), np.uint8))  # all images at once, as slices of a volume
        maps.append(torch.from_numpy(local[:, reach:-reach, reach:-reach].astype(np.float32)))
    return torch.stack(maps)


def without_small(masks: Tensor, least: int) -> Tensor:
    """The masks without clusters (pixels that touch by side or corner) of fewer than `least` pixels: bool (N, H, W)."""
    labels, _ = ndimage.label(masks.cpu().numpy(), _IN_IMAGE)
    kept = np.bincount(labels.ravel()) >= least
    kept[0] = False
    return torch.from_numpy(kept[labels])


def inpaint(images: Tensor, masks: Tensor) -> Tensor:
    """Each image with its masked pixels replaced by the smoothest continuation of the others (biharmonic equation).

    Args:
        images: float32 (N, C, H, W) in [0, 1].
        masks: bool (N, H, W). An image that is masked completely becomes mid-grey.

    Returns:
        float32 (N, C, H, W) in [0, 1]; pixels outside of the mask as they were.
    """
    painted = images.detach().clone()
    for number in masks.flatten(1).any(1).nonzero()[:, 0].tolist():
        mask = masks[number]
        if bool(mask.all()):
            painted[number] = 0.5
            continue
        pixels = images[number].detach().cpu().double().permute(1, 2, 0).numpy()
        filled = torch.from_numpy(inpaint_biharmonic(pixels, mask.cpu().numpy(), channel_axis=-1)).permute(2, 0, 1)
        painted[number] = torch.where(mask, filled.to(painted).clamp(0, 1), painted[number])
    return painted
