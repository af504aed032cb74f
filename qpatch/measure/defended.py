"""One network at several precisions behind input defenses: who is right about which image, and the rates of it."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
import torch
from torch import Tensor, nn

from qpatch.checks import check_images, check_labels
from qpatch.errors import InputError
from qpatch.measure.distortion import received
from qpatch.measure.stats import wilson
from qpatch.measure.success import predict, success_of


def cleaned(nets: Mapping[str, nn.Module], defense: Mapping, images: Tensor) -> dict[str, Tensor]:
    """What the defense makes of what each network receives, as `qpatch.defenses.Defended` has it.

    A defense that works on bytes (`on_bytes`) cleans an image once for all networks that receive the same bytes.

    Args:
        nets: precision → network in eval mode.
        defense: precision → input defense.
        images: float32 (N, C, H, W) in [0, 1].

    Returns:
        precision → cleaned images.
    """
    check_images(images)
    made, known = {}, {}
    for precision, net in nets.items():
        clean, seen = defense[precision], received(net, images).clamp(0, 1)
        if not getattr(clean, "on_bytes", False):
            made[precision] = clean(seen)
            continue
        pixels = (seen * 255).round()
        before, answer = known.get(id(clean), (torch.full_like(pixels, -1), torch.empty_like(pixels)))
        new = (pixels != before).flatten(1).any(1)
        answer = answer.clone()
        if new.any():
            answer[new] = clean(seen[new])
        known[id(clean)] = pixels, answer
        made[precision] = answer
    return made


def defended_predictions(nets: Mapping[str, nn.Module], defense: Mapping, images: Tensor) -> dict[str, Tensor]:
    """Precision → predicted class of the cleaned images, int64 (N,); arguments as for `cleaned`."""
    return {precision: predict(nets[precision], part) for precision, part in cleaned(nets, defense, images).items()}


def defended_rows(clean: Mapping[str, Tensor], attacked: Mapping[str, Tensor], labels: Tensor) -> pd.DataFrame:
    """Rates of an attack on a defended network, from its predictions.

    Args:
        clean, attacked: precision → predicted class of the clean and of the attacked images, both defended.
        labels: int64 (N,).

    Returns:
        One row per precision: precision, n (the images that the *defended* network gets right when clean), asr with
        ci_low and ci_high, error_rate, clean_accuracy, accuracy under attack with acc_low and acc_high over all
        images, and images (how many).

    Raises:
        InputError: malformed labels, or another precision or number of images in one of the two.
    """
    check_labels(labels, len(labels))
    if clean.keys() != attacked.keys():
        raise InputError(f"precisions differ: {', '.join(clean)} when clean, {', '.join(attacked)} when attacked.")
    rows = []
    for precision in clean:
        success = success_of(clean[precision], attacked[precision], labels)
        right = int((attacked[precision] == labels).sum())
        low, high = wilson(right, len(labels))
        rows.append({"precision": precision, **vars(success), "accuracy": right / len(labels), "acc_low": low,
                     "acc_high": high, "images": len(labels)})  # fmt: skip
    return pd.DataFrame(rows)
