"""Feature squeezing (Xu et al. 2018): fewer colours or a median filter, and a detector that compares predictions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor, nn

from qpatch.checks import check_images, check_labels
from qpatch.errors import InputError, ParameterError, one_of


class Published(NamedTuple):
    """David and Goliath's parameters for one task and precision.

    Attributes:
        bits: colour bits that are kept; 8 at int8 and 16 at int16 keep everything.
        window: side of the median filter, in pixels.
        threshold: of the detector, in the units of the network's raw output (see `unit`).
        unit: probability of one raw unit: 1, 1/32768 or 1/256.
    """

    bits: int
    window: int
    threshold: float
    unit: float


_UNITS = {"float": 1.0, "int16": 1 / 32768, "int8": 1 / 256}
_THRESHOLDS = {"cifar10": (1.763, 48802, 260), "vww": (1.557, 50179, 242), "coffee": (0.116, 3619, 34)}
PUBLISHED = {
    (task, precision): Published(
        bits={"float": 4 if task == "cifar10" else 8, "int16": 16, "int8": 8}[precision],
        window=6 if task == "vww" else 2,
        threshold=threshold,
        unit=_UNITS[precision],
    )
    for task, thresholds in _THRESHOLDS.items()
    for precision, threshold in zip(_UNITS, thresholds)
}


@dataclass(frozen=True)
class FeatureSqueezing:
    """Of two squeezed images, the one that lies further from the image: argmax over s of ‖s(x) − x‖₁.

    s₁(x) = round((2ᵇ − 1) x) / (2ᵇ − 1) keeps b bits per colour; s₂ is a median over a window, per channel. The
    choice between them per image is David and Goliath's; Xu et al. use them apart and compare predictions only.

    Args:
        bits: b, 1 to 16. At 8 and above s₁ leaves 8-bit images as they are, and s₂ is always chosen.
        window: side of the median's window in pixels. An even one reaches one pixel further up and left, and takes
            the upper of the two middle values, as `scipy.ndimage.median_filter` does; borders are mirrored.

    Raises:
        ParameterError: bits outside 1 to 16, or a window below 1.
        InputError (on call): malformed images.

    Source:
        Xu, Evans, Qi 2018, "Feature Squeezing: Detecting Adversarial Examples in Deep Neural Networks", sections 3, 5.

    Example:
        >>> squeeze = FeatureSqueezing.published("cifar10", "float")
        >>> cleaned = squeeze(images)   # float32 (N, C, H, W) in [0, 1]
    """

    bits: int = 4
    window: int = 2

    def __post_init__(self):
        if not isinstance(self.bits, int) or not 1 <= self.bits <= 16:
            raise ParameterError(f"colour bits are an int from 1 to 16, got {self.bits!r}.")
        if not isinstance(self.window, int) or self.window < 1:
            raise ParameterError(f"the median's window is a positive int of pixels, got {self.window!r}.")

    @classmethod
    def published(cls, task: str = "cifar10", precision: str = "float") -> FeatureSqueezing:
        """With David and Goliath's parameters: task "cifar10", "vww" or "coffee"; precision "float", "int16", "int8"."""
        one_of(task, _THRESHOLDS, "task")
        chosen = PUBLISHED[task, one_of(precision, _UNITS, "precision")]
        return cls(chosen.bits, chosen.window)

    def squeezed(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(s₁(x), s₂(x)), each float32 (N, C, H, W) in [0, 1]."""
        check_images(images)
        return reduce_bits(images, self.bits), median(images, self.window)

    def __call__(self, images: Tensor) -> Tensor:
        reduced, smooth = self.squeezed(images)
        further = _l1(reduced, images) > _l1(smooth, images)
        return torch.where(further.view(-1, 1, 1, 1), reduced, smooth)

    def approximation(self, images: Tensor) -> Tensor:
        """What stands in for the defense in an adaptive attacker's gradient: the mean over the median's window."""
        before, after = self.window // 2, (self.window - 1) // 2
        padded = F.pad(images, (before, after, before, after), mode="replicate")
        return F.avg_pool2d(padded, self.window, stride=1)

    # The detector: part of the released code, but its use is commented out there -------------------------------

    def score(self, net: nn.Module, images: Tensor) -> Tensor:
        """max over s of ‖p(x) − p(s(x))‖₁ per image, float32 (N,) in [0, 2]: large for adversarial images.

        Args:
            net: gives probabilities; for a network of logits nn.Sequential(net, nn.Softmax(1)).

        Raises:
            InputError: the network's outputs are no probabilities.
        """
        with torch.no_grad():
            before, *after = (_probabilities(net, x) for x in (images, *self.squeezed(images)))
        return torch.stack([_l1(p, before) for p in after]).amax(0)

    def threshold(self, net: nn.Module, images: Tensor, labels: Tensor, fpr: float = 0.05) -> float:
        """The score above which an image counts as adversarial: see `class_threshold`; images are clean ones."""
        return class_threshold(self.score(net, images), check_labels(labels, len(images)), fpr)

    def detect(self, net: nn.Module, images: Tensor, threshold: float) -> Tensor:
        """bool (N,): which images have a score above the threshold."""
        return self.score(net, images) > threshold


def reduce_bits(images: Tensor, bits: int) -> Tensor:
    """round((2ᵇ − 1) x) / (2ᵇ − 1); half-way cases go to the even level."""
    levels = 2**bits - 1
    return (images * levels).round() / levels


def median(images: Tensor, window: int) -> Tensor:
    """The median over a window × window neighbourhood, each channel by itself."""
    filtered = ndimage.median_filter(images.detach().cpu().numpy(), size=(1, 1, window, window), mode="reflect")
    return torch.from_numpy(filtered).to(images.device)


def class_threshold(scores: Tensor, labels: Tensor, fpr: float = 0.05) -> float:
    """David and Goliath's threshold: per class the ⌈(1 − fpr) n⌉-th smallest score of clean images, then the largest.

    So the false positive rate is `fpr` in one class and lower in all others.

    Args:
        scores: (N,), of clean images.
        labels: int64 (N,).
        fpr: false positive rate, between 0 and 1.

    Raises:
        ParameterError: fpr outside (0, 1).
    """
    if not 0 < fpr < 1:
        raise ParameterError(f"a false positive rate lies between 0 and 1, got {fpr!r}.")
    per_class = [scores[labels == label].sort().values for label in labels.unique()]
    return max(float(ordered[math.ceil(len(ordered) * (1 - fpr)) - 1]) for ordered in per_class)


def wrapped_distance(codes: Tensor, others: Tensor, precision: str) -> Tensor:
    """‖a − b‖₁ as the released script computes it from integer softmax codes: in int8 or int16, where it may wrap.

    int8 codes run from −128 to 127: a probability that falls from 1 to 0 differs by 255, which int8 holds as −1.
    int16 codes run from 0 to 32767 and do not wrap.

    Args:
        codes, others: int64 (N, classes).
        precision: "int8" or "int16".

    Returns:
        float32 (N,), in raw units.
    """
    kind = {"int8": np.int8, "int16": np.int16}[one_of(precision, ("int8", "int16"), "precision")]
    difference = codes.numpy().astype(kind) - others.numpy().astype(kind)
    return torch.from_numpy(np.abs(difference.astype(np.float32)).sum(1))


def _probabilities(net: nn.Module, images: Tensor) -> Tensor:
    given = net(images)
    if bool((given < 0).any()) or bool(((given.sum(1) - 1).abs() > 0.05).any()):
        raise InputError("the detector compares probabilities; use nn.Sequential(net, nn.Softmax(1)) for logits.")
    return given


def _l1(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).abs().flatten(1).sum(1)
