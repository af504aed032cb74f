"""Input gradients that can themselves be differentiated: what a penalty on gradients is taken of."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def input_gradients(view: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """∇ₓ CE(f(x), y) of every image, with a graph to the weights. Costs a double backward.

    BatchNorm uses its running statistics and keeps them: so an attacker meets the network, images do not mix, and the
    second derivative of batch statistics, half of the cost, falls away. Its mode is back afterwards.

    Args:
        view: a network; its quantizers stay in their mode, so that in train mode the weights get gradients.
        images: float32 (N, C, H, W). labels: int64 (N,).

    Returns:
        float32 (N, C, H, W), the gradient of each image's own cross-entropy.
    """
    with _fixed_norms(view):
        points = images.detach().clone(memory_format=torch.contiguous_format).requires_grad_(True)
        loss = F.cross_entropy(view(points).float(), labels, reduction="sum")
        return torch.autograd.grad(loss, points, create_graph=True)[0]


@contextmanager
def _fixed_norms(view: nn.Module) -> Iterator[None]:
    """While this lasts, every BatchNorm is the affine map of its running statistics."""
    norms = [module for module in view.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    modes = [norm.training for norm in norms]
    for norm in norms:
        norm.train(False)
        if type(norm) is nn.BatchNorm2d and norm.affine:  # torch's own second derivative takes three times as long
            norm.forward = lambda x, norm=norm: _affine(norm, x)
    try:
        yield
    finally:
        for norm, mode in zip(norms, modes):
            norm.train(mode)
            norm.__dict__.pop("forward", None)


def _affine(norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    shift = norm.bias - norm.running_mean * scale
    return torch.addcmul(shift[:, None, None], x, scale[:, None, None])
