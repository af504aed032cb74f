"""Normalisation as layer 0, so that every network takes images in [0, 1]."""

import copy

import torch
from torch import Tensor, nn

CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR10_STD = (0.2470, 0.2435, 0.2616)


class Normalize(nn.Module):
    """(x − mean) / std per channel; mean and std are buffers, so a checkpoint carries its own preprocessing.

    Args:
        mean, std: one value per channel, in units of the [0, 1] image.
    """

    def __init__(self, mean=CIFAR10_MEAN, std=CIFAR10_STD):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


def absorb_normalization(model: nn.Module, first_conv: str = "conv", first_norm: str = "bn") -> nn.Module:
    """A copy whose first convolution takes plain [0, 1] images: mean and std go into its weights and its BatchNorm.

    Exact everywhere but at the border: zero padding then means black, where it meant the mean colour. So a network
    that was trained with normalisation needs a few epochs of fine-tuning afterwards.

    Args:
        model: a network with a `normalize` layer, followed by a convolution without bias and a BatchNorm.
        first_conv, first_norm: names of these two.
    """
    model = copy.deepcopy(model)
    layer, conv, norm = model.normalize, getattr(model, first_conv), getattr(model, first_norm)
    with torch.no_grad():
        conv.weight /= layer.std
        norm.running_mean += (conv.weight * layer.mean).sum((1, 2, 3))
        layer.mean.zero_()
        layer.std.fill_(1)
    return model
