"""ResNet-8 of MLPerf Tiny, and the CIFAR ResNets of He et al. (20 and 56 layers)."""

from __future__ import annotations

from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from qpatch.models.normalize import CIFAR10_MEAN, CIFAR10_STD, Normalize
from qpatch.models.registry import register


class SamePad(nn.Module):
    """TensorFlow's SAME padding of a 3×3 convolution at stride 2 on even inputs: one row and column, bottom and right."""

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x, (0, 1, 0, 1))


class TinyBlock(nn.Module):
    """Two 3×3 convolutions; at stride 2 a 1×1 convolution with bias, without BatchNorm, as the shortcut."""

    def __init__(self, channels_in: int, channels: int, stride: int):
        super().__init__()
        self.pad = SamePad() if stride == 2 else nn.Identity()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, padding=0 if stride == 2 else 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Conv2d(channels_in, channels, 1, stride) if stride == 2 else nn.Identity()
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(self.pad(x))))
        return self.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ResNet8(nn.Module):
    """MLPerf Tiny's ResNet-8 (Banbury et al. 2021), the CIFAR-10 network of David and Goliath. About 78 k parameters.

    Args:
        num_classes: number of logits.
        mean, std: of the normalisation layer, per channel, for images in [0, 1].
    """

    def __init__(self, num_classes: int = 10, mean=CIFAR10_MEAN, std=CIFAR10_STD):
        super().__init__()
        self.normalize = Normalize(mean, std)
        self.conv = nn.Conv2d(3, 16, 3, 1, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(16)
        self.relu = nn.ReLU()
        self.blocks = nn.Sequential(TinyBlock(16, 16, 1), TinyBlock(16, 32, 2), TinyBlock(32, 64, 2))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(64, num_classes)
        self.num_classes = num_classes

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn(self.conv(self.normalize(x))))
        return self.fc(self.pool(self.blocks(x)).flatten(1))


class BasicBlock(nn.Module):
    """The CIFAR block of He et al. 2016 with the option-A shortcut: every second pixel, missing channels zero."""

    def __init__(self, channels_in: int, channels: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()
        self.stride, self.missing = stride, channels - channels_in

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        if self.stride != 1 or self.missing:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.missing // 2, self.missing // 2))
        return self.relu(y + x)


class ResNetCIFAR(nn.Module):
    """CIFAR ResNet of He et al. 2016 (section 4.2) with 6·n + 2 layers: 16, 32 and 64 channels.

    Layer names are those of the widely used public CIFAR checkpoints (conv1, bn1, layer1.0.conv1, …, linear), so
    these load with `load_state_dict(..., strict=False)`; only our normalisation buffers are then missing.

    Args:
        depth: 20, 32, 44, 56 or 110.
        num_classes: number of logits.
        mean, std: of the normalisation layer, per channel, for images in [0, 1].
    """

    def __init__(self, depth: int = 20, num_classes: int = 10, mean=CIFAR10_MEAN, std=CIFAR10_STD):
        super().__init__()
        blocks = (depth - 2) // 6
        self.normalize = Normalize(mean, std)
        self.conv1 = nn.Conv2d(3, 16, 3, 1, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU()
        self.layer1 = self._stage(16, 16, blocks, 1)
        self.layer2 = self._stage(16, 32, blocks, 2)
        self.layer3 = self._stage(32, 64, blocks, 2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(64, num_classes)
        self.num_classes = num_classes

    @staticmethod
    def _stage(channels_in: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
        first = BasicBlock(channels_in, channels, stride)
        return nn.Sequential(first, *(BasicBlock(channels, channels, 1) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(self.normalize(x))))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(self.pool(x).flatten(1))


register("qpatch_resnet8", ResNet8, (3, 32, 32))
register("qpatch_resnet8_plain", partial(ResNet8, mean=(0.0,) * 3, std=(1.0,) * 3), (3, 32, 32))  # paper C's inputs
register("qpatch_resnet20", partial(ResNetCIFAR, 20), (3, 32, 32))
register("qpatch_resnet56", partial(ResNetCIFAR, 56), (3, 32, 32))
