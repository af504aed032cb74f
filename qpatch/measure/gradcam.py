"""Where a network looks: Grad-CAM, and whether the bit-widths of one network look at the same place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
import torch
from torch import Tensor, nn

from qpatch.attacks.base import frozen
from qpatch.checks import check_eval, check_images, check_labels
from qpatch.defenses.triqdef import outputs
from qpatch.measure.penalties import OTHER, SAME
from qpatch.quant import MultiBit

GAP = "gap"


def grad_cam(view: nn.Module, images: Tensor, labels: Tensor, layer: str, batch: int = 100) -> tuple[Tensor, Tensor]:
    """Grad-CAM: ReLU(Σ_k w_k A_k) of a layer's channels A_k, where w_k is the mean slope of the class's logit in A_k.

    Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization", ICCV 2017, eq. 1, 2.

    Args:
        view: in eval mode. images: float32 (N, C, H, W) in [0, 1]. labels: int64 (N,), the class that is asked about.
        layer: name of the module whose output is A.

    Returns:
        float32 (N, h, w), not negative, in the layer's resolution; and int64 (N,), the predicted classes.

    Raises:
        InputError: train mode, malformed images or labels. ParameterError: no such layer.
    """
    check_eval(view)
    check_images(images, view)
    check_labels(labels, len(images))
    maps, classes = [], []
    with frozen(view):
        for x, y in zip(images.split(batch), labels.split(batch)):
            with outputs(view, (layer,)) as kept:  # with frozen weights only the image keeps a graph
                logits = view(x.clone().requires_grad_())
            (slope,) = torch.autograd.grad(logits.gather(1, y[:, None]).sum(), kept[0])
            maps.append((slope.mean((2, 3), keepdim=True) * kept[0].detach()).sum(1).relu())
            classes.append(logits.argmax(1))
    return torch.cat(maps), torch.cat(classes)


def gaze_rows(
    nets: Mapping[str, MultiBit], pictures: Mapping[str, Tensor], labels: Tensor, layer: str, bits: Sequence[int]
) -> pd.DataFrame:
    """Do the widths of a network look where its float view looks? On images that both get right.

    Args:
        nets: name → network. pictures: "clean", "patched", … → the same images, (N, C, H, W).
        labels: int64 (N,), in an order in which neighbours differ. layer: see `grad_cam`. bits: compared with 32.

    Returns:
        one row per network, kind of picture (points), width and comparison: measure ("correlation": of the two maps over
        the places; "same place": share of images whose highest value lies in the same cell), value, low, high (normal,
        95 %), n. Compared are the same image, another image in the second width (chance), and the gap between the two,
        image by image. Images without any positive value in a map have no correlation and are left out.
    """
    found = []
    for name, net in nets.items():
        for points, images in pictures.items():
            base, seen = grad_cam(net.at(32), images, labels, layer)
            for width in bits:
                other, classes = grad_cam(net.at(width), images, labels, layer)
                usable = (seen == labels) & (classes == labels) & base.flatten(1).any(1) & other.flatten(1).any(1)
                first, second = base[usable].flatten(1), other[usable].flatten(1)
                for measure, alike in (("correlation", _correlation), ("same place", _same_place)):
                    same, chance = alike(first, second), alike(first, second.roll(1, 0))
                    for compared, values in ((SAME, same), (OTHER, chance), (GAP, same - chance)):
                        values = values[~values.isnan()]
                        mean, half = float(values.mean()), 1.96 * float(values.std()) / len(values) ** 0.5
                        found.append({"network": name, "points": points, "target_bits": width, "measure": measure,
                                      "compared": compared, "value": mean, "low": mean - half, "high": mean + half,
                                      "n": len(values)})  # fmt: skip
    return pd.DataFrame(found)


def _correlation(first: Tensor, second: Tensor) -> Tensor:
    first, second = (maps - maps.mean(1, keepdim=True) for maps in (first, second))
    return (first * second).sum(1) / (first.norm(dim=1) * second.norm(dim=1))


def _same_place(first: Tensor, second: Tensor) -> Tensor:
    return (first.argmax(1) == second.argmax(1)).float()
