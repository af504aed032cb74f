"""How much of a noise's effect arrives at another network: the margin that it takes there, over what it takes at home."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from qpatch.checks import check_eval, check_images, check_labels
from qpatch.errors import InputError
from qpatch.measure.gradients import logits_of

_BATCH = 500
_DRAWS = 2000


@torch.no_grad()
def margins(net: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Score of the true class minus the best other score, float32 (N,); negative where the network is wrong.

    Args:
        net: in eval mode; logits, or a network of `qpatch.quant.tflite.network`, whose dequantized logits are taken.
        images, labels: float32 (N, C, H, W) in [0, 1] and int64 (N,).

    Raises:
        InputError: train mode, malformed images or labels.
    """
    check_eval(net)
    check_images(images, net)
    labels = check_labels(labels, len(images)).to(images.device)
    scores = torch.cat([logits_of(net, part) for part in images.split(_BATCH)])
    true = scores.gather(1, labels[:, None])
    return (true - scores.scatter(1, labels[:, None], -torch.inf).amax(1, keepdim=True)).flatten()


def arrival(drop: Tensor, reference: Tensor, seed: int = 0) -> tuple[float, float, float]:
    """Σ drop / Σ reference over the inputs, with a 95 % percentile bootstrap interval over them.

    One: the noise takes as much margin here as there. Zero: nothing of it arrives. Above one: it is amplified.

    Args:
        drop, reference: (N,), the margins that the same noise takes from this network and from the reference.
        seed: of the 2,000 resamples; the two margins of an input stay together.

    Returns:
        value, low, high; nan where the noise takes no margin from the reference.

    Raises:
        InputError: tensors of different shape.
    """
    if drop.dim() != 1 or drop.shape != reference.shape:
        raise InputError(f"drop and reference must be (N,) alike, got {tuple(drop.shape)} and {tuple(reference.shape)}.")
    pair = torch.stack([drop, reference]).double().cpu().numpy()
    here, there = pair.sum(axis=1)
    if there <= 0:
        return (float("nan"),) * 3
    n = pair.shape[1]
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=_DRAWS)  # how often each is drawn
    drawn = pair @ counts.T
    low, high = np.quantile(drawn[0] / drawn[1], [0.025, 0.975])
    return float(here / there), min(float(low), float(here / there)), max(float(high), float(here / there))
