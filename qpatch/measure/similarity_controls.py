"""What the similarities of `qpatch.measure.similarity` are worth: random maps, masks with ties, soft versions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from torch import Tensor, nn

from qpatch import maps
from qpatch.defenses.triqdef import outputs
from qpatch.errors import ParameterError, one_of
from qpatch.measure.alignment import mean_interval
from qpatch.measure.gradient_rows import partners
from qpatch.measure.similarity import DIFFERENT, SAME, Pair, Reading

FIELDS = ("white", "smooth", "same envelope")
CHANNELS = ("channels together", "each channel")
STRICT, LOOSE = "above the percentile", "at or above it"
THRESHOLDS = (STRICT, LOOSE)


def random_maps(kind: str, n: int, side: int = 32, seed: int = 0) -> Tensor:
    """Maps of nothing, (n, 1, side, side): "white" Gaussian noise, the same made "smooth" by a Gaussian of 1.5 pixels,
    or white noise under the "same envelope", a Gaussian bell in the middle as wide as a quarter of the side."""
    noise = torch.randn(n, 1, side, side, generator=torch.Generator().manual_seed(seed))
    if one_of(kind, FIELDS, "random field") == "smooth":
        bell = _bell(13, 1.5)
        return F.conv2d(F.pad(noise, (6, 6, 6, 6), mode="replicate"), torch.outer(bell, bell)[None, None])
    bell = _bell(side, side / 4)
    return noise * torch.outer(bell, bell) if kind == "same envelope" else noise


def _bell(length: int, sigma: float) -> Tensor:
    bell = torch.exp(-((torch.arange(length) - (length - 1) / 2) ** 2) / (2 * sigma**2))
    return bell / bell.sum()


def expected_hog_cosine(cell: int, bins: int = 9) -> float:
    """What two unrelated white maps reach when each cell is normalised by itself (block 1, norm "L2").

    A cell's histogram has B equal means μ and, from cell² pixels with Rayleigh magnitudes, a relative variance
    v = (4B/π − 1) / cell² of each entry; the cosine of two of them is about B·μ² / (B·μ² + B·μ²·v) = 1 / (1 + v). For
    large cells it tends to one, whatever the maps show.
    """
    return 1 / (1 + (4 * bins / math.pi - 1) / cell**2)


def random_rows(
    readings: Mapping[str, Reading], side: int = 32, n: int = 200, kinds: Iterable[str] = FIELDS, seed: int = 0
) -> pd.DataFrame:
    """Similarity of independent random maps of the same kind under each reading.

    Returns:
        One row per reading and kind: reading, metric, cell, kind, side, value (mean), low, high (95 % of the mean), n.
    """
    rows = []
    for kind in kinds:
        pairs = [random_maps(kind, n, side, seed + offset) for offset in (1, 2)]
        for name, reading in readings.items():
            value = reading.compare(*map(reading.describe, pairs)).double()
            half = 1.96 * float(value.std()) / math.sqrt(n)
            mean = float(value.mean())
            rows.append({"reading": name, "metric": reading.metric, "cell": reading.cell, "kind": kind, "side": side,
                         "value": mean, "low": mean - half, "high": mean + half, "n": n})  # fmt: skip
    return pd.DataFrame(rows)


@torch.no_grad()
def tie_rows(
    nets: Mapping[str, nn.Module], pairs: Sequence[Pair], images: Tensor, labels: Tensor, layers: Sequence[str],
    quantile: float = 0.85, seed: int = 0,
) -> pd.DataFrame:  # fmt: skip
    """How much of a feature's Edge IoU is made by ties: where a ReLU's map is mostly zero, so is the percentile.

    A mask "above" the percentile is then too small, one "at or above it" covers the whole map, and two masks that cover
    everything overlap perfectly whatever the images show. Two empty masks, as two full ones, count as equal (1), as in
    any implementation with a smoothing constant.

    Args:
        nets: by name, those in `pairs`. images, labels: of which the features are taken, few are enough.
        layers: names of modules.

    Returns:
        One row per pair, layer, way to make maps (`CHANNELS`), threshold and comparison ("same image", "different
        image"): training, pair, layer, maps, threshold, comparison, value, low, high (Edge IoU, mean over images with a
        95 % bootstrap), zeros (share of zero activations), ties (share of pixels equal to the percentile), area (share
        of the map that a mask covers), empty (share of maps without any edge), n.
    """
    other, origins, each = partners(labels, False, seed), [], []
    seen = {name: _masks(nets[name], images, layers, quantile) for name in {n for pair in pairs for n in pair[2:4]}}
    for pair in pairs:
        for key, (masks, facts) in seen[pair.first].items():
            second, facts_2 = seen[pair.second][key]
            both = {name: (value + facts_2[name]) / 2 for name, value in facts.items()}
            for comparison, index in ((SAME, slice(None)), (DIFFERENT, other)):
                each.append(_overlap(masks, second[index]))
                origin = {"training": pair.training, "pair": pair.pair} | dict(zip(("layer", "maps", "threshold"), key))
                origins.append({**origin, "comparison": comparison, **both})
    return _with_means(origins, each, seed)


def _masks(net: nn.Module, images: Tensor, layers: Sequence[str], quantile: float) -> dict[tuple, tuple[Tensor, dict]]:
    """(layer, maps, threshold) → bool (N, maps, pixels), and ties, area and empty."""
    with outputs(net, tuple(layers)) as kept:
        net(images)
    found = {}
    for layer, features in zip(layers, kept):
        for way, stack in zip(CHANNELS, (maps.to_maps(features)[:, None], features)):
            edges = maps.sobel(stack.flatten(0, 1))
            ties = _share(edges == maps.threshold(edges, quantile))
            facts = {"zeros": _share(stack == 0), "ties": ties, "empty": _share(edges.amax(dim=(1, 2)) == 0)}
            for threshold, mask in _both_masks(stack, quantile).items():
                found[layer, way, threshold] = mask, {**facts, "area": _share(mask)}
    return found


def _both_masks(stack: Tensor, quantile: float) -> dict[str, Tensor]:
    """(N, maps, H, W) → threshold → bool (N, maps, pixels)."""
    edges = maps.sobel(stack.flatten(0, 1))
    level = maps.threshold(edges, quantile)
    masks = zip(THRESHOLDS, (edges > level, edges >= level))
    return {threshold: mask.view(*stack.shape[:2], -1) for threshold, mask in masks}


@torch.no_grad()
def sparsity_rows(
    nets: Sequence[nn.Module], images: Tensor, labels: Tensor, layer: str, shares: Iterable[float],
    quantile: float = 0.85, seed: int = 0,
) -> pd.DataFrame:  # fmt: skip
    """What sparse features do to Edge IoU: from each channel only its largest values are kept, as behind a high bias.

    Args:
        nets: two networks. images, labels: float32 (N, C, H, W), int64 (N,).
        layer: the module whose output is looked at, each channel a map.
        shares: of the pixels that stay active.

    Returns:
        One row per share, threshold and comparison: active, threshold, comparison, value, low, high, n.
    """
    other, origins, each, features = partners(labels, False, seed), [], [], []
    for net in nets:
        with outputs(net, (layer,)) as kept:
            net(images)
        features += kept
    for share in shares:
        masks = [_both_masks(_sparse(own, share), quantile) for own in features]
        for threshold in THRESHOLDS:
            for comparison, index in ((SAME, slice(None)), (DIFFERENT, other)):
                each.append(_overlap(masks[0][threshold], masks[1][threshold][index]))
                origins.append({"active": share, "threshold": threshold, "comparison": comparison})
    return _with_means(origins, each, seed)


def _with_means(origins: list[dict], each: list[Tensor], seed: int) -> pd.DataFrame:
    values = torch.stack(each).double()
    low, high = mean_interval(values, seed=seed)
    means = {"value": values.mean(1), "low": low, "high": high}
    return pd.DataFrame(origins).assign(**{name: own.numpy() for name, own in means.items()}, n=values.shape[1])


def _sparse(features: Tensor, share: float) -> Tensor:
    level = features.flatten(2).quantile(1 - share, dim=2)[..., None, None]
    return F.relu(features - level)


def _share(hits: Tensor) -> float:
    return float(hits.double().mean())


def _overlap(first: Tensor, second: Tensor) -> Tensor:
    """Edge IoU averaged over an image's maps: bool (N, maps, pixels) twice → (N,)."""
    common, union = (first & second).sum(dim=2), (first | second).sum(dim=2)
    return torch.where(union > 0, common / union.clamp_min(1), 1.0).mean(dim=1)


def soft_rows(values: Mapping[str, Tensor], pairs: Sequence[Pair], labels: Tensor, *, cell: int = 8, seed: int = 0):
    """Do TriQDef's differentiable similarities put images in the order of the hard ones?

    Args:
        values, pairs, labels: as in `qpatch.measure.similarity_rows`.
        cell: of both HOGs.

    Returns:
        One row per pair and metric ("edge_iou": SoftDice of soft masks against the Dice of hard ones; "hog_cosine"):
        training, pair, metric, value, low, high (Spearman over images, Fisher's interval in Bonett and Wright's form),
        soft, hard, soft_different, hard_different (means; the latter two with an image of another class), n.
    """
    other, rows = partners(labels, False, seed), []
    hard_of = {"edge_iou": Reading("edge_iou"), "hog_cosine": Reading("hog_cosine", cell=cell)}
    names = {name for pair in pairs for name in pair[2:4]}
    hard = {(metric, name): reading.describe(values[name]) for metric, reading in hard_of.items() for name in names}
    soft = {(metric, name): own for name in names for metric, own in _soft(values[name], cell).items()}
    for pair in pairs:
        for metric, reading in hard_of.items():
            softly = maps.soft_dice if metric == "edge_iou" else maps.cosine
            a, b = ((metric, name) for name in pair[2:4])
            true = [reading.compare(hard[a], hard[b][index]) for index in (slice(None), other)]
            if metric == "edge_iou":
                true = [2 * iou / (1 + iou) for iou in true]
            smooth = [softly(soft[a], soft[b][index]) for index in (slice(None), other)]
            value, low, high = _rank(smooth[0], true[0])
            columns = ("soft", "soft_different", "hard", "hard_different")
            means = dict(zip(columns, [float(each.mean()) for each in smooth + true]))
            rows.append({"training": pair.training, "pair": pair.pair, "metric": metric, "value": value, "low": low,
                         "high": high, **means, "n": len(labels)})  # fmt: skip
    return pd.DataFrame(rows)


def _soft(values: Tensor, cell: int) -> dict[str, Tensor]:
    values = values / values.abs().amax(dim=(1, 2, 3), keepdim=True).clamp_min(1e-30)
    pictures = maps.normalized(maps.to_maps(values))
    return {"edge_iou": maps.soft_edges(pictures), "hog_cosine": maps.soft_hog(pictures, cell)}


def _rank(first: Tensor, second: Tensor) -> tuple[float, float, float]:
    if len(first) < 5:
        raise ParameterError(f"a rank correlation needs at least five images, got {len(first)}.")
    value = float(spearmanr(first.numpy(), second.numpy()).statistic)
    half = 1.96 * math.sqrt((1 + value**2 / 2) / (len(first) - 3))
    middle = np.arctanh(min(max(value, -0.9999), 0.9999))
    return value, float(np.tanh(middle - half)), float(np.tanh(middle + half))
