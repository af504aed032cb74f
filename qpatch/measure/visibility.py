"""How visible a patch is, and ways to hide it: less contrast, less opacity, smoother, smaller."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from skimage.color import deltaE_ciede2000, rgb2lab
from skimage.filters import gaussian
from skimage.metrics import structural_similarity
from torch import Tensor, nn

from qpatch.attacks.controls import noise_pixels
from qpatch.attacks.patch import Patch, paste, round_to_bytes
from qpatch.checks import check_images, check_labels
from qpatch.errors import InputError, ParameterError, one_of
from qpatch.measure.success import predict, success_of

KNOBS = ("size", "contrast", "opacity", "smoothness")
CONTROLS = ("noise", "grey")


@dataclass(frozen=True)
class Look:
    """One way to show a patch: which knob is turned how far.

    Attributes:
        knob: "size" (side in pixels), "contrast" (1 as made, 0 plain grey), "opacity" (1 covers, 0 is not there) or
            "smoothness" (standard deviation of a Gaussian blur, in pixels; 0 as made).
        amount: see there.
    """

    knob: str
    amount: float

    def __post_init__(self):
        one_of(self.knob, KNOBS, "knob")
        if self.amount < 0 or (self.knob in ("contrast", "opacity") and self.amount > 1):
            raise ParameterError(f"{self.knob} cannot be {self.amount}; contrast and opacity run from 0 to 1.")

    def pixels(self, pixels: Tensor) -> Tensor:
        """The patch's pixels (..., h, w) as this look changes them, on the 8-bit lattice."""
        if self.knob == "contrast":
            pixels = 0.5 + self.amount * (pixels - 0.5)
        elif self.knob == "smoothness" and self.amount > 0:
            pixels = blurred(pixels, self.amount)
        return round_to_bytes(pixels)

    def shown(self, images: Tensor, pixels: Tensor, mask: Tensor, places: Tensor) -> Tensor:
        """The images with the patch in them, on the 8-bit lattice where the patch lies."""
        covered = paste(images, self.pixels(pixels), mask, places)
        if self.knob != "opacity":
            return covered
        return torch.where(covered == images, images, round_to_bytes(images + self.amount * (covered - images)))


def blurred(pixels: Tensor, sigma: float) -> Tensor:
    """Each plane of (..., h, w) under a Gaussian of `sigma` pixels; beyond the border its nearest value goes on."""
    planes = pixels.reshape(-1, *pixels.shape[-2:]).numpy()
    smooth = gaussian(planes, sigma, mode="nearest", channel_axis=0, preserve_range=True)
    return torch.from_numpy(np.ascontiguousarray(smooth, dtype=np.float32)).view_as(pixels).clamp(0, 1)


def total_variation(pixels: Tensor) -> float:
    """Mean absolute difference between neighbouring pixels, in [0, 1]: 0 is a plain colour, 1/3 is uniform noise."""
    steps = [pixels.diff(dim=axis).abs().flatten() for axis in (-2, -1)]
    return float(torch.cat(steps).double().mean())


def visibility(clean: Tensor, patched: Tensor) -> pd.DataFrame:
    """How much an observer sees of a change, one row per image.

    Args:
        clean, patched: float32 (N, 3, H, W) in [0, 1].

    Returns:
        colour: the CIEDE2000 colour difference (Sharma et al. 2005; about 1 is just noticeable), mean over all pixels
        of the image; structure: 1 − SSIM (Wang et al. 2004), 0 for the same image. Both by scikit-image.

    Raises:
        InputError: images that differ in shape, or without three channels.
    """
    check_images(clean)
    check_images(patched)
    if clean.shape != patched.shape or clean.shape[1] != 3:
        shapes = f"{tuple(clean.shape)} and {tuple(patched.shape)}"
        raise InputError(f"the images must be RGB and alike in shape, got {shapes}.")
    before, after = (images.permute(0, 2, 3, 1).double().numpy() for images in (clean, patched))
    colour = deltaE_ciede2000(rgb2lab(before), rgb2lab(after)).mean(axis=(1, 2))
    structure = [1 - structural_similarity(a, b, channel_axis=2, data_range=1.0) for a, b in zip(before, after)]
    return pd.DataFrame({"colour": colour, "structure": structure})


def visibility_rows(
    views: Mapping[int, nn.Module],
    patches: Mapping[int, Patch],
    looks: Sequence[Look],
    images: Tensor,
    labels: Tensor,
    places: Mapping[int, Tensor],
    *,
    plain_size: int = 6,
    judged: int = 100,
    seed: int = 0,
) -> pd.DataFrame:
    """Success against visibility, beside noise and grey squares that are shown in the very same way.

    Args:
        views: target bits → network in eval mode.
        patches: side in pixels → universal patch of that size.
        looks: what to try; looks that do not turn the size show the patch of `plain_size`.
        images, labels: float32 (N, 3, H, W) in [0, 1], int64 (N,). places: side → int64 (N, 2).
        judged: images on which visibility is measured. seed: of the noise.

    Returns:
        One row per look, pattern (patch, noise or grey) and view: knob, amount, pattern, target_bits, n, asr, ci_low,
        ci_high, colour, structure (means of `visibility`), variation (`total_variation` of the pixels shown).

    Raises:
        ParameterError: a look at a size that is not among `patches`. InputError: malformed images or labels.
    """
    check_labels(labels, len(images))
    clean = {bits: predict(view, images) for bits, view in views.items()}
    rows = []
    for look in looks:
        side = int(look.amount) if look.knob == "size" else plain_size
        patch = patches[one_of(side, patches, "patch size")]
        noise = noise_pixels(len(images), images.shape[1], patch.size, seed)
        patterns = {"patch": patch.pixels, "noise": noise, "grey": torch.full_like(patch.pixels, 0.5)}
        for pattern, pixels in patterns.items():
            shown = look.shown(images, pixels, patch.mask, places[side])
            seen = visibility(images[:judged], shown[:judged]).mean()
            about = {"knob": look.knob, "amount": look.amount, "pattern": pattern, **seen,
                     "variation": total_variation(look.pixels(pixels))}  # fmt: skip
            for bits, view in views.items():
                success = success_of(clean[bits], predict(view, shown), labels)
                rows.append(about | {"target_bits": bits, "n": success.n, "asr": success.asr,
                                     "ci_low": success.ci_low, "ci_high": success.ci_high})  # fmt: skip
    return pd.DataFrame(rows)
