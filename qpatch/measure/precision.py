"""One network at several precisions, under attacks that were made somewhere else: the tables of paper C's defenses."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pandas as pd
import torch
from torch import Tensor, nn

from qpatch.checks import check_images, check_labels
from qpatch.errors import InputError
from qpatch.measure.stats import wilson
from qpatch.measure.success import predict, success_of


def precision_rows(
    targets: Mapping[str, nn.Module],
    adversarial: Mapping[tuple[str, float], Tensor],
    images: Tensor,
    labels: Tensor,
    *,
    control_seed: int = 0,
    batch: int = 100,
) -> pd.DataFrame:
    """Every set of adversarial images on every precision of a network; the control is random noise of the same size.

    Args:
        targets: precision → network in eval mode, logits or probabilities.
        adversarial: (source, eps) → images of `images`' shape, made there with noise of L∞ size eps, in units of the
            [0, 1] range; the control adds ±eps at random.
        images, labels: the clean images, float32 (N, C, H, W) in [0, 1], and their classes.
        control_seed: fixes that noise.
        batch: images per forward pass.

    Returns:
        One row per source and precision: source, precision, eps, n (the images that the target gets right when clean),
        asr with ci_low and ci_high, error_rate, clean_accuracy, adversarial accuracy with acc_low and acc_high over all
        images, images (how many), and asr_noise.

    Raises:
        InputError: malformed images or labels, or adversarial images of another shape.
    """
    check_images(images)
    check_labels(labels, len(images))
    for (source, eps), attacked in adversarial.items():
        if attacked.shape != images.shape:
            raise InputError(f"images attacked on {source} are {tuple(attacked.shape)}, clean ones {tuple(images.shape)}.")
    generator = torch.Generator().manual_seed(control_seed)
    signs = torch.randint(0, 2, images.shape, generator=generator).to(images) * 2 - 1
    shown = {("clean", 0.0): images, **adversarial}
    shown |= {("random", eps): (images + eps * signs).clamp(0, 1) for _, eps in adversarial}
    rows = []
    for precision, net in targets.items():
        classes = {key: predict(net, these, batch) for key, these in shown.items()}
        rows += [{"precision": precision, **row} for row in predicted_rows(classes, labels)]
    return pd.DataFrame(rows)


def predicted_rows(
    classes: Mapping[tuple[str, float], Tensor],
    labels: Tensor,
    *,
    clean: tuple[str, float] = ("clean", 0.0),
    noise: str = "random",
) -> list[dict]:
    """The rows of `precision_rows` for one network, from its predicted classes.

    Args:
        classes: (source, eps) → predicted classes, int64 (n,). A source may have seen only the first n images.
        labels: int64 (N,).
        clean: the key of the predictions on clean images, (N,).
        noise: the source that is random noise of size eps; asr_noise is nan where it was not shown at that size.
    """
    rows = []
    for (source, eps), found in classes.items():
        if source in (clean[0], noise):
            continue
        n = len(found)
        control = classes.get((noise, eps))
        success = success_of(classes[clean][:n], found, labels[:n])
        right = int((found == labels[:n]).sum())
        low, high = wilson(right, n)
        rows.append({
            "source": source, "eps": eps, **vars(success), "images": n, "accuracy": right / n, "acc_low": low,
            "acc_high": high,
            "asr_noise": success_of(classes[clean][:n], control[:n], labels[:n]).asr if control is not None else math.nan,
        })  # fmt: skip
    return rows
