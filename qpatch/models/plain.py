"""Networks without shortcuts: VGG for CIFAR, and the coffee-leaf networks of David and Goliath."""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from qpatch.models.normalize import CIFAR10_MEAN, CIFAR10_STD, Normalize
from qpatch.models.registry import register

# channels per 3×3 convolution, "M" a 2×2 max pooling: Simonyan & Zisserman 2015, table 1
VGG_PLANS = {
    11: (64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"),
    16: (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M"),
}


class VGG(nn.Module):
    """VGG for 32×32 images: the convolutions of Simonyan & Zisserman 2015 with BatchNorm, and one linear layer.

    Args:
        depth: 11 or 16.
        num_classes: number of logits.
        width: channel multiplier.
        mean, std: of the normalisation layer, per channel, for images in [0, 1].
    """

    def __init__(self, depth: int = 11, num_classes: int = 10, width: float = 1, mean=CIFAR10_MEAN, std=CIFAR10_STD):
        super().__init__()
        self.normalize = Normalize(mean, std)
        layers, channels = [], 3
        for step in VGG_PLANS[depth]:
            if step == "M":
                layers.append(nn.MaxPool2d(2))
            else:
                following = int(step * width)
                conv = nn.Conv2d(channels, following, 3, padding=1, bias=False)
                layers += [conv, nn.BatchNorm2d(following), nn.ReLU()]
                channels = following
        self.features = nn.Sequential(*layers)
        self.fc = nn.Linear(channels, num_classes)
        self.num_classes = num_classes

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(self.normalize(x)).flatten(1))


class CoffeeCNN(nn.Module):
    """The plain CNN of David and Goliath's released code for 224×224 coffee leaves; no padding anywhere. 250,436 parameters.

    Args:
        num_classes: 4 in the released model.
        mean, std: of the normalisation layer; the released model takes plain [0, 1] images.
    """

    def __init__(self, num_classes: int = 4, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)):
        super().__init__()
        self.normalize = Normalize(mean, std)
        self.features = nn.Sequential(
            nn.Conv2d(3, 32, 8, 4), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, 2), nn.ReLU(), nn.Conv2d(64, 128, 3), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(128, 64, 3), nn.ReLU(), nn.Flatten(),
        )  # fmt: skip
        self.head = nn.Sequential(
            nn.Linear(64 * 3 * 3, 128), nn.ReLU(), nn.Dropout(0.2), nn.Linear(128, 32), nn.ReLU(), nn.Dropout(0.5),
            nn.Linear(32, num_classes),
        )  # fmt: skip
        self.num_classes = num_classes

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(self.normalize(x)))


class CoffeeDSCNN(nn.Module):
    """A depthwise-separable CNN for coffee leaves: David and Goliath's summary names a DS-CNN, its code does not hold one.

    Our reconstruction: the DS-CNN of keyword spotting (Zhang et al. 2017) with a stride-4 stem for 224×224 images.

    Args:
        num_classes: number of logits.
        channels: width of every block.
        blocks: number of depthwise-separable blocks.
        mean, std: of the normalisation layer.
    """

    def __init__(self, num_classes: int = 4, channels: int = 64, blocks: int = 4, mean=(0.0,) * 3, std=(1.0,) * 3):
        super().__init__()
        self.normalize = Normalize(mean, std)
        layers = [nn.Conv2d(3, channels, 8, 4, padding=2, bias=False), nn.BatchNorm2d(channels), nn.ReLU()]
        for block in range(blocks):
            depthwise = nn.Conv2d(channels, channels, 3, 2 if block < 2 else 1, 1, groups=channels, bias=False)
            pointwise = nn.Conv2d(channels, channels, 1, bias=False)
            layers += [depthwise, nn.BatchNorm2d(channels), nn.ReLU(), pointwise, nn.BatchNorm2d(channels), nn.ReLU()]
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)
        self.num_classes = num_classes

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.pool(self.features(self.normalize(x))).flatten(1))


register("qpatch_vgg11", partial(VGG, 11), (3, 32, 32))
register("qpatch_vgg11_quarter", partial(VGG, 11, width=0.25), (3, 32, 32))
register("qpatch_vgg16", partial(VGG, 16), (3, 32, 32))
register("qpatch_coffee_cnn", CoffeeCNN, (3, 224, 224))
register("qpatch_coffee_dscnn", CoffeeDSCNN, (3, 224, 224))
