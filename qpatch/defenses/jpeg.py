"""JPEG compression (Dziugaite et al. 2016): a lossy code for what people see may lose what only networks see."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from qpatch.checks import check_images
from qpatch.errors import InputError, ParameterError, one_of

SUBSAMPLING = ("4:4:4", "4:2:2", "4:2:0")


@dataclass(frozen=True)
class JPEG:
    """Each image through a JPEG file and back: x ↦ D⁻¹(s · round(D(x) / s)), D the blockwise cosine transform.

    David and Goliath's code holds no JPEG: its summary counts three input defenses, its code two. This is our third.

    Args:
        quality: of PIL, 1 to 95: the quantization table s is the finer the higher. 75 is PIL's and the source's own.
        subsampling: of the two colour channels: "4:4:4" keeps them whole, "4:2:0" halves both sides.

    Raises:
        ParameterError: a quality outside 1 to 95, or another subsampling.
        InputError (on call): malformed images, or images without three colours.

    Source:
        Dziugaite, Ghahramani, Roy 2016, "A study of the effect of JPG compression on adversarial images".

    Example:
        >>> cleaned = JPEG(quality=75)(images)   # float32 (N, 3, H, W) in [0, 1], on the 8-bit lattice
    """

    on_bytes: ClassVar[bool] = True
    """All that counts of an image is its bytes."""

    quality: int = 75
    subsampling: str = "4:2:0"

    def __post_init__(self):
        if not isinstance(self.quality, int) or not 1 <= self.quality <= 95:
            raise ParameterError(f"the JPEG quality is an int from 1 to 95, got {self.quality!r}.")
        one_of(self.subsampling, SUBSAMPLING, "JPEG subsampling")

    def __call__(self, images: Tensor) -> Tensor:
        check_images(images)
        if images.shape[1] != 3:
            raise InputError(f"JPEG takes colour images (N, 3, H, W), got {tuple(images.shape)}.")
        pixels = (images * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
        decoded = np.stack([self._round_trip(picture) for picture in pixels])
        return torch.from_numpy(decoded).permute(0, 3, 1, 2).contiguous().float().div_(255).to(images.device)

    def _round_trip(self, picture: np.ndarray) -> np.ndarray:
        with io.BytesIO() as file:
            Image.fromarray(picture).save(file, "JPEG", quality=self.quality, subsampling=self.subsampling)
            return np.asarray(Image.open(file))
