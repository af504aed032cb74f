"""Networks of ImageNet size, quantized after training, and the photographs that they are judged on (notebook 36).

Nothing here is trained by us: the weights are timm's (see `qpatch.models.pretrained`), so a reader can replace any of
these networks by another. In a smoke run the same architectures have random layers and see procedural pictures.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qpatch import data, store
from qpatch.data.dataset import Dataset
from qpatch.errors import one_of
from qpatch.models import pretrained
from qpatch.quant import MultiBit, Policy, fused, post_training_quantize

NETWORKS = ("tf_efficientnet_lite0", "tf_efficientnet_lite1")
BITS = (32, 8, 6, 5, 4)
POLICIES = {"least squares": Policy(), "largest value": Policy(range="max"), "zero point": Policy("asymmetric")}
"""How a range is chosen: where the squared error is least, to the largest value, or from the least to the largest."""
MAIN = "least squares"
DATASETS = ("photographs", "shapes")
FOLDS = (0, 1, 2)
"""Each fold judges its patches on its own third of the photographs and makes them on the other two."""


@dataclass(frozen=True)
class Setting:
    """Sizes of the study on one data set.

    Attributes:
        pixels: side of a picture. size: side of a patch; 50 of 224 pixels are 5 % of the area.
        calibration: pictures from which the activation ranges come.
        steps, batch: of a universal patch. specific_steps, specific_images: of patches for single images.
    """

    pixels: int
    size: int
    calibration: int
    steps: int
    batch: int
    specific_steps: int
    specific_images: int


SETTINGS = {
    "photographs": Setting(224, 50, 64, 100, 16, 30, 120),
    "shapes": Setting(64, 14, 20, 4, 10, 2, 10),
}
_SHAPES = 30  # procedural pictures per half


@dataclass(frozen=True)
class View:
    """One network at one width under one policy; at 32 bits all policies are the same network."""

    network: str
    bits: int
    policy: str = MAIN


def short(network: str) -> str:
    """A network's name without timm's prefix for its family: "lite0"."""
    return network.removeprefix("tf_efficientnet_")


def views(networks: tuple[str, ...]) -> list[View]:
    """What patches are shown to: every network at every width, and the first one under the other policies as well."""
    main = [View(network, bits) for network in networks for bits in BITS]
    return main + [View(networks[0], bits, policy) for policy in POLICIES if policy != MAIN for bits in BITS[1:]]


@cache
def pictures(dataset: str) -> Dataset:
    """All pictures: the 1,000 photographs in the order of their files, or a few procedural shapes enlarged to 64 px.

    Raises:
        ParameterError: no such data set. DataError: the photographs are not on this machine.
    """
    photographs = one_of(dataset, DATASETS, "data set") == "photographs"
    parts = [data.load(dataset, split, n=None if photographs else _SHAPES) for split in ("train", "test")]
    order = torch.cat([2 * torch.arange(len(part)) + number for number, part in enumerate(parts)]).argsort()
    images, labels = (torch.cat([getattr(part, name) for part in parts])[order] for name in ("images", "labels"))
    if not photographs:
        large = F.interpolate(images.float(), size=SETTINGS[dataset].pixels, mode="bilinear", align_corners=False)
        images = large.round().to(torch.uint8)
    return Dataset(dataset, "all", images, labels, parts[0].classes)


def made_on(fold: int, dataset: str) -> Tensor:
    """Numbers of the pictures on which the fold's patches are made."""
    return (torch.arange(len(pictures(dataset))) % len(FOLDS) != one_of(fold, FOLDS, "fold")).nonzero()[:, 0]


def judged_on(fold: int, dataset: str) -> Tensor:
    """Numbers of the pictures on which they are judged: all others."""
    return (torch.arange(len(pictures(dataset))) % len(FOLDS) == one_of(fold, FOLDS, "fold")).nonzero()[:, 0]


@cache
def float_network(name: str, dataset: str = "photographs") -> nn.Module:
    """The network before quantization, images in [0, 1] to scores.

    Raises:
        DataError: its weights are not to be had; the message names the command that gets them.
    """
    if dataset == "photographs":
        return pretrained.pretrained(name)
    return pretrained.random_features(name, *pictures(dataset).take(slice(None)))


@cache
def network(name: str, policy: str = MAIN, dataset: str = "photographs") -> MultiBit:
    """The network at all of `BITS`, quantized after training under one of `POLICIES`, in eval mode.

    Ranges come from the first pictures; their labels play no part.

    Raises:
        ParameterError: no such policy. DataError: weights or photographs are not to be had.
    """
    chosen = POLICIES[one_of(policy, POLICIES, "policy")]
    images = pictures(dataset).floats(slice(SETTINGS[dataset].calibration))
    net = post_training_quantize(float_network(name, dataset), images, BITS[1:], chosen)
    return net.to(memory_format=torch.channels_last)


@cache
def view_of(view: View, dataset: str = "photographs") -> nn.Module:
    """The network that a `View` names, `fused`, ready to attack."""
    return fused(network(view.network, view.policy, dataset).at(view.bits))


@cache
def fingerprint(name: str, policy: str, dataset: str) -> str:
    """Of all weights and ranges, for the store's keys."""
    return store.tensors_fingerprint(network(name, policy, dataset).state_dict())
