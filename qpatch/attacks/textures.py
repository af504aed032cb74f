"""Textures that are typical of each class: what the textured variant of PatchAttack cuts its patches from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qpatch.attacks.base import frozen
from qpatch.attacks.patch import round_to_bytes
from qpatch.checks import check_eval, check_images, check_labels
from qpatch.errors import InputError, ParameterError

LAYERS = ("relu", "blocks.0", "blocks.1", "blocks.2")
"""Of ResNet-8: the modules whose outputs describe a style, from fine to coarse."""


def texture_dictionary(
    net: nn.Module, images: Tensor, labels: Tensor, *, clusters: int = 30, layers: Sequence[str] = LAYERS,
    threshold: float = 0.8, steps: int = 200, lr: float = 0.03, seed: int = 0, batch: int = 100,
) -> Tensor:  # fmt: skip
    """Typical textures of every class, after Yang et al. 2020 (arXiv 2004.05682, and the released code).

    Of the images that `net` gets right, the style of the part that speaks for the class is taken: Gram matrices of
    several layers' features, over the places where the class activation map reaches `threshold` of its peak. The styles
    of each class are clustered by k-means, and a picture with the style of each cluster's centre is painted: noise that
    is moved until its own Gram matrices are the centre's.

    Deviations: the paper takes VGG-19's features, here they come from the network that is handed in, so nothing is
    downloaded. Its map is Grad-CAM; here the network's last layer averages over places, and the map is the exact one of
    Zhou et al. 2016. Each layer has the same weight in the distance between two styles. The paper paints for 10,000
    steps of Adam at a step size of 0.01.

    Args:
        net: a classifier in eval mode that ends in average pooling and a linear layer. It is the attacker's own: its
            gradients are used here, and the attacked network is never asked. It stays as it is.
        images: float32 (N, C, H, W) in [0, 1], training images. labels: int64 (N,).
        clusters: textures per class; 30 in the paper.
        layers: names of modules; the last one's output is what is pooled.
        threshold: share of the map's peak, in [0, 1].
        steps, lr: of the painting.
        seed: of k-means and of the noise. batch: images per forward pass.

    Returns:
        float32 (classes, clusters, C, H, W) in [0, 1], on the 8-bit lattice.

    Raises:
        InputError: train mode, malformed images or labels, layers that do not fit, or a class with fewer images that
            are classified correctly than clusters. ParameterError: clusters, steps or threshold out of range.
    """
    check_eval(net)
    check_images(images, net)
    check_labels(labels, len(images))
    for name, value in {"clusters": clusters, "steps": steps}.items():
        if not isinstance(value, int) or value < 1:
            raise ParameterError(f"{name} must be a positive int, got {value!r}.")
    if not 0 <= threshold <= 1:
        raise ParameterError(f"threshold must lie in [0, 1], got {threshold!r}.")
    from sklearn.cluster import KMeans  # here, because its import takes longer than the clustering

    with frozen(net), _watched(net, layers) as features:
        styles, predicted = _styles(net, features, images, labels.to(images.device), layers[-1], threshold, batch)
        weights = [1 / style.norm(dim=1).mean().clamp_min(1e-12) for style in styles]
        joined = torch.cat([style * weight for style, weight in zip(styles, weights)], dim=1).cpu()
        centres = []
        for label in range(int(labels.max()) + 1):
            mine = joined[(labels.cpu() == label) & (predicted.cpu() == label)]
            if len(mine) < clusters:
                raise InputError(
                    f"the network gets {len(mine)} images of class {label} right, too few for {clusters} clusters; "
                    "give more images or ask for fewer clusters."
                )
            found = KMeans(clusters, n_init=1, random_state=seed).fit(mine.numpy()).cluster_centers_
            centres.append(torch.from_numpy(found).to(images))
        generator = torch.Generator().manual_seed(seed)
        painted = [
            _paint(net, features, centre, weights, images.shape[1:], steps, lr, generator)
            for centre in torch.cat(centres).split(batch)
        ]
    return round_to_bytes(torch.cat(painted)).unflatten(0, (len(centres), clusters))


@contextmanager
def _watched(net: nn.Module, layers: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Layer → its output in the last forward pass, in the order of `layers`."""
    modules = dict(net.named_modules())
    unknown = [name for name in layers if name not in modules]
    if unknown or not layers:
        raise InputError(f"the network has no layer {', '.join(map(repr, unknown)) or 'in an empty list'}; see layers.")
    outputs: dict[str, Tensor] = dict.fromkeys(layers)
    hooks = [
        modules[name].register_forward_hook(lambda _, __, output, name=name: outputs.__setitem__(name, output))
        for name in layers
    ]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def _styles(net, features, images, labels, last, threshold, batch) -> tuple[list[Tensor], Tensor]:
    """Per layer the Gram matrices of every image where its class is seen, (N, D), and the predicted classes, (N,)."""
    linear = [module for module in net.modules() if isinstance(module, nn.Linear)][-1:]
    grams, predicted = [], []
    for part, truth in zip(images.split(batch), labels.split(batch)):
        predicted.append(net(part).argmax(dim=1))
        if not linear or linear[0].in_features != features[last].shape[1]:
            raise InputError(f"layer {last!r} is not what the last linear layer of the network averages; see layers.")
        seen = torch.einsum("nc,nchw->nhw", linear[0].weight[truth], features[last]).clamp_min(0)[:, None]
        parts = []
        for output in features.values():
            fine = F.interpolate(seen, size=output.shape[-2:], mode="bilinear", align_corners=False)
            parts.append(_gram(output, (fine >= threshold * fine.amax(dim=(2, 3), keepdim=True)).to(output)))
        grams.append(parts)
    return [torch.cat(layer) for layer in zip(*grams)], torch.cat(predicted)


def _paint(net, features, centres, weights, shape, steps, lr, generator) -> Tensor:
    """Pictures (M, C, H, W) whose Gram matrices, all over them, are those of `centres` (M, D)."""
    pixels = torch.rand(len(centres), *shape, generator=generator).to(centres).requires_grad_()
    optimizer = torch.optim.Adam([pixels], lr)
    for _ in range(steps):
        net(pixels)
        style = torch.cat([_gram(output) * weight for output, weight in zip(features.values(), weights)], dim=1)
        optimizer.zero_grad()
        (style - centres).square().sum().backward()
        optimizer.step()
        with torch.no_grad():
            pixels.clamp_(0, 1)
    return pixels.detach()


def _gram(features: Tensor, where: Tensor | None = None) -> Tensor:
    """The upper triangle of the mean of f fᵀ over places, or over some places: (N, K, H, W) → (N, K (K + 1) / 2)."""
    flat = features.flatten(2)
    places = torch.ones_like(flat[:, :1]) if where is None else where.flatten(2)
    gram = (flat * places) @ flat.transpose(1, 2) / places.sum(dim=2, keepdim=True)
    row, column = torch.triu_indices(gram.shape[1], gram.shape[1])
    return gram[:, row, column]
