"""One network at several precisions, under attacks that were made somewhere else: the tables of paper C's defenses."""

from __future__ import annotations

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
    adversarial: Mapping[str, Tensor],
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    control_seed: int = 0,
    batch: int = 100,
) -> pd.DataFrame:
    """Every set of adversarial images on every precision of a network; the control is random noise of the same size.

    Args:
        targets: precision → network in eval mode, logits or probabilities.
        adversarial: source → images of `images`' shape, made there.
        images, labels: the clean images, float32 (N, C, H, W) in [0, 1], and their classes.
        eps: L∞ size of the attack, in units of the [0, 1] range; the control adds ±eps at random.
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
    for source, attacked in adversarial.items():
        if attacked.shape != images.shape:
            raise InputError(f"images attacked on {source} are {tuple(attacked.shape)}, clean ones {tuple(images.shape)}.")
    generator = torch.Generator().manual_seed(control_seed)
    signs = torch.randint(0, 2, images.shape, generator=generator).to(images) * 2 - 1
    noisy, rows = (images + eps * signs).clamp(0, 1), []
    for precision, net in targets.items():
        clean = predict(net, images, batch)
        noise = success_of(clean, predict(net, noisy, batch), labels).asr
        for source, attacked in adversarial.items():
            success = success_of(clean, predict(net, attacked, batch), labels)
            right = round(len(labels) * (1 - success.error_rate))
            low, high = wilson(right, len(labels))
            rows.append({"source": source, "precision": precision, "eps": eps, **vars(success), "images": len(labels),
                         "accuracy": right / len(labels), "acc_low": low, "acc_high": high, "asr_noise": noise})  # fmt: skip
    return pd.DataFrame(rows)
