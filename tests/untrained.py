"""Networks that nobody trained, for tests of everything around them."""

import timm
import torch

from qpatch import data
from qpatch.quant import MultiBit, calibrate
from qpatch.zoo.attacked import Target
from qpatch.zoo.deployed import files


def untrained(seed: int) -> MultiBit:
    """A ResNet-8 with random weights at all widths, calibrated on procedural images."""
    torch.manual_seed(seed)
    net = MultiBit(timm.create_model("qpatch_resnet8")).eval()
    return calibrate(net, data.load("shapes", "train").floats(slice(0, 64)))


def untrained_target() -> Target:
    """A float ResNet-8 with random weights, and its integer files."""
    torch.manual_seed(0)
    net = timm.create_model("qpatch_resnet8_plain")
    images = data.load("shapes", "train", n=64).floats()
    with torch.no_grad():
        net.train()(images)
    net.eval()
    return Target(net, files(net, images[:20]))
