"""Accuracy and attack success: one definition each, used everywhere."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qpatch.checks import check_eval, check_images, check_labels
from qpatch.errors import InputError
from qpatch.measure.stats import wilson


@dataclass(frozen=True)
class Success:
    """What a patch does to one network.

    Attributes:
        n: the images that count: right when clean and, for a targeted patch, not of the target class.
        asr: attack success rate, the share of the n that the patch changes (untargeted) or sends to the target;
            nan if n is 0.
        ci_low, ci_high: Wilson interval of `asr`, for the images drawn.
        error_rate: share of *all* images that are misclassified under the patch, clean mistakes included.
        clean_accuracy: share of all images that are right when clean.
    """

    n: int
    asr: float
    ci_low: float
    ci_high: float
    error_rate: float
    clean_accuracy: float


def attack_success(
    net: nn.Module, clean: Tensor, patched: Tensor, labels: Tensor, target: int | None = None, batch: int = 100
) -> Success:
    """The success of an attack on `net`, judged by what `net` itself says about the clean images.

    Args:
        net: the evaluated network or view, in eval mode.
        clean, patched: float32 (N, C, H, W) in [0, 1], the same images without and with the patch.
        labels: int64 (N,), the true classes.
        target: the class that the patch should show, or None for an untargeted attack.
        batch: images per forward pass.

    Raises:
        InputError: train mode, malformed or mismatched images or labels.
    """
    if clean.shape != patched.shape:
        raise InputError(f"clean and patched images differ in shape: {tuple(clean.shape)}, {tuple(patched.shape)}.")
    return success_of(predict(net, clean, batch), predict(net, patched, batch), labels, target)


def success_of(clean: Tensor, patched: Tensor, labels: Tensor, target: int | None = None) -> Success:
    """`attack_success` from the predicted classes, int64 (N,) each."""
    check_labels(labels, len(clean))
    labels = labels.to(clean.device)
    right = clean == labels
    counts = right if target is None else right & (labels != target)
    hit = patched != labels if target is None else patched == target
    n, successes = int(counts.sum()), int((counts & hit).sum())
    low, high = wilson(successes, n)
    return Success(
        n=n,
        asr=successes / n if n else math.nan,
        ci_low=low,
        ci_high=high,
        error_rate=int((patched != labels).sum()) / len(labels),
        clean_accuracy=int(right.sum()) / len(labels),
    )


def accuracy(net: nn.Module, images: Tensor, labels: Tensor, batch: int = 100) -> float:
    """Share of the images that `net` classifies correctly, in [0, 1]."""
    check_labels(labels, len(images))
    predicted = predict(net, images, batch)
    return int((predicted == labels.to(predicted.device)).sum()) / len(labels)


@torch.no_grad()  # and not inference mode: a view may keep tensors that it makes here and need them in an attack later
def predict(net: nn.Module, images: Tensor, batch: int = 100) -> Tensor:
    """The predicted classes, int64 (N,).

    Raises:
        InputError: train mode or malformed images.
    """
    check_eval(net)
    check_images(images, net)
    return torch.cat([net(part).argmax(dim=1) for part in images.split(batch)])
