"""Input gradients that can themselves be differentiated: what a penalty on gradients is taken of."""

from __future__ import annotations

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
    norms = [module for module in view.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    modes = [norm.training for norm in norms]
    for norm in norms:
        norm.train(False)
    try:
        points = images.detach().clone(memory_format=torch.contiguous_format).requires_grad_(True)
        loss = F.cross_entropy(view(points).float(), labels, reduction="sum")
        return torch.autograd.grad(loss, points, create_graph=True)[0]
    finally:
        for norm, mode in zip(norms, modes):
            norm.train(mode)
