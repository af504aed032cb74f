"""Image folders: where they are looked for, and pictures of any number of classes read into one array.

The order is always the same, and the classes take turns in it: the first picture of every class, then the second of
every class, and so on. So the first n images of any of these data sets hold all classes.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from qpatch import store
from qpatch.errors import DataError


def find(names: Iterable[str], root: str | os.PathLike | None, below: Sequence[str], how: str) -> pathlib.Path:
    """The folder of a data set: the first that holds all of `below`.

    Args:
        names: paths of the folder as published, relative to the places searched.
        root: where to look first, in place of QPATCH_DATA; the cache follows. Both may also be the folder itself.
        below: subfolders or files that tell the folder from others.
        how: how to get the data, for the error.

    Raises:
        DataError: it is in none of these places.
    """
    given = root or os.environ.get("QPATCH_DATA")
    places = [pathlib.Path(given).expanduser()] if given else []
    for place in [*places, store.cache_dir()]:
        for folder in (place, *(place / name for name in names)):
            if all((folder / part).exists() for part in below):
                return folder
    searched = ", ".join(str(place) for place in [*places, store.cache_dir()])
    raise DataError(f"data not present: no folder {' or '.join(names)} in {searched}. {how}")


def pictures(folder: pathlib.Path) -> list[pathlib.Path]:
    """The JPEG and PNG files right in a folder, in the order of their names.

    Raises:
        DataError: there is none.
    """
    found = sorted(file for file in folder.glob("*") if file.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if not found:
        raise DataError(f"{folder} is missing or holds no JPEG or PNG file; copy the data set again.")
    return found


def take_turns(classes: Sequence[Sequence[pathlib.Path]]) -> tuple[list[pathlib.Path], Tensor]:
    """The files of all classes, the classes taking turns until a class has no more, and their labels (int64)."""
    turns = sorted((turn, label) for label, files in enumerate(classes) for turn in range(len(files)))
    return [classes[label][turn] for turn, label in turns], torch.tensor([label for _, label in turns])


def decode(files: Sequence[pathlib.Path], size: int) -> Tensor:
    """Pictures as uint8 N×3×size×size; where one has another size, resized by PIL's bilinear filter.

    Raises:
        DataError: a file is no picture or is cut short.
    """
    images = np.empty((len(files), 3, size, size), np.uint8)
    for i, file in enumerate(files):
        try:
            with Image.open(file) as picture:
                rgb = picture.convert("RGB")
        except (OSError, SyntaxError) as error:  # PIL reports a broken PNG as a SyntaxError
            raise DataError(f"{file} cannot be read as a picture ({error}); copy the data set again.") from error
        if rgb.size != (size, size):
            rgb = rgb.resize((size, size), Image.Resampling.BILINEAR)
        images[i] = np.asarray(rgb).transpose(2, 0, 1)
    return torch.from_numpy(images)
