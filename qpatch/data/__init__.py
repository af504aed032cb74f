"""Data sets: where they come from, their checksums, and fixed subsets.

Patches are trained on the "train" split and scored on the "test" split only.
"""

from __future__ import annotations

import os

from qpatch.data.cifar10 import load_cifar10
from qpatch.data.coffee import load_coffee
from qpatch.data.dataset import Dataset, balanced_subset
from qpatch.data.photographs import load_photographs
from qpatch.data.shapes import make_shapes
from qpatch.data.speech import load_speech
from qpatch.data.tumours import load_tumours
from qpatch.data.vww import load_vww
from qpatch.errors import InputError, one_of

DEFAULT_SIZE = {"train": 2000, "test": 500}  # of shapes
LOADERS = {
    "cifar10": load_cifar10, "coffee": load_coffee, "photographs": load_photographs, "speech": load_speech,
    "tumours": load_tumours, "vww": load_vww,
}  # fmt: skip

__all__ = ["Dataset", "balanced_subset", "load"]


def load(
    name: str, split: str, *, n: int | None = None, seed: int = 0, root: str | os.PathLike | None = None
) -> Dataset:
    """Load a data set.

    Args:
        name: "cifar10" (Krizhevsky, 2009), "coffee" (leaves, 224 px), "photographs" (ImageNet labels, 224 px),
            "speech" (spoken digits, 16 frames of 13 cepstral coefficients), "tumours" (a table of 30 features),
            "vww" (Visual Wake Words, 96 px), or "shapes" (made from a seed, no download).
        split: "train" or "test".
        n: number of images, for shapes only (2,000 train, 500 test if None); a subset of the others is
            for `balanced_subset`.
        seed: of shapes only; the splits of one seed differ.
        root: folder in which to look for the data first, in place of QPATCH_DATA.

    Raises:
        ParameterError: unknown name or split.
        InputError: `n` with a data set of fixed size, or not positive.
        DataError: the data are not on this machine and cannot be had; the message says how to get them.
    """
    one_of(name, (*LOADERS, "shapes"), "data set")
    one_of(split, ("train", "test"), "split")
    if n is not None and n < 1:
        raise InputError(f"a data set needs at least 1 image, got n={n}.")
    if name == "shapes":
        return make_shapes(split, n or DEFAULT_SIZE[split], seed)
    if n is not None:
        raise InputError(f"{name} has a fixed size; take a part of it with balanced_subset(dataset, n).")
    return LOADERS[name](split, root)
