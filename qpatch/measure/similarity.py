"""How alike are the maps of two networks, and what would chance alone give? Cosine, Edge IoU and HOG cosine.

TriQDef (Guesmi, Ouni, Shafique 2026) compares input gradients (Table 3) and features (Figure 2) of one image at two
bit-widths. None of the three numbers means anything by itself: HOG histograms are not negative, so the cosine of two
unrelated ones is far from zero, and two gradients that both sit on the object in the middle share edges for nothing. So
every row here stands beside its chance levels: another image, shuffled pixels, and an independently trained network.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qpatch import maps
from qpatch.attacks.base import frozen
from qpatch.checks import check_eval, check_images, check_labels
from qpatch.defenses.triqdef import outputs
from qpatch.errors import InputError, ParameterError, one_of
from qpatch.measure.alignment import INPUT, mean_interval
from qpatch.measure.gradient_rows import partners
from qpatch.measure.gradients import SCORES

METRICS = ("cosine", "edge_iou", "hog_cosine")
SAME, DIFFERENT, SHUFFLED, INDEPENDENT = "same image", "different image", "shuffled", "independent net"
COMPARISONS = (SAME, DIFFERENT, SHUFFLED, INDEPENDENT)


class Pair(NamedTuple):
    """Two networks by name, what rows call them, and an independently trained network for the second one's place."""

    training: str
    pair: str
    first: str
    second: str
    stranger: str | None = None


@dataclass(frozen=True)
class Reading:
    """How one similarity reads two maps. Quantile and metrics are the paper's; all else it leaves open.

    Attributes:
        metric: one of `METRICS`. The cosine takes all values with their signs, the two others a map of one channel.
        reduction: how channels become one map, one of `qpatch.maps.REDUCTIONS`.
        quantile: of the Sobel magnitude, above which an edge is.
        cell, bins, block, norm: of the HOG, see `qpatch.maps.hog`.

    Raises:
        ParameterError: an unknown metric, reduction or norm.
    """

    metric: str
    reduction: str = "mean_abs"
    quantile: float = 0.85
    cell: int = 8
    bins: int = 9
    block: int = 1
    norm: str = "L2"

    def __post_init__(self):
        one_of(self.metric, METRICS, "metric")
        one_of(self.reduction, maps.REDUCTIONS, "reduction")
        one_of(self.norm, maps.BLOCK_NORMS, "block norm")

    def describe(self, values: Tensor) -> Tensor:
        """What is compared: (N, C, H, W) → (N, D), unit vectors or edge masks of 0 and 1; zero where nothing is."""
        values = values / values.abs().amax(dim=(1, 2, 3), keepdim=True).clamp_min(1e-30)  # gradients may be tiny
        if self.metric == "cosine":
            return F.normalize(values.flatten(1))
        pictures = maps.normalized(maps.to_maps(values, self.reduction))
        if self.metric == "edge_iou":
            return maps.edge_mask(pictures, self.quantile).flatten(1).float()
        return F.normalize(maps.hog(pictures, self.cell, self.bins, self.block, self.norm))

    def compare(self, first: Tensor, second: Tensor) -> Tensor:
        """Similarity of descriptions, image by image: (N, D) twice → (N,); 0 where one of them is zero."""
        common = (first * second).sum(dim=1)
        if self.metric != "edge_iou":
            return common
        return common / (first.sum(dim=1) + second.sum(dim=1) - common).clamp_min(1)


def observe(
    net: nn.Module, images: Tensor, labels: Tensor, layers: Iterable[str] = (), reduction: str = "mean_abs",
    batch: int = 100,
) -> dict[str, Tensor]:  # fmt: skip
    """What a network shows of each image: the input gradient of the cross-entropy, and maps of inner layers.

    Args:
        net: in eval mode. images, labels: float32 (N, C, H, W) in [0, 1], int64 (N,).
        layers: names of modules with outputs (N, channels, h, w).
        reduction: how the channels of a layer become one map.

    Returns:
        "input" → gradient, float32 (N, C, H, W); each layer → float32 (N, 1, h, w).

    Raises:
        InputError: train mode, or malformed images or labels. ParameterError: no such layer, unknown reduction.
    """
    check_eval(net)
    check_images(images, net)
    check_labels(labels, len(images))
    layers, parts = tuple(layers), []
    for x, y in zip(images.split(batch), labels.split(batch)):
        with frozen(net), outputs(net, layers) as kept:
            start = x.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(SCORES["cross-entropy"](net, start, y).sum(), start)
            features = [maps.to_maps(out.detach(), reduction)[:, None] for out in kept]
        parts.append([gradient, *features])
    return {name: torch.cat(own) for name, own in zip((INPUT, *layers), zip(*parts))}


def shuffle_pixels(values: Tensor, seed: int = 0) -> Tensor:
    """Each image's pixels in a random order, the same for all its channels: (N, C, H, W) with the same histogram."""
    n, _, height, width = values.shape
    order = torch.rand(n, height * width, generator=torch.Generator().manual_seed(seed)).argsort(dim=1)
    return values.flatten(2).gather(2, order[:, None].expand(-1, values.shape[1], -1)).view_as(values)


def similarity_rows(
    values: Mapping[str, Tensor], pairs: Sequence[Pair], readings: Sequence[Reading], labels: Tensor, *,
    comparisons: Sequence[str] = COMPARISONS, draws: int = 1000, seed: int = 0,
) -> pd.DataFrame:  # fmt: skip
    """Every reading of every pair of networks, beside its chance levels.

    "same image" compares two networks; "different image" takes the second one's map of an image of another class;
    "shuffled" shuffles the pixels of the second one's map; "independent net" takes the stranger in its place.

    Args:
        values: network → gradients or features of the same images in the same order, (N, C, H, W), from `observe`.
        pairs: without a stranger there is no row "independent net".
        readings: what is measured.
        labels: int64 (N,).
        comparisons: which of `COMPARISONS` there is time for; the same image is always among them.
        draws: resamples of the images for the intervals. seed: of partners, shuffles and resamples.

    Returns:
        One row per pair, reading and comparison: training, pair, metric, cell (of a HOG cosine, else nan), comparison,
        value, low, high (mean over images, 95 % bootstrap over images), gap, gap_low, gap_high (the same image's value
        minus this one, paired by image), n.

    Raises:
        InputError: images of a single class, or maps that a HOG cell does not fit into.
    """
    origins, each = [], []
    for reading in readings:
        cell = float(reading.cell) if reading.metric == "hog_cosine" else math.nan
        for (pair, comparison), value in _compared(values, pairs, reading, labels, seed, comparisons).items():
            origins.append({"training": pair.training, "pair": pair.pair, "first": pair.first, "second": pair.second,
                            "metric": reading.metric, "cell": cell, "comparison": comparison})  # fmt: skip
            each.append(value)
    return _rows(origins, each, draws, seed)


def layer_rows(
    seen: Mapping[str, Mapping[str, Mapping[str, Tensor]]], pairs: Sequence[Pair], layers: Sequence[str],
    labels: Tensor, *, counts: Sequence[int] = (4,), comparisons: Sequence[str] = COMPARISONS, draws: int = 1000, seed: int = 0,
) -> pd.DataFrame:  # fmt: skip
    """`similarity_rows` of the features of several layers: Edge IoU, and HOG cosine with some cells along a side.

    Args:
        seen: kind of image → network → what `observe` gave.
        counts: of HOG cells along a side, whatever the side of the map; those that leave a cell two pixels.

    Returns:
        The columns of `similarity_rows`, and points (the kind of image), layer, side of the map, and cells along it.
    """
    tables = []
    for points, own in seen.items():
        for layer in layers:
            values = {name: shown[layer] for name, shown in own.items()}
            side = next(iter(values.values())).shape[-1]
            readings = [Reading("edge_iou"), *(Reading("hog_cosine", cell=side // n) for n in counts if side >= 2 * n)]
            table = similarity_rows(values, pairs, readings, labels, comparisons=comparisons, draws=draws, seed=seed)
            tables.append(table.assign(points=points, layer=layer, side=side, cells=side / table["cell"]))
    return pd.concat(tables, ignore_index=True)


def pooled_rows(
    values: Mapping[str, Tensor], pairs: Sequence[Pair], readings: Mapping[str, Reading], labels: Tensor, *,
    draws: int = 1000, seed: int = 0,
) -> pd.DataFrame:  # fmt: skip
    """`similarity_rows` averaged over the pairs, for many ways to read the same maps.

    Args:
        readings: what a row calls the reading → the reading.

    Returns:
        One row per reading and comparison: reading, the fields of `Reading`, comparison, value, low, high, gap,
        gap_low, gap_high, n.
    """
    origins, each = [], []
    for name, reading in readings.items():
        found = _compared(values, pairs, reading, labels, seed)
        for comparison in COMPARISONS:
            if own := [value for (_, kind), value in found.items() if kind == comparison]:
                origins.append({"reading": name, **asdict(reading), "comparison": comparison})
                each.append(torch.stack(own).mean(dim=0))
    return _rows(origins, each, draws, seed)


def _compared(
    values, pairs, reading: Reading, labels: Tensor, seed: int, comparisons: Sequence[str] = COMPARISONS
) -> dict[tuple[Pair, str], Tensor]:
    other = partners(labels, False, seed)
    wanted = {name for pair in pairs for name in (pair.first, pair.second, pair.stranger) if name}
    seen = {name: reading.describe(values[name]) for name in wanted}
    seconds = {pair.second for pair in pairs} if SHUFFLED in comparisons else ()
    shuffled = {name: reading.describe(shuffle_pixels(values[name], seed)) for name in seconds}
    found = {}
    for pair in pairs:
        first, second = seen[pair.first], seen[pair.second]
        found[pair, SAME] = reading.compare(first, second)
        if DIFFERENT in comparisons:
            found[pair, DIFFERENT] = reading.compare(first, second[other])
        if SHUFFLED in comparisons:
            found[pair, SHUFFLED] = reading.compare(first, shuffled[pair.second])
        if pair.stranger and INDEPENDENT in comparisons:
            found[pair, INDEPENDENT] = reading.compare(first, seen[pair.stranger])
    return found


def _rows(origins: list[dict], each: list[Tensor], draws: int, seed: int) -> pd.DataFrame:
    """Means over images with intervals; each block of comparisons starts with the same image."""
    values = torch.stack(each).double()
    start, starts = 0, []
    for index, origin in enumerate(origins):
        start = index if origin["comparison"] == SAME else start
        starts.append(start)
    gaps = values[starts] - values
    columns = {"value": values.mean(1), "gap": gaps.mean(1)}
    columns |= dict(zip(("low", "high"), mean_interval(values, draws, seed)))
    columns |= dict(zip(("gap_low", "gap_high"), mean_interval(gaps, draws, seed)))
    wanted = ("value", "low", "high", "gap", "gap_low", "gap_high")
    return pd.DataFrame(origins).assign(**{name: columns[name].numpy() for name in wanted}, n=values.shape[1])
