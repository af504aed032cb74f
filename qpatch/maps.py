"""Edges and oriented gradients of maps, batched in torch: as scikit-image has them, and soft versions to train with.

A map is one channel of numbers over an image: an input gradient or a feature, with its channels put together. The hard
versions equal scikit-image's. The soft ones are smooth everywhere, constant and zero maps included, so they may stand in
a loss and be differentiated twice (TriQDef's penalties; Guesmi, Ouni, Shafique 2026, equation 2).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from qpatch.errors import InputError, ParameterError, one_of

REDUCTIONS = ("mean_abs", "l2", "mean")
BLOCK_NORMS = ("L2", "L2-Hys")
_TINY = 1e-12


def to_maps(values: Tensor, reduction: str = "mean_abs") -> Tensor:
    """Channels put together: (N, C, H, W) → (N, H, W).

    Args:
        reduction: "mean_abs" (mean of absolute values), "l2" (root of the sum of squares), or "mean".

    Raises:
        InputError: not four axes. ParameterError: an unknown reduction.
    """
    if values.dim() != 4:
        raise InputError(f"maps are made of (N, C, H, W), got {tuple(values.shape)}.")
    if one_of(reduction, REDUCTIONS, "reduction") == "mean_abs":
        return values.abs().mean(dim=1)
    return values.square().sum(dim=1).add(_TINY).sqrt() if reduction == "l2" else values.mean(dim=1)


def normalized(maps: Tensor) -> Tensor:
    """Each map brought to 0…1; a constant map becomes zero. Without it a sigmoid of raw gradients is flat at one half."""
    low, high = maps.amin(dim=(1, 2), keepdim=True), maps.amax(dim=(1, 2), keepdim=True)
    return (maps - low) / (high - low).clamp_min(_TINY)


# Edges ------------------------------------------------------------------------------------------------------------


def sobel(maps: Tensor, smooth: bool = False) -> Tensor:
    """Sobel edge magnitude, as `skimage.filters.sobel`: √((h² + v²) / 2) with weights (1, 2, 1)/4 × (1, 0, −1).

    Args:
        maps: (N, H, W).
        smooth: round the root's tip off, so that second derivatives exist where there is no edge at all.

    Returns:
        (N, H, W), not negative, in the maps' units.
    """
    _check(maps)
    wide = F.pad(maps[:, None], (1, 1, 1, 1), mode="replicate")[:, 0]
    down, right = wide[:, :-2] - wide[:, 2:], wide[:, :, :-2] - wide[:, :, 2:]  # slices: a third of a convolution's time
    down = 0.25 * (down[:, :, :-2] + down[:, :, 2:]) + 0.5 * down[:, :, 1:-1]
    right = 0.25 * (right[:, :-2] + right[:, 2:]) + 0.5 * right[:, 1:-1]
    squares = (down.square() + right.square()) / 2
    return _smooth_root(squares) if smooth else squares.sqrt()


def threshold(edges: Tensor, quantile: float = 0.85) -> Tensor:
    """The value that this share of each map's edges stays below: (N, 1, 1), without gradient."""
    if not 0 < quantile < 1:
        raise ParameterError(f"the quantile must lie in (0, 1), got {quantile}.")
    values = edges.detach().flatten(1)
    rank = float(values.new_tensor(quantile) * (values.shape[1] - 1))  # in the values' precision, as torch.quantile
    above = values.topk(values.shape[1] - int(rank), dim=1).values  # a quantile near 1 needs no full sort
    return above[:, -1].lerp(above[:, -2:][:, 0], rank - int(rank))[:, None, None]


def edge_mask(maps: Tensor, quantile: float = 0.85) -> Tensor:
    """Where a map's Sobel magnitude exceeds its own quantile: bool (N, H, W); nowhere in a constant map."""
    edges = sobel(maps)
    return edges > threshold(edges, quantile)


def edge_iou(a: Tensor, b: Tensor, quantile: float = 0.85) -> Tensor:
    """Edge IoU of pairs of maps, |A ∩ B| / |A ∪ B| of their edge masks: (N,), nan where neither has an edge.

    Two independent masks that hold a share q each have an expected IoU of q / (2 − q): 0.081 at the 85th percentile.
    """
    return mask_iou(edge_mask(a, quantile), edge_mask(b, quantile))


def mask_iou(a: Tensor, b: Tensor) -> Tensor:
    """|A ∩ B| / |A ∪ B| of pairs of bool masks: (N,), nan where both are empty."""
    a, b = a.flatten(1), b.flatten(1)
    return (a & b).sum(dim=1) / (a | b).sum(dim=1)


def soft_edges(maps: Tensor, quantile: float = 0.85, k: float = 100.0) -> Tensor:
    """S(A; τ, k) = sigmoid(k·(A − τ)) of the normalised Sobel magnitude A, τ its quantile: in (0, 1), (N, H, W)."""
    edges = normalized(sobel(maps, smooth=True))
    return torch.sigmoid(k * (edges - threshold(edges, quantile)))


def soft_dice(a: Tensor, b: Tensor, smoothing: float = 1.0) -> Tensor:
    """(2·Σab + s) / (Σa + Σb + s) of pairs of soft masks: (N,), in (0, 1]."""
    a, b = a.flatten(1), b.flatten(1)
    return (2 * (a * b).sum(dim=1) + smoothing) / (a.sum(dim=1) + b.sum(dim=1) + smoothing)


# Oriented gradients ----------------------------------------------------------------------------------------------


def hog(maps: Tensor, cell: int = 8, bins: int = 9, block: int = 1, norm: str = "L2-Hys") -> Tensor:
    """Histogram of oriented gradients, as `skimage.feature.hog`: (N, features).

    Args:
        maps: (N, H, W).
        cell: side of a cell in pixels.
        bins: unsigned orientations.
        block: side of a block in cells, over which histograms are normalised.
        norm: of a block, one of `BLOCK_NORMS`.

    Raises:
        InputError: maps smaller than a block. ParameterError: an unknown norm or a count that is not positive.
    """
    down, right = _slopes(maps)
    angle = torch.rad2deg(torch.atan2(down, right)) % 180
    index = (angle / (180 / bins)).long().clamp(max=bins - 1)
    votes = F.one_hot(index, bins).movedim(-1, 1) * torch.hypot(down, right)[:, None]
    return _blocks(votes, cell, block, norm)


def soft_hog(maps: Tensor, cell: int = 8, bins: int = 9, block: int = 1, norm: str = "L2", sharpness: float = 8.0) -> Tensor:
    """`hog` with a smooth vote: softmax over bins of sharpness·cos 2(θ − θ_bin), times a rounded-off magnitude.

    cos 2θ and sin 2θ come from the slopes without an arc tangent, so nothing is undefined where a map is flat.

    Returns:
        (N, features); zero for a constant map.
    """
    down, right = _slopes(maps)
    squares = down.square() + right.square()
    double = torch.stack([right.square() - down.square(), 2 * right * down], dim=1) / (squares + _TINY)[:, None]
    centres = (torch.arange(bins, device=maps.device, dtype=maps.dtype) + 0.5) * (2 * math.pi / bins)
    towards = torch.stack([centres.cos(), centres.sin()], dim=1)
    votes = (sharpness * torch.einsum("bk,nkhw->nbhw", towards, double)).softmax(dim=1)
    return _blocks(votes * _smooth_root(squares)[:, None], cell, block, norm)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of pairs of vectors or maps, flattened: (N,); zero, with no gradient, if one of them is zero."""
    a, b = a.flatten(1), b.flatten(1)
    alive = (a.detach().norm(dim=1) > _TINY) & (b.detach().norm(dim=1) > _TINY)
    # a zero vector's second derivative is 0/0, so ones stand in for it
    a, b = (torch.where(alive[:, None], values, 1.0) for values in (a, b))
    return torch.where(alive, F.cosine_similarity(a, b, dim=1, eps=_TINY), 0.0)


def _slopes(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Central differences down and right, zero at the border, as scikit-image's hog takes them."""
    _check(maps)
    down = F.pad(maps[:, 2:] - maps[:, :-2], (0, 0, 1, 1))
    right = F.pad(maps[:, :, 2:] - maps[:, :, :-2], (1, 1))
    return down, right


def _blocks(votes: Tensor, cell: int, block: int, norm: str) -> Tensor:
    """Mean votes per cell, and every block of cells normalised: (N, bins, H, W) → (N, features)."""
    one_of(norm, BLOCK_NORMS, "block norm")
    if min(cell, block) < 1:
        raise ParameterError(f"cell and block must be positive, got {cell} and {block}.")
    if min(votes.shape[-2:]) < cell * block:
        raise InputError(f"a block of {block} cells of {cell} pixels does not fit into {tuple(votes.shape[-2:])}.")
    cells = F.avg_pool2d(votes, cell)
    n, bins = cells.shape[:2]
    parts = F.unfold(cells, block).view(n, bins, block * block, -1).permute(0, 3, 2, 1).flatten(2)  # N × blocks × values
    parts = _unit(parts)
    if norm == "L2-Hys":
        parts = _unit(parts.clamp(max=0.2))
    return parts.flatten(1)


def _unit(parts: Tensor) -> Tensor:
    return parts / (parts.square().sum(dim=-1, keepdim=True) + 1e-10).sqrt()


def _smooth_root(squares: Tensor) -> Tensor:
    """√(s + ε²) − ε: zero at zero, and smooth there."""
    epsilon = 1e-4
    return (squares + epsilon**2).sqrt() - epsilon


def _check(maps: Tensor) -> None:
    if maps.dim() != 3 or not maps.is_floating_point() or min(maps.shape[1:]) < 3:
        raise InputError(f"maps must be floats of shape (N, H, W) with at least 3×3 values, got {tuple(maps.shape)}.")
