"""MobileNetV1 with width 0.25 at 96×96: MLPerf Tiny's network for Visual Wake Words."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from qpatch.models.normalize import Normalize
from qpatch.models.registry import register

# (output channels at width 1, stride) of the thirteen depthwise-separable blocks, Howard et al. 2017, table 1
BLOCKS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)) + ((512, 1),) * 5 + ((1024, 2), (1024, 1))


class ConvSame(nn.Sequential):
    """Convolution with TensorFlow's SAME padding on even inputs, BatchNorm, ReLU."""

    def __init__(self, channels_in: int, channels: int, kernel: int, stride: int, groups: int = 1):
        padding = kernel // 2 if stride == 1 else 0
        conv = nn.Conv2d(channels_in, channels, kernel, stride, padding, groups=groups, bias=False)
        super().__init__(conv, nn.BatchNorm2d(channels, eps=1e-3), nn.ReLU())
        self.pad = stride == 2 and kernel > 1

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (0, 1, 0, 1)) if self.pad else x)


class MobileNetV1(nn.Module):
    """MobileNetV1 (Howard et al. 2017) as MLPerf Tiny has it: ReLU, final average pool, two classes. Keras counts
    221,794 parameters: ours, BatchNorm's moving statistics, and a bias before each BatchNorm that ours leaves out.

    Args:
        width: channel multiplier.
        num_classes: number of logits.
        mean, std: of the normalisation layer; MLPerf Tiny trains on plain [0, 1] images, hence 0 and 1.
    """

    def __init__(self, width: float = 0.25, num_classes: int = 2, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)):
        super().__init__()
        self.normalize = Normalize(mean, std)
        channels = int(32 * width)
        layers = [ConvSame(3, channels, 3, 2)]
        for full, stride in BLOCKS:
            following = int(full * width)
            layers += [ConvSame(channels, channels, 3, stride, groups=channels), ConvSame(channels, following, 1, 1)]
            channels = following
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)
        self.num_classes = num_classes

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.pool(self.features(self.normalize(x))).flatten(1))


register("qpatch_mobilenetv1_025", MobileNetV1, (3, 96, 96))
