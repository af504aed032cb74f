"""What TriQDef's penalties measure: the maps they look at, their values beside the hard measures, and what they push to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import combinations

import pandas as pd
import torch
from scipy import stats
from torch import Tensor

from qpatch.defenses import Likeness
from qpatch.defenses.input_gradient import input_gradients as differentiable_gradients
from qpatch.defenses.triqdef import outputs
from qpatch.errors import InputError
from qpatch.maps import cosine, edge_iou, hog, sobel, threshold, to_maps
from qpatch.measure.gradients import input_gradients
from qpatch.measure.stats import wilson
from qpatch.quant import MultiBit

GRADIENT = "input gradient"
SAME, OTHER = "the same image", "another image"


def width_maps(
    net: MultiBit, images: Tensor, labels: Tensor, layers: Iterable[str], bits: Iterable[int]
) -> dict[str, list[Tensor]]:
    """The features and input gradients of every width, as the penalties see them.

    Returns:
        "input gradient" and each layer's name → one float32 tensor (N, C, H, W) per width, in the order of `bits`.

    Raises:
        InputError: train mode, malformed images. ParameterError: no such layer or width.
    """
    layers, found = tuple(layers), {GRADIENT: []} | {name: [] for name in layers}
    for width in bits:
        view = net.at(width)
        found[GRADIENT].append(input_gradients(view, images, labels))
        with outputs(view, layers) as kept, torch.no_grad():
            view(images)
        for name, values in zip(layers, kept):
            found[name].append(values.float())
    return found


def soft_hard_rows(maps: Mapping[str, Sequence[Tensor]], bits: Sequence[int], likeness: Likeness = Likeness()) -> pd.DataFrame:
    """The soft measures of the penalties beside the hard ones of the tables, on the very same maps.

    Returns:
        one row per map, measure ("edges": SoftDice and Edge IoU; "orientations": cosines of soft and hard HOG), pair of
        widths (first, second) and comparison (the same image, or another image in the second width: the chance level):
        soft, hard (means over images), rank_correlation (Spearman over images), low, high (95 %, Fisher's z), n.
    """
    found = []
    for name, values in maps.items():
        cell = min(values[0].shape[-2:]) // likeness.cells
        for (i, first), (j, second) in combinations(enumerate(bits), 2):
            for compared, other in ((SAME, values[j]), (OTHER, values[j].roll(1, 0))):
                dice, turned = (table[0, 1] for table in likeness.tables([values[i], other]))
                hard = [to_maps(each.float(), likeness.reduction) for each in (values[i], other)]
                oriented = [hog(each, cell, likeness.bins, likeness.block, likeness.norm) for each in hard]
                both = {"edges": (dice, edge_iou(*hard, likeness.quantile)), "orientations": (turned, cosine(*oriented))}
                for measure, (soft, strict) in both.items():
                    origin = {"map": name, "measure": measure, "first": first, "second": second, "compared": compared}
                    found.append({**origin, "soft": float(soft.mean()), "hard": float(strict.nanmean()), **_ranks(soft, strict)})
    return pd.DataFrame(found)


def option_rows(maps: Mapping[str, Sequence[Tensor]], options: Mapping[str, Likeness]) -> pd.DataFrame:
    """How much the open choices of the penalty matter: every option on the same maps, against the first one.

    Returns:
        one row per map and option: same, other (mean over pairs and images: the same image, another image), contrast (the
        part of the largest possible value by which they differ), rank_correlation with the first option over images and
        pairs, n.
    """
    found = []
    for name, values in maps.items():
        pairs = list(combinations(range(len(values)), 2))
        reference = None
        for option, likeness in options.items():
            scores = {
                compared: torch.stack([_score(likeness, values[i], values[j].roll(shift, 0)) for i, j in pairs])
                for compared, shift in ((SAME, 0), (OTHER, 1))
            }
            reference = scores[SAME] if reference is None else reference
            same, other = (float(scores[compared].mean()) for compared in (SAME, OTHER))
            ranks = float(stats.spearmanr(scores[SAME].flatten(), reference.flatten()).statistic)
            top = likeness.alpha + likeness.beta
            found.append({"map": name, "option": option, "same": same, "other": other, "contrast": (same - other) / top,
                          "rank_correlation": ranks, "n": scores[SAME].numel()})  # fmt: skip
    return pd.DataFrame(found)


def pushed(values: Tensor, fixed: Tensor, likeness: Likeness, steps: int = 60, rate: float = 0.02) -> tuple[Tensor, list[float]]:
    """Maps that move freely down the penalty's gradient, away from fixed ones: what the penalty wants.

    Args:
        values: (N, 1, H, W) in [0, 1], moved by Adam. fixed: the same shape, not moved.
        likeness: the penalty. steps, rate: of Adam, in units of the maps.

    Returns:
        The moved maps, clipped to [0, 1], and the penalty before each step.

    Raises:
        InputError: maps of different shapes.
    """
    if values.shape != fixed.shape:
        raise InputError(f"maps differ in shape: {tuple(values.shape)} and {tuple(fixed.shape)}.")
    moving, history = values.clone().requires_grad_(True), []
    optimizer = torch.optim.Adam([moving], lr=rate)
    for _ in range(steps):
        optimizer.zero_grad()
        penalty = likeness([moving, fixed])
        penalty.backward()
        history.append(float(penalty.detach()))
        optimizer.step()
        with torch.no_grad():
            moving.clamp_(0, 1)
    return moving.detach(), history


def flat_rows(stack: Sequence[Tensor], bits: Sequence[int], k: float = 100.0) -> pd.DataFrame:
    """How flat soft edge masks are if a map is not brought to 0…1 first.

    Args:
        stack: input gradients, (N, C, H, W) per width of `bits`.

    Returns:
        one row per width: magnitude (median over images of the mean absolute gradient), flat (share of images whose mask
        spans less than a tenth of its range), low, high (Wilson), n.
    """
    found = []
    for width, values in zip(bits, stack):
        maps = to_maps(values)
        edges = sobel(maps)
        masks = torch.sigmoid(k * (edges - threshold(edges))).flatten(1)
        flat = int((masks.amax(dim=1) - masks.amin(dim=1) < 0.1).sum())
        low, high = wilson(flat, len(maps))
        magnitude = float(maps.flatten(1).mean(dim=1).median())
        found.append({"width": width, "magnitude": magnitude, "flat": flat / len(maps), "low": low, "high": high, "n": len(maps)})
    return pd.DataFrame(found)


def slope_rows(
    net: MultiBit, images: Tensor, labels: Tensor, bits: Sequence[int], likeness: Likeness = Likeness(), *,
    batch: int = 16, step: float = 1e-3,
) -> pd.DataFrame:  # fmt: skip
    """How much of what the slope of the gradient penalty promises does a small step along it keep? Batch by batch.

    The penalty compares each width with the next one of `bits` (the last with the first). The weights of the named width
    move by `step` of their length, forth and back along the slope, and are put back. One would be a perfect slope; kinks
    of ReLU and the staircases of quantizers, which no derivative sees, make it less.

    Returns:
        one row per width: value (mean over batches of found change / promised change), low, high (95 %, Student), n
        (batches).
    """
    found = []
    for width, other in zip(bits, [*bits[1:], bits[0]]):
        view, ratios = net.at(width), []
        weights = [weight for weight in view.parameters() if weight.dim() > 1]
        for x, y in zip(images.split(batch), labels.split(batch)):
            target = differentiable_gradients(net.at(other).eval(), x, y).detach()
            view.train()  # so that gradients pass the quantizers on to the latent weights

            def penalty() -> Tensor:
                return likeness([differentiable_gradients(view, x, y), target])

            slopes = torch.autograd.grad(penalty(), weights)
            size = step * _norm(weights) / _norm(slopes)
            values = []
            for sign in (1, -1):
                with _moved(weights, slopes, sign * size):
                    values.append(float(penalty().detach()))
            net.eval()
            ratios.append((values[0] - values[1]) / (2 * size * _norm(slopes) ** 2))
        ratios = torch.tensor(ratios)
        half = float(stats.t.ppf(0.975, len(ratios) - 1)) * float(ratios.std()) / len(ratios) ** 0.5
        mean = float(ratios.mean())
        found.append({"width": width, "value": mean, "low": mean - half, "high": mean + half, "n": len(ratios)})
    return pd.DataFrame(found)


def _norm(tensors: Sequence[Tensor]) -> float:
    return float(sum(tensor.detach().double().square().sum() for tensor in tensors)) ** 0.5


@contextmanager
def _moved(weights: Sequence[Tensor], slopes: Sequence[Tensor], size: float) -> Iterator[None]:
    kept = [weight.detach().clone() for weight in weights]
    with torch.no_grad():
        for weight, slope in zip(weights, slopes):
            weight.add_(size * slope)
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, before in zip(weights, kept):
                weight.copy_(before)


def _score(likeness: Likeness, first: Tensor, second: Tensor) -> Tensor:
    dice, turned = (table[0, 1] for table in likeness.tables([first, second]))
    return likeness.alpha * dice + likeness.beta * turned


def _ranks(soft: Tensor, hard: Tensor) -> dict:
    """Spearman's correlation over the images on which both are defined."""
    known = ~(soft.isnan() | hard.isnan())
    n = int(known.sum())
    if n < 4 or float(hard[known].std()) == 0:
        return {"rank_correlation": float("nan"), "low": float("nan"), "high": float("nan"), "n": n}
    value = float(stats.spearmanr(soft[known], hard[known]).statistic)
    z, half = torch.atanh(torch.tensor(min(value, 1 - 1e-9))), 1.96 * (1.06 / (n - 3)) ** 0.5  # 1.06: Fieller et al. 1957
    return {"rank_correlation": value, "low": float(torch.tanh(z - half)), "high": float(torch.tanh(z + half)), "n": n}
