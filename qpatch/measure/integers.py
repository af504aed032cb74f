"""Integer networks against their float network and against each other: accuracy, and codes that differ."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pandas as pd
import torch
from torch import Tensor, nn

from qpatch.checks import check_labels
from qpatch.measure.stats import wilson
from qpatch.measure.success import predict
from qpatch.quant import tflite


def deployed_rows(
    networks: Mapping[str, nn.Module], images: Tensor, labels: Tensor, reference: str = "float", batch: int = 500
) -> pd.DataFrame:
    """Clean accuracy of every network, and its change against the reference on the same images.

    Args:
        networks: name → network in eval mode; `reference` is one of them.
        images, labels: float32 (N, C, H, W) in [0, 1] and int64 (N,).
        batch: images per forward pass.

    Returns:
        One row per network: view, n, value (accuracy) with low and high (Wilson), change with change_low and
        change_high (mean of the paired differences, normal 95 % interval), and agree, the share of images of which the
        reference says the same class.

    Raises:
        InputError: train mode, malformed images or labels.
    """
    check_labels(labels, len(images))
    classes = {name: predict(net, images, batch) for name, net in networks.items()}
    right = {name: (predicted == labels).double() for name, predicted in classes.items()}
    rows = []
    for name, hits in right.items():
        low, high = wilson(int(hits.sum()), len(hits))
        pairs = hits - right[reference]
        change, half = float(pairs.mean()), 1.96 * float(pairs.std()) / math.sqrt(len(pairs))
        rows.append({"view": name, "n": len(hits), "value": float(hits.mean()), "low": low, "high": high,
                     "change": change, "change_low": change - half, "change_high": change + half,
                     "agree": float((classes[name] == classes[reference]).double().mean())})  # fmt: skip
    return pd.DataFrame(rows)


@torch.no_grad()
def proof_rows(files: Mapping[str, bytes], images: Tensor, batch: int = 50) -> pd.DataFrame:
    """The emulator and the twin of every file against TFLite Micro, score by score.

    Args:
        files: name → integer .tflite.
        images: float32 (N, C, H, W) in [0, 1].
        batch: images at a time.

    Returns:
        One row per file: file, images, scores (how many integers are compared), emulator (how many of them differ from
        TFLite Micro's; missing where it is not installed), twin (how many differ from the emulator's), same_class
        (share of images of which twin and emulator say the same class).
    """
    rows = []
    for name, file in files.items():
        emulator, twin = tflite.network(file), tflite.twin(file)
        micro = tflite.network(file, "tflm") if tflite.installed("tflm") else None
        wrong = apart = same = scores = 0
        for part in images.split(batch):
            logits = emulator.logits(part)
            twins = twin(part)
            scores += logits.numel()
            wrong += int((micro.logits(part) != logits).sum()) if micro else 0
            apart += int((twins != logits).sum())
            same += int((twins.argmax(1) == logits.argmax(1)).sum())
        rows.append({"file": name, "images": len(images), "scores": scores, "emulator": wrong if micro else math.nan,
                     "twin": apart, "same_class": same / len(images)})  # fmt: skip
    return pd.DataFrame(rows)
