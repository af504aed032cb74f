"""Intervals for shares, and for medians."""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy import stats
from statsmodels.stats.proportion import proportion_confint
from torch import Tensor

from qpatch.errors import InputError, ParameterError


def wilson(successes: float, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval for a share (Wilson 1927): what the draw of `n` images leaves open.

    With p = successes / n and z the normal quantile: (p + z²/2n ± z·√(p(1 − p)/n + z²/4n²)) / (1 + z²/n).

    Returns:
        (low, high) in [0, 1]; (0, 1) if n is 0, because then nothing is known.

    Raises:
        ParameterError: a count that is negative or larger than n, or a level outside (0, 1).
    """
    _check_level(level)
    if not 0 <= successes <= n:
        raise ParameterError(f"successes must lie between 0 and n = {n}, got {successes}.")
    if n == 0:
        return 0.0, 1.0
    low, high = proportion_confint(successes, n, alpha=1 - level, method="wilson")
    share = successes / n  # at 0 and 1 the formula ends a last digit beside the share itself
    return max(0.0, min(float(low), share)), min(1.0, max(float(high), share))


def student(shares: list[float], level: float = 0.95) -> tuple[float, float]:
    """Student's t interval for the mean of a few shares, cut to [0, 1]: what the draw of the seeds leaves open.

    Returns:
        (low, high); (nan, nan) for fewer than two shares, which say nothing about their spread.
    """
    _check_level(level)
    n = len(shares)
    if n < 2:
        return math.nan, math.nan
    mean = sum(shares) / n
    spread = math.sqrt(sum((share - mean) ** 2 for share in shares) / (n - 1))
    half = float(stats.t.ppf((1 + level) / 2, n - 1)) * spread / math.sqrt(n)
    return max(0.0, mean - half), min(1.0, mean + half)


def median_ratio(values: Tensor, reference: Tensor, seed: int = 0, level: float = 0.95) -> dict[str, float]:
    """The median over images of value / reference, with a percentile bootstrap interval over the images (scipy).

    Pairs that are not both finite and positive do not count: an image that one of the networks gets wrong when clean has
    no distance to a boundary.

    Args:
        values, reference: (N,), paired by image.
        seed: of the resampling.

    Returns:
        ratio, ratio_low, ratio_high, and n (the pairs that count); the first three are nan if n is 0.

    Raises:
        InputError: tensors of different shape.
        ParameterError: a level outside (0, 1).
    """
    _check_level(level)
    if values.shape != reference.shape:
        raise InputError(f"the pairs do not match: {tuple(values.shape)} values, {tuple(reference.shape)} references.")
    counts = torch.isfinite(values) & torch.isfinite(reference) & (values > 0) & (reference > 0)
    ratios = (values[counts] / reference[counts]).double().cpu().numpy()
    low = high = middle = math.nan
    if len(ratios):
        middle = low = high = float(np.median(ratios))
    if len(ratios) > 1 and np.ptp(ratios) > 0:
        drawn = stats.bootstrap((ratios,), np.median, confidence_level=level, n_resamples=2000, method="percentile",
                                rng=np.random.default_rng(seed))  # fmt: skip
        low, high = map(float, drawn.confidence_interval)
    return {"ratio": middle, "ratio_low": low, "ratio_high": high, "n": len(ratios)}


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ParameterError(f"the confidence level must lie between 0 and 1, got {level}.")
