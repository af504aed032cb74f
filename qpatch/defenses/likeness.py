"""How alike the maps of several bit-widths are, as TriQDef's penalties measure it: soft edges and soft HOG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from qpatch.errors import InputError, ParameterError, one_of
from qpatch.maps import BLOCK_NORMS, REDUCTIONS, normalized, soft_edges, soft_hog, to_maps

PAIRS = ("mean", "sum")


@dataclass(frozen=True)
class Likeness:
    """Over pairs of widths i < j: α·SoftDice(S(E(mᵢ)), S(E(mⱼ))) + β·cos(H(mᵢ), H(mⱼ)), mean over images.

    TriQDef's equation 2 (features) and its twin for input gradients. E is the Sobel magnitude, S the sigmoid mask at a
    quantile, H the soft HOG; see `qpatch.maps`. α, β, quantile and k are the paper's; the paper leaves the rest open.

    Attributes:
        alpha, beta: weights of the two parts.
        quantile, k: of the soft edge mask. smoothing: constant of SoftDice, in pixels.
        reduction: how channels become one map, one of `qpatch.maps.REDUCTIONS`.
        cells: HOG cells along a side, so that a 32-pixel and an 8-pixel map are seen equally coarsely.
        bins, block, norm, sharpness: of the soft HOG.
        pairs: "mean" over pairs, so that the penalty does not grow when widths are added, or "sum", as printed.

    Raises:
        ParameterError: an unknown reduction, norm or rule for pairs; a count that is not positive.
    """

    alpha: float = 0.5
    beta: float = 1.0
    quantile: float = 0.85
    k: float = 100.0
    smoothing: float = 1.0
    reduction: str = "mean_abs"
    cells: int = 4
    bins: int = 9
    block: int = 1
    norm: str = "L2"
    sharpness: float = 8.0
    pairs: str = "mean"

    def __post_init__(self):
        one_of(self.reduction, REDUCTIONS, "reduction")
        one_of(self.norm, BLOCK_NORMS, "block norm")
        one_of(self.pairs, PAIRS, "rule for pairs")
        if min(self.cells, self.bins, self.block) < 1:
            raise ParameterError(f"cells, bins and block must be positive, got {self.cells}, {self.bins}, {self.block}.")

    def __call__(self, values: Sequence[Tensor]) -> Tensor:
        """The penalty.

        Args:
            values: one float tensor (N, C, H, W) per width: features, or input gradients, of the same images.

        Returns:
            A scalar, at most (α + β) under "mean"; 0 for a single width.

        Raises:
            InputError: tensors of different shapes, or maps with fewer pixels than cells.
        """
        dice, cosine = self.parts(values)
        return self.alpha * dice + self.beta * cosine

    def parts(self, values: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """SoftDice and HOG cosine apart, each over the pairs."""
        dice, cosine = self.tables(values)
        return self._over_pairs(dice.mean(dim=2)), self._over_pairs(cosine.mean(dim=2))

    def tables(self, values: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """SoftDice and HOG cosine of every two widths for every image: (W, W, N) each."""
        shape = values[0].shape
        if any(other.shape != shape for other in values):
            raise InputError(f"the widths' maps differ in shape: {', '.join(str(tuple(v.shape)) for v in values)}.")
        count, side = len(values), min(shape[-2:])
        if side < max(3, self.cells * self.block):
            raise InputError(f"maps of {tuple(shape[-2:])} pixels are too small for {self.cells} HOG cells along a side.")
        maps = normalized(torch.cat([to_maps(v.float(), self.reduction) for v in values]))  # all widths in one go
        masks = soft_edges(maps, self.quantile, self.k).view(count, shape[0], -1)
        histograms = soft_hog(maps, side // self.cells, self.bins, self.block, self.norm, self.sharpness)
        histograms = F.normalize(histograms.view(count, shape[0], -1), dim=2, eps=1e-12)
        overlap = torch.einsum("inp,jnp->ijn", masks, masks)
        sizes = masks.sum(dim=2)
        dice = (2 * overlap + self.smoothing) / (sizes[:, None] + sizes[None] + self.smoothing)
        return dice, torch.einsum("inp,jnp->ijn", histograms, histograms)

    def _over_pairs(self, table: Tensor) -> Tensor:
        """Of a symmetric (W, W) table, the entries above the diagonal."""
        above = table.triu(diagonal=1).sum()
        pairs = len(table) * (len(table) - 1) // 2
        return above / max(pairs, 1) if self.pairs == "mean" else above
