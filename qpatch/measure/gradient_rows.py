"""What gradients and differences come to: shares of zeros, sizes, angles, each with its interval over images."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from scipy import stats
from torch import Tensor, nn

from qpatch.checks import check_labels
from qpatch.errors import InputError
from qpatch.measure.gradients import central_differences
from qpatch.measure.stats import wilson


@dataclass(frozen=True)
class Share:
    """A share of differences with its 95 % interval; `n` images, each of which gives several differences."""

    value: float
    low: float
    high: float
    n: int


def zero_share(differences: Tensor) -> Share:
    """The share of differences that are exactly zero, (N, K) with K per image: paper C's "gradient zero density"."""
    return share_of(differences == 0)


def share_of(hits: Tensor) -> Share:
    """The share of true entries in a table of yes or no, bool (N, K), N images with K entries each.

    Entries of one image are alike, so images are the sampling unit: Wilson's interval with the effective number of
    entries p(1 − p)·N / s², where s² is the variance of the images' own shares (Kish 1965); N where p is 0 or 1.
    """
    per_image = hits.double().mean(dim=1)
    n, value = len(per_image), float(per_image.mean())
    variance = float(per_image.var()) if n > 1 else 0.0
    effective = value * (1 - value) * n / variance if variance > 0 else n
    effective = min(max(effective, 1.0), hits.numel())
    low, high = wilson(value * effective, effective)
    return Share(value, min(low, value), max(high, value), n)  # at 0 and 1 the limit is the value but for rounding


def cosines(first: Tensor, second: Tensor) -> Tensor:
    """Cosine per image between two sets of gradients, float64 (N,); a gradient of nothing but zeros has cosine 0."""
    a, b = (gradients.flatten(1).double() for gradients in (first, second))
    return (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1)).clamp_min(1e-300)


def sign_agreement(first: Tensor, second: Tensor) -> Tensor:
    """Share per image of values with gradients of one sign, of those where neither is zero: float64 (N,); chance ½."""
    product = first.flatten(1).sign() * second.flatten(1).sign()
    return (product > 0).double().sum(1) / (product != 0).double().sum(1).clamp_min(1)


def partners(labels: Tensor, same_class: bool, seed: int = 0) -> Tensor:
    """For each image another one of its class, or of another class, at random: int64 (N,). For null comparisons."""
    allowed = (labels[:, None] == labels[None]) == same_class
    allowed.fill_diagonal_(False)
    if not allowed.any(dim=1).all():
        raise InputError("some class has a single image, or all images have one class; take more images.")
    return torch.multinomial(allowed.double(), 1, generator=torch.Generator().manual_seed(seed))[:, 0]


def bootstrap(values: Tensor, statistic: Callable = np.mean, seed: int = 0) -> tuple[float, float, float]:
    """A statistic over images with its 95 % percentile interval from 2,000 resamples of them: value, low, high."""
    data = np.asarray(values, dtype=float)
    if len(data) == 0:
        return math.nan, math.nan, math.nan
    value = float(statistic(data))
    if np.ptp(data) == 0:
        return value, value, value
    found = stats.bootstrap((data,), statistic, n_resamples=2000, method="percentile", rng=np.random.default_rng(seed))
    low, high = map(float, found.confidence_interval)
    return value, min(low, value), max(high, value)


def summarize(differences: Tensor, reference: Tensor, seed: int = 0) -> dict[str, float]:
    """What differences of single values are worth, against the float network's gradient at the same values.

    Args:
        differences, reference: (N, K), an image per row.

    Returns:
        value, low, high: the share of zeros, `zero_share`; ratio, ratio_low, ratio_high: size of those that are not
        zero over that of `reference`, as the median over images of each image's median, with a bootstrap over images
        (nan if all are zero); sign: the share of them with the reference's sign; n: images.
    """
    zeros, some = zero_share(differences), (differences != 0) & (reference != 0)
    sizes = [(d[s].abs() / r[s].abs()).median().item() for d, r, s in zip(differences, reference, some) if s.any()]
    ratio = dict(zip(("ratio", "ratio_low", "ratio_high"), bootstrap(sizes, np.median, seed)))
    sign = (differences.sign() == reference.sign())[some].double().mean().item() if some.any() else math.nan
    return {"value": zeros.value, "low": zeros.low, "high": zeros.high, **ratio, "sign": sign, "n": zeros.n}


def step_rows(
    net: nn.Module, images: Tensor, labels: Tensor, at: Tensor, steps: Mapping[str, float], reference: Tensor,
    score: str = "cross-entropy", seed: int = 0,
) -> pd.DataFrame:  # fmt: skip
    """How central differences of one network depend on their step.

    Args:
        net, images, labels, at, score: as in `central_differences`.
        steps: name → step in units of the [0, 1] range.
        reference: float (N, K), the float network's analytic gradient at the same values.

    Returns:
        One row per step: at (its name), step, and the columns of `summarize`.
    """
    return pd.DataFrame(
        {"at": name, "step": step,
         **summarize(central_differences(net, images, labels, at, step, score), reference, seed)}
        for name, step in steps.items()
    )  # fmt: skip


def alignment_rows(
    reference: Tensor, others: Mapping[str | int, Tensor], labels: Tensor, seed: int = 0
) -> pd.DataFrame:
    """Mean cosine per image between a reference's gradients and those of other networks.

    Two nulls use gradients of *different* images, one of the reference, the other of the network: of one class, and of
    different classes. What they reach, a cosine between networks gets for nothing.

    Args:
        reference: (N, ...), gradients or directional differences, an image per row.
        others: network, by name or number → the same for that network.
        labels: int64 (N,).
        seed: of the nulls' pairs and of the bootstrap.

    Returns:
        One row per network: network, value, low, high (mean cosine, 95 % bootstrap over images), median, sign (mean
        agreement of signs), null_class, null_other, n.

    Raises:
        InputError: gradients whose shapes differ, or a class with a single image.
    """
    check_labels(labels, len(reference))
    same, different = (partners(labels, choice, seed) for choice in (True, False))
    rows = []
    for network, gradients in others.items():
        if gradients.shape != reference.shape:
            raise InputError(f"the gradients of {network} have shape {tuple(gradients.shape)}, those of the reference "
                             f"{tuple(reference.shape)}.")  # fmt: skip
        each = cosines(reference, gradients)
        value, low, high = bootstrap(each, seed=seed)
        rows.append({
            "network": network, "value": value, "low": low, "high": high, "median": float(each.median()),
            "sign": float(sign_agreement(reference, gradients).mean()),
            "null_class": float(cosines(reference, gradients[same]).mean()),
            "null_other": float(cosines(reference, gradients[different]).mean()), "n": len(each),
        })  # fmt: skip
    return pd.DataFrame(rows)
