"""Small networks for what is no picture: spoken words as cepstra over time, and rows of a table.

Their inputs are features scaled to [0, 1], one channel, so that everything that takes images takes them as well.
"""

from __future__ import annotations

from torch import Tensor, nn

from qpatch.models.registry import register


class KeywordDSCNN(nn.Module):
    """The depthwise-separable CNN of keyword spotting (Zhang et al. 2017, arXiv 1711.07128), scaled down.

    Input N×1×time×coefficients, as MLPerf Tiny's keyword spotter has it (49×10 there, with 64 channels and four blocks).

    Args:
        num_classes: number of logits.
        channels: width of every block.
        blocks: number of depthwise-separable blocks.
    """

    def __init__(self, num_classes: int = 10, channels: int = 32, blocks: int = 3):
        super().__init__()
        layers = [nn.Conv2d(1, channels, 3, (1, 2), padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()]
        for _ in range(blocks):
            depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
            pointwise = nn.Conv2d(channels, channels, 1, bias=False)
            layers += [depthwise, nn.BatchNorm2d(channels), nn.ReLU(), pointwise, nn.BatchNorm2d(channels), nn.ReLU()]
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)
        self.num_classes = num_classes

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.pool(self.features(x)).flatten(1))


class TabularMLP(nn.Module):
    """Two hidden layers with ReLU on a row of features; fully connected layers and nothing else.

    Args:
        num_classes: number of logits.
        features: values of one row; they may come in any shape N×1×H×W.
        width: of the first hidden layer; the second has half of it.
    """

    def __init__(self, num_classes: int = 2, features: int = 30, width: int = 32):
        super().__init__()
        self.flatten = nn.Flatten()
        self.layers = nn.Sequential(
            nn.Linear(features, width), nn.ReLU(), nn.Linear(width, width // 2), nn.ReLU(),
            nn.Linear(width // 2, num_classes),
        )  # fmt: skip
        self.num_classes = num_classes

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(self.flatten(x))


register("qpatch_keyword_dscnn", KeywordDSCNN, (1, 16, 13))
register("qpatch_tabular_mlp", TabularMLP, (1, 3, 10))
