"""A dictionary of textures that are typical of each class: what the textured variant of PatchAttack cuts its patches from."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qpatch.checks import check_eval, check_images, check_labels
from qpatch.errors import InputError, ParameterError

LAYERS = ("relu", "blocks.0", "blocks.1", "blocks.2")
"""Of ResNet-8: the modules whose outputs describe a style, from fine to coarse."""


@torch.no_grad()
def texture_dictionary(
    net: nn.Module, images: Tensor, labels: Tensor, *, clusters: int = 30, layers: Sequence[str] = LAYERS,
    threshold: float = 0.8, seed: int = 0, batch: int = 100,
) -> Tensor:  # fmt: skip
    """Typical textures of every class, after Yang et al. 2020 (arXiv 2004.05682, TextureDict of the released code).

    Of the images that `net` gets right, the style of the part that speaks for the class is taken: Gram matrices of
    several layers' features, over the places where the class activation map reaches `threshold` of its peak. The styles
    of each class are clustered by k-means; each cluster is represented by one picture.

    Deviations: the paper takes VGG-19's features and Grad-CAM; here both come from the network that is handed in (its
    last layer averages over places, so the map is the exact one of Zhou et al. 2016 and needs no gradient). The paper
    paints a new picture with the style of the cluster's centre, 10,000 steps each; here the cluster's most confident
    training image stands for it. And each layer has the same weight in the distance between two styles.

    Args:
        net: a classifier in eval mode that ends in average pooling and a linear layer; the attacker's own, not the
            attacked one.
        images: float32 (N, C, H, W) in [0, 1], training images. labels: int64 (N,).
        clusters: textures per class; 30 in the paper.
        layers: names of modules; the last one's output is what is pooled.
        threshold: share of the map's peak, in [0, 1].
        seed: of k-means. batch: images per forward pass.

    Returns:
        float32 (classes, clusters, C, H, W), each one of `images`; clusters in the order of k-means.

    Raises:
        InputError: train mode, malformed images or labels, layers that do not fit, or a class with fewer images that
            are classified correctly than clusters. ParameterError: clusters or threshold out of range.
    """
    check_eval(net)
    check_images(images, net)
    check_labels(labels, len(images))
    if not isinstance(clusters, int) or clusters < 1:
        raise ParameterError(f"clusters must be a positive int, got {clusters!r}.")
    if not 0 <= threshold <= 1:
        raise ParameterError(f"threshold must lie in [0, 1], got {threshold!r}.")
    from sklearn.cluster import KMeans  # here, because the import takes longer than the clustering

    styles, confidence = _styles(net, images, labels, layers, threshold, batch)
    textures = []
    for label in range(confidence.shape[1]):
        mine = ((labels == label) & (confidence.argmax(dim=1) == label)).nonzero()[:, 0]
        if len(mine) < clusters:
            raise InputError(
                f"the network gets {len(mine)} images of class {label} right, too few for {clusters} clusters; "
                "give more images or ask for fewer clusters."
            )
        kmeans = KMeans(clusters, n_init=1, random_state=seed).fit(styles[mine].cpu().numpy())
        member = torch.from_numpy(kmeans.labels_)[:, None] == torch.arange(clusters)  # no cluster is empty
        score = confidence[mine, label].cpu()[:, None].where(member, torch.tensor(-1.0))
        textures.append(images[mine[score.argmax(dim=0)]])
    return torch.stack(textures)


def _styles(net, images, labels, layers, threshold, batch) -> tuple[Tensor, Tensor]:
    """The style of every image, (N, D), and its class probabilities, (N, classes)."""
    linear = [module for module in net.modules() if isinstance(module, nn.Linear)][-1:]
    modules = dict(net.named_modules())
    unknown = [name for name in layers if name not in modules]
    if unknown or not linear or not layers:
        raise InputError(f"the network has no layer {', '.join(unknown)!s}; name its layers with `layers`.")
    grams, probabilities, seen = [], [], {}
    with ExitStack() as stack:
        for name in layers:
            keep = lambda _, __, output, name=name: seen.__setitem__(name, output)  # noqa: E731
            stack.callback(modules[name].register_forward_hook(keep).remove)
        for part, truth in zip(images.split(batch), labels.to(images.device).split(batch)):
            probabilities.append(net(part).softmax(dim=1))
            if seen[layers[-1]].shape[1] != linear[0].in_features:
                raise InputError(f"layer {layers[-1]!r} is not what the linear layer of the network averages.")
            attention = torch.einsum("nc,nchw->nhw", linear[0].weight[truth], seen[layers[-1]]).clamp_min(0)[:, None]
            grams.append([_gram(seen[name], attention, threshold) for name in layers])
    whole = [torch.cat(layer) for layer in zip(*grams)]
    return torch.cat([layer / layer.norm(dim=1).mean().clamp_min(1e-12) for layer in whole], dim=1), torch.cat(probabilities)


def _gram(features: Tensor, attention: Tensor, threshold: float) -> Tensor:
    """The upper triangle of the mean of f fᵀ over the attended places: (N, K, H, W) → (N, K (K + 1) / 2)."""
    fine = F.interpolate(attention, size=features.shape[-2:], mode="bilinear", align_corners=False)
    where = (fine >= threshold * fine.amax(dim=(2, 3), keepdim=True)).float().flatten(2)  # (N, 1, H·W)
    flat = features.flatten(2)
    gram = (flat * where) @ flat.transpose(1, 2) / where.sum(dim=2, keepdim=True)
    row, column = torch.triu_indices(gram.shape[1], gram.shape[1])
    return gram[:, row, column]
