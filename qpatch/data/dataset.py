"""The one form in which images and labels travel, and class-balanced subsets of it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from qpatch.errors import InputError


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images as bytes, or measurements as floats, with their labels; `floats` gives what every network here takes.

    Attributes:
        name: "cifar10", "coffee", "photographs", "speech", "tumours", "vww" or "shapes".
        split: "train" or "test".
        images: N×C×H×W, uint8, or float32 in [0, 1] for measurements that never were bytes.
        labels: int64 N, an index into `classes`.
        classes: the class names.
    """

    name: str
    split: str
    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def fingerprint(self) -> str:
        """The sha256 (hex) of the image bytes followed by the label bytes: equal data, equal fingerprint."""
        digest = hashlib.sha256(self.images.contiguous().numpy())
        digest.update(self.labels.contiguous().numpy())
        return digest.hexdigest()

    def floats(self, index: Tensor | slice | list[int] | None = None) -> Tensor:
        """The images (all, or those at `index`) as float32 N×C×H×W in [0, 1]: exactly byte / 255."""
        return scaled(self.images if index is None else self.images[index])

    def take(self, index: Tensor | slice | list[int]) -> tuple[Tensor, Tensor]:
        """Images (float32 in [0, 1]) and labels at `index`."""
        return self.floats(index), self.labels[index]


def scaled(images: Tensor) -> Tensor:
    """Bytes divided by 255, as float32; floats, which are in [0, 1] already, as they are."""
    return images / 255 if images.dtype == torch.uint8 else images


def balanced_subset(dataset: Dataset, n: int, seed: int = 0) -> Tensor:
    """Indices (int64, ascending) of a fixed random subset with the same number of images of every class.

    Where `n` is no multiple of the number of classes, the first classes give one image more.

    Raises:
        InputError: `n` is not positive, or a class has too few images.
    """
    classes = len(dataset.classes)
    if n < 1:
        raise InputError(f"a subset needs at least 1 image, got n={n}.")
    generator = torch.Generator().manual_seed(seed)
    chosen = []
    for label in range(classes):
        members = torch.nonzero(dataset.labels == label).flatten()
        wanted = n // classes + (label < n % classes)
        if wanted > len(members):
            raise InputError(
                f"class {dataset.classes[label]!r} of {dataset.name} {dataset.split} has {len(members)} images, "
                f"but a balanced subset of {n} needs {wanted}; ask for at most {len(members) * classes}."
            )
        chosen.append(members[torch.randperm(len(members), generator=generator)[:wanted]])
    return torch.cat(chosen).sort().values
