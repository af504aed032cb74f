"""Where in the image does a patch succeed? Maps over a grid of places, and how well one map predicts another."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import torch
from scipy.stats import rankdata
from scipy.stats import t as student
from torch import Tensor, nn
from torch.nn import functional as F

from qpatch.attacks.patch import as_size, check_fits, paste
from qpatch.checks import check_labels
from qpatch.errors import InputError, ParameterError
from qpatch.measure.success import predict

_GROUPS = 20  # of images, for the jackknife


def place_grid(side: int, image_size: int | tuple[int, int], patch_size: int | tuple[int, int]) -> Tensor:
    """side × side places, evenly spread from border to border: int64 (side², 2), row by row.

    Raises:
        ParameterError: fewer than two places a side. InputError: the patch does not fit.
    """
    if side < 2:
        raise ParameterError(f"a grid needs at least 2 places a side, got {side}.")
    size, patch = as_size(image_size), as_size(patch_size)
    check_fits(patch, size)
    rows, columns = (torch.linspace(0, whole - part, side).round().long() for whole, part in zip(size, patch))
    return torch.cartesian_prod(rows, columns)


def place_hits(
    net: nn.Module, images: Tensor, labels: Tensor, pixels: Tensor, mask: Tensor, grid: Tensor, batch: int = 200
) -> Tensor:
    """Which images an untargeted patch changes, at every place of a grid.

    Args:
        net: in eval mode. images, labels: float32 (N, C, H, W) in [0, 1], int64 (N,).
        pixels: (C, h, w), or (N, C, h, w) for a patch of its own in each image. mask: (1, h, w).
        grid: int64 (P, 2), from `place_grid`.

    Returns:
        float64 (P, N): 1 where the patch succeeds, 0 where not, nan for an image that is wrong when clean.

    Raises:
        InputError: train mode, malformed images or labels.
    """
    check_labels(labels, len(images))
    counts = predict(net, images, batch) == labels
    own = pixels[counts] if pixels.dim() == 4 else pixels
    seen, truth = images[counts], labels[counts]
    hits = torch.full((len(grid), len(images)), torch.nan, dtype=torch.float64)
    for number, place in enumerate(grid if len(seen) else ()):
        patched = paste(seen, own, mask, place.expand(len(seen), 2))
        hits[number, counts] = (predict(net, patched, batch) != truth).double()
    return hits


def place_saliency(gradients: Tensor, grid: Tensor, size: tuple[int, int]) -> Tensor:
    """The share of each image's input gradient (sum of absolute values) that lies under a patch at each place.

    Shares, so that an image with a large loss does not decide the map of all.

    Args:
        gradients: (N, C, H, W), from `qpatch.measure.input_gradients`. grid: int64 (P, 2). size: of the patch.

    Returns:
        float64 (P, N).
    """
    sizes = gradients.abs().sum(dim=1, keepdim=True).double()
    shares = sizes / sizes.sum(dim=(2, 3), keepdim=True).clamp_min(1e-300)
    sums = F.avg_pool2d(shares, size, stride=1) * (size[0] * size[1])
    return sums[:, 0, grid[:, 0], grid[:, 1]].T.contiguous()


def centrality(grid: Tensor) -> Tensor:
    """How near each place lies to the middle of the grid: float64 (P, 1); the map of one who knows no network."""
    middle = (grid.amin(0) + grid.amax(0)).double() / 2
    return -(grid.double() - middle).norm(dim=1, keepdim=True)


def map_agreement(tables: Mapping[str, Tensor], splits: int = 100, seed: int = 0) -> pd.DataFrame:
    """How well the map of one table predicts that of another *on other images*: Spearman's rank correlation.

    The correlation is over places.

    A map is the mean of a table over images. For each random split, one half of the images makes the first map and the
    other half the second, so that two maps cannot agree because they share the luck of their images. A table against
    itself gives the ceiling: two maps of one network from different images.

    Args:
        tables: name → float (P, N) with nan for images that do not count, or (P, 1) for a map without images.
        splits: random splits, over which the correlation is averaged. seed: of the splits.

    Returns:
        One row per unordered pair, each with itself included: first, second, value, low, high (95 % by Student's t,
        from a jackknife that leaves out a twentieth of the images at a time), n (images) and places. A map without any
        differences agrees with nothing: 0.

    Raises:
        InputError: tables of different places or images, or fewer than 20 images.
    """
    places = {table.shape[0] for table in tables.values()}
    counts = {table.shape[1] for table in tables.values()} - {1}
    if len(places) != 1 or len(counts) != 1 or min(counts) < _GROUPS:
        raise InputError(f"the tables must share their places and at least {_GROUPS} images, got {places} places and "
                         f"{counts or 'no'} images.")  # fmt: skip
    n, rng = counts.pop(), np.random.default_rng(seed)
    half = np.stack([rng.permutation(n) < n // 2 for _ in range(splits)], axis=1).astype(float)  # (N, splits)
    group = rng.permutation(n) % _GROUPS
    value = _agreements(tables, half, np.ones(n))
    left_out = np.stack([_agreements(tables, half, (group != number).astype(float)) for number in range(_GROUPS)])
    error = np.sqrt((_GROUPS - 1) * ((left_out - left_out.mean(axis=0)) ** 2).mean(axis=0))
    reach, names = student.ppf(0.975, _GROUPS - 1) * error, list(tables)
    return pd.DataFrame(
        {"first": names[i], "second": names[j], "value": value[i, j], "low": max(-1.0, value[i, j] - reach[i, j]),
         "high": min(1.0, value[i, j] + reach[i, j]), "n": n, "places": min(places)}
        for i in range(len(names)) for j in range(i, len(names))
    )  # fmt: skip


def _agreements(tables: Mapping[str, Tensor], half: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Every table's map from one half against every table's from the other, mean over splits and both ways round."""
    one, other = (np.stack([_standard_ranks(table.double().numpy(), part * kept[:, None]) for table in tables.values()])
                  for part in (half, 1 - half))  # fmt: skip
    mean = np.einsum("ips,jps->ij", one, other, optimize=True) / half.shape[1]
    return (mean + mean.T) / 2


def _standard_ranks(table: np.ndarray, part: np.ndarray) -> np.ndarray:
    """Ranks of the maps that each column of `part` (N, splits) makes, centred and of unit length: (P, splits)."""
    if table.shape[1] == 1:
        table = np.repeat(table, len(part), axis=1)
    there = ~np.isnan(table)
    maps = np.where(there, table, 0) @ part / np.maximum(there @ part, 1)
    ranks = rankdata(maps.round(12), axis=0)  # rounded, so that equal shares are tied whatever the order of the sum
    ranks -= ranks.mean(axis=0)
    length = np.linalg.norm(ranks, axis=0)
    return ranks / np.where(length > 0, length, 1)


def place_means(hits: Tensor) -> Tensor:
    """The map of a table, as a square picture: float64 (side, side)."""
    side = round(len(hits) ** 0.5)
    return hits.nanmean(dim=1).view(side, side)
