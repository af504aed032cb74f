"""Networks of the three papers, registered with timm: `timm.create_model("qpatch_resnet8")`.

Every network takes float32 NCHW images in [0, 1] and returns logits N×classes. Normalisation is layer 0; networks for
features that are scaled already need none.
"""

from qpatch.models.features import KeywordDSCNN, TabularMLP
from qpatch.models.mobilenet import MobileNetV1
from qpatch.models.normalize import Normalize
from qpatch.models.plain import CoffeeCNN, CoffeeDSCNN, VGG
from qpatch.models.resnet import ResNet8, ResNetCIFAR

__all__ = [
    "CoffeeCNN", "CoffeeDSCNN", "KeywordDSCNN", "MobileNetV1", "Normalize", "ResNet8", "ResNetCIFAR", "TabularMLP", "VGG",
]  # fmt: skip
