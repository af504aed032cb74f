"""Data sets: where they come from, their checksums, and fixed subsets.

Patches are trained on the "train" split and scored on the "test" split only.
"""

from __future__ import annotations

import os

from qpatch.data.cifar10 import load_cifar10
from qpatch.data.dataset import Dataset, balanced_subset
from qpatch.data.shapes import make_shapes
from qpatch.errors import InputError, one_of

DEFAULT_SIZE = {"train": 2000, "test": 500}  # of shapes

__all__ = ["Dataset", "balanced_subset", "load"]


def load(
    name: str, split: str, *, n: int | None = None, seed: int = 0, root: str | os.PathLike | None = None
) -> Dataset:
    """Load a data set.

    Args:
        name: "cifar10" (Krizhevsky, 2009) or "shapes" (made from a seed, no download).
        split: "train" or "test".
        n: number of images, for shapes only (2,000 train, 500 test if None); a subset of CIFAR-10 is for
            `balanced_subset`.
        seed: of shapes only; the splits of one seed differ.
        root: folder in which to look for CIFAR-10 first, in place of QPATCH_DATA.

    Raises:
        ParameterError: unknown name or split.
        InputError: `n` with CIFAR-10, or not positive.
        DataError: CIFAR-10 could not be had from any source.
    """
    one_of(name, ("cifar10", "shapes"), "data set")
    one_of(split, ("train", "test"), "split")
    if n is not None and n < 1:
        raise InputError(f"a data set needs at least 1 image, got n={n}.")
    if name == "shapes":
        return make_shapes(split, n or DEFAULT_SIZE[split], seed)
    if n is not None:
        raise InputError("cifar10 has a fixed size; take a part of it with balanced_subset(dataset, n).")
    return load_cifar10(split, root)
