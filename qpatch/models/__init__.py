"""Networks of the three papers, registered with timm: `timm.create_model("qpatch_resnet8")`.

Every network takes float32 NCHW images in [0, 1] and returns logits N×classes. Normalisation is layer 0.
"""

from qpatch.models.mobilenet import MobileNetV1
from qpatch.models.normalize import Normalize
from qpatch.models.plain import CoffeeCNN, CoffeeDSCNN, VGG
from qpatch.models.resnet import ResNet8, ResNetCIFAR

__all__ = ["CoffeeCNN", "CoffeeDSCNN", "MobileNetV1", "Normalize", "ResNet8", "ResNetCIFAR", "VGG"]
