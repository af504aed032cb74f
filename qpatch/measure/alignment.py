"""Do two networks see the same gradient? Cosine and agreement of signs, at the input and at inner activations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import pandas as pd
import torch
from torch import Tensor, nn

from qpatch.attacks.base import frozen
from qpatch.attacks.patch import check_places
from qpatch.checks import check_eval, check_images, check_labels
from qpatch.errors import InputError, ParameterError
from qpatch.measure.gradients import SCORES

INPUT, MAGNITUDE = "input", "magnitude"  # depths that every network has; all others are names of modules


def layer_gradients(net: nn.Module, images: Tensor, labels: Tensor, layers: Iterable[str] = ()) -> dict[str, Tensor]:
    """Gradients of each image's cross-entropy with respect to the image and to the outputs of inner modules.

    Through a quantized view they are the straight-through estimates that an attack would follow.

    Args:
        net: in eval mode. images, labels: float32 (N, C, H, W) in [0, 1], int64 (N,).
        layers: dotted names of modules, for instance "blocks.0".

    Returns:
        "input" and each name of `layers` → float32 (N, ...), the shape of that activation.

    Raises:
        InputError: train mode, malformed images or labels. ParameterError: the network has no such module.
    """
    check_eval(net)
    check_images(images, net)
    check_labels(labels, len(images))
    modules, kept = dict(net.named_modules()), {}
    if missing := [name for name in layers if name not in modules]:
        raise ParameterError(f"the network has no module {', '.join(missing)}; choose from net.named_modules().")
    hooks = [modules[name].register_forward_hook(lambda _m, _i, out, name=name: kept.update({name: out}))
             for name in layers]  # fmt: skip
    try:
        with frozen(net):
            start = images.clone().requires_grad_()
            loss = SCORES["cross-entropy"](net, start, labels).sum()
            wanted = {INPUT: start} | kept
            return dict(zip(wanted, torch.autograd.grad(loss, list(wanted.values()))))
    finally:
        for hook in hooks:
            hook.remove()


def pairwise_alignment(
    views: Mapping[str, nn.Module],
    images: Tensor,
    labels: Tensor,
    layers: Iterable[str] = (),
    *,
    draws: int = 1000,
    seed: int = 0,
) -> tuple[pd.DataFrame, dict[str, Tensor]]:
    """How alike the gradients of every two networks are, image by image, at the input and at inner layers.

    The chance level compares the first network's gradient of an image with the second one's of *another image of the
    same class*: what two networks get for nothing. The depth "magnitude" drops the direction: it compares the size of
    the input gradient, summed over the channels, as a map; such a map has no negative entry, and its chance level is
    far from zero.

    Args:
        views: name → network in eval mode, all of one architecture if there are `layers`.
        images, labels: float32 (N, C, H, W) in [0, 1] and int64 (N,), at least two images of each class.
        layers: see `layer_gradients`.
        draws: resamples of the images for the intervals. seed: of the resampling.

    Returns:
        One row per pair and depth: first, second, depth, value, low, high (mean cosine over images, 95 % bootstrap over
        images), null (mean cosine with another image), sign, null_sign (share of entries with equal sign, where neither
        is zero), n; and the input gradients, name → float32 (N, C, H, W).

    Raises:
        InputError: a class with a single image, or what `layer_gradients` refuses.
    """
    check_labels(labels, len(images))
    names, layers = list(views), tuple(layers)
    inputs = {name: torch.empty_like(images) for name in names}
    found: dict[str, list[Tensor]] = {depth: [] for depth in (INPUT, *layers, MAGNITUDE)}
    for label in labels.unique():
        index = (labels == label).nonzero()[:, 0]
        if len(index) < 2:
            raise InputError(f"class {int(label)} has a single image; take at least two of each for the chance level.")
        seen = [layer_gradients(view, images[index], labels[index], layers) for view in views.values()]
        for name, own in zip(names, seen):
            inputs[name][index] = own[INPUT]
            own[MAGNITUDE] = own[INPUT].abs().sum(dim=1)
        for depth, parts in found.items():
            parts.append(_compare(torch.stack([own[depth].flatten(1) for own in seen])))
    first, second = torch.triu_indices(len(names), len(names), offset=1)
    tables = []
    for depth, parts in found.items():
        value, null, sign, null_sign = torch.cat(parts, dim=-1)[:, first, second]  # (pairs, N) each
        low, high = mean_interval(value, draws, seed)
        tables.append(pd.DataFrame({
            "first": [names[i] for i in first], "second": [names[i] for i in second], "depth": depth,
            "value": value.mean(1), "low": low, "high": high, "null": null.mean(1), "sign": sign.mean(1),
            "null_sign": null_sign.mean(1), "n": len(images),
        }))  # fmt: skip
    return pd.concat(tables, ignore_index=True), inputs


def _compare(gradients: Tensor) -> Tensor:
    """(V, B, D) of one class → (4, V, V, B): cosine, its null, agreement of signs, its null."""
    unit = gradients / gradients.norm(dim=2, keepdim=True).clamp_min(1e-30)
    signs = gradients.sign()
    results = []
    for shift in (0, 1):  # 1 compares with the next image of the class
        cosine = torch.einsum("vbd,wbd->vwb", unit, unit.roll(shift, 1))
        both = torch.einsum("vbd,wbd->vwb", signs.abs(), signs.abs().roll(shift, 1))
        product = torch.einsum("vbd,wbd->vwb", signs, signs.roll(shift, 1))
        results.append((cosine, torch.where(both > 0, (1 + product / both.clamp_min(1)) / 2, 0.5)))
    (cosine, sign), (null, null_sign) = results
    return torch.stack([cosine, null, sign, null_sign]).double()


def mean_interval(values: Tensor, draws: int = 1000, seed: int = 0) -> tuple[Tensor, Tensor]:
    """95 % percentile intervals for row means from resampled columns: (R, N) → low (R,), high (R,)."""
    generator, n = torch.Generator().manual_seed(seed), values.shape[1]
    chosen = torch.randint(n, (draws, n), generator=generator)
    counts = torch.zeros(draws, n, dtype=values.dtype)
    counts.scatter_add_(1, chosen, torch.ones(draws, n, dtype=values.dtype))
    means = values @ counts.T / n
    limits = torch.quantile(means, torch.tensor([0.025, 0.975], dtype=values.dtype), dim=1)
    return limits[0], limits[1]


def shared_direction(inputs: Mapping[str, Tensor], places: Tensor, size: tuple[int, int]) -> pd.DataFrame:
    """Cosines between networks of the gradient that a *universal* patch follows: the mean over images, at the patch.

    Args:
        inputs: name → input gradients of patched images, float32 (N, C, H, W), as from `pairwise_alignment`.
        places: int64 (N, 2), where the patch lies in each image. size: of the patch.

    Returns:
        A square table, network by network.

    Raises:
        InputError: places that do not fit the images.
    """
    means = torch.stack([window(own, places, size).mean(0).flatten() for own in inputs.values()]).double()
    unit = means / means.norm(dim=1, keepdim=True).clamp_min(1e-300)
    return pd.DataFrame((unit @ unit.T).numpy(), index=list(inputs), columns=list(inputs))


def window(images: Tensor, places: Tensor, size: tuple[int, int]) -> Tensor:
    """What lies under a patch of `size` at its place in each image: (N, C, H, W) → (N, C, h, w)."""
    check_places(places, images, size)
    rows, columns = (places[:, axis, None] + torch.arange(side) for axis, side in enumerate(size))
    sample = torch.arange(len(images))[:, None, None]
    return images[sample, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def symmetric(rows: pd.DataFrame, value: str = "value", diagonal: float = 1.0) -> pd.DataFrame:
    """Rows first, second, value of unordered pairs as a symmetric table, network by network, in the rows' order."""
    names = list(dict.fromkeys([*rows["first"], *rows["second"]]))
    table = pd.DataFrame(diagonal, index=names, columns=names, dtype=float)
    for row in rows.itertuples():
        table.loc[row.first, row.second] = table.loc[row.second, row.first] = getattr(row, value)
    return table
