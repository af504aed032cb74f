"""Transfer of attacks that change every pixel a little: the counterpart to patches in the transfer matrix."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
import torch
from torch import Tensor, nn

from qpatch.checks import check_images, check_labels
from qpatch.measure.success import predict, success_of
from qpatch.measure.transfer import COLUMNS


def pixel_rows(
    views: Mapping[int, nn.Module],
    adversarial: Mapping[tuple[int, int], Tensor],
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    control_seed: int = 0,
    batch: int = 100,
) -> pd.DataFrame:
    """Every set of adversarial images on every view; the control is random noise of the same largest size.

    Args:
        views: target bits → network view in eval mode.
        adversarial: (source bits, seed) → images of `images`' shape, made on the source view.
        images, labels: the clean images, float32 (N, C, H, W) in [0, 1], and their classes.
        eps: L∞ size of the attack, in units of the [0, 1] pixel range; the control adds ±eps at random.
        control_seed: fixes that noise.

    Returns:
        The columns of `transfer_rows`; asr_grey and asr_photo are nan, since they have no meaning here.
    """
    check_images(images)
    check_labels(labels, len(images))
    generator = torch.Generator().manual_seed(control_seed)
    signs = torch.randint(0, 2, images.shape, generator=generator).to(images) * 2 - 1
    noisy = (images + eps * signs).clamp(0, 1)
    clean = {bits: predict(view, images, batch) for bits, view in views.items()}
    noise = {bits: success_of(clean[bits], predict(view, noisy, batch), labels).asr for bits, view in views.items()}
    rows = []
    for (source, seed), attacked in adversarial.items():
        for bits, view in views.items():
            success = success_of(clean[bits], predict(view, attacked, batch), labels)
            rows.append({"source_bits": source, "target_bits": bits, "seed": seed, **vars(success),
                         "asr_noise": noise[bits], "asr_grey": float("nan"), "asr_photo": float("nan")})
    return pd.DataFrame(rows, columns=list(COLUMNS))
