"""1,000 photographs with ImageNet labels, 224×224 pixels: those of the NIPS 2017 competition, or one of each class.

Kurakin, A. et al. Adversarial attacks and defences competition. The NIPS '17 Competition: Building Intelligent
Systems, 2018: its development set, photographs under CC BY 2.0. Russakovsky, O. et al. ImageNet large scale visual
recognition challenge. IJCV 115, 2015: the classes.
"""

from __future__ import annotations

import csv
import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from qpatch.data import folders
from qpatch.data.dataset import Dataset
from qpatch.errors import DataError

FOLDERS = ("nips2017_224", "Targeted-Transfer/dataset", "dataset")
VALIDATION = ("imagenet/val", "imagenet", "val")
SIZE = 224
CROP = 0.875  # of the shorter side of an ImageNet picture, as timm's networks are evaluated
HOW = (
    "They are the development set of the NIPS 2017 competition, carried by GitHub, ZhengyuZhao/Targeted-Transfer: run "
    "`git clone --depth 1 https://github.com/ZhengyuZhao/Targeted-Transfer` in a folder and set QPATCH_DATA to that "
    "folder (it needs images.csv, and the pictures beside it or in images/). Or set it to a folder that holds "
    "imagenet/val with one subfolder of JPEGs for each of the 1,000 classes (n01440764, …)."
)


def class_names() -> tuple[str, ...]:
    """The 1,000 classes by index, each with the first of its names ("tench", "goldfish", …)."""
    info = _info()
    return tuple(info.index_to_description(index).split(",")[0] for index in range(info.num_classes()))


def load_photographs(split: str, root: str | os.PathLike | None = None) -> Dataset:
    """Half of the 1,000 photographs: "train" is every other one in the order of file names, "test" the rest.

    The competition names its files by hashes, so that order is random. Its images.csv counts classes from 1; labels
    here count from 0. Pictures of another size are resized by PIL's bilinear filter. Where that set is missing, an
    ImageNet validation folder serves: the first picture of each class, its central square (0.875 of the shorter side)
    resized by the bicubic filter.

    Raises:
        DataError: neither is in `root` or QPATCH_DATA or the cache; a picture is missing or damaged.
    """
    part = slice(int(split == "test"), None, 2)
    try:
        public = folders.find(FOLDERS, root, ["images.csv"], HOW)
    except DataError as missing:
        return _validation(split, part, root, missing)
    files, labels = _listed(public)
    return Dataset("photographs", split, folders.decode(files[part], SIZE), labels[part], class_names())


def _listed(public: Path) -> tuple[list[Path], torch.Tensor]:
    """The files that images.csv names and their labels, in the order of their names."""
    with open(public / "images.csv", newline="", encoding="utf-8") as table:
        try:
            classes = {row["ImageId"]: int(row["TrueLabel"]) - 1 for row in csv.DictReader(table)}
        except (KeyError, ValueError) as error:
            what = f"{public / 'images.csv'} has no columns ImageId and TrueLabel ({error})"
            raise DataError(f"{what}; copy it again.") from error
    place = public / "images" if (public / "images").is_dir() else public
    there = {file.stem: file for file in folders.pictures(place)}
    if absent := sorted(set(classes) - set(there)):
        lost = f"{place} lacks {len(absent)} of {len(classes)} pictures, {absent[0]} first"
        raise DataError(f"{lost}; copy the data set again.")
    names = sorted(classes)
    return [there[name] for name in names], torch.tensor([classes[name] for name in names])


def _validation(split: str, part: slice, root, missing: DataError) -> Dataset:
    """The first picture of every class of an ImageNet validation folder."""
    wnids = _info().label_names()
    try:
        public = folders.find(VALIDATION, root, [wnids[0], wnids[-1]], HOW)
    except DataError:
        raise missing from None
    labels = torch.arange(len(wnids))[part]
    images = np.stack([_central(_first(public / wnids[label])) for label in labels.tolist()])
    return Dataset("photographs", split, torch.from_numpy(images), labels, class_names())


def _first(folder: Path) -> Path:
    found = sorted(file for file in folder.glob("*") if file.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if not found:
        raise DataError(f"{folder} is missing or holds no picture; every class needs one.")
    return found[0]


def _central(file: Path) -> np.ndarray:
    """The central square of a picture as uint8 3×224×224."""
    try:
        with Image.open(file) as picture:
            rgb = picture.convert("RGB")
    except (OSError, SyntaxError) as error:
        raise DataError(f"{file} cannot be read as a picture ({error}); copy the data set again.") from error
    side, (width, height) = CROP * min(rgb.size), rgb.size
    box = ((width - side) / 2, (height - side) / 2, (width + side) / 2, (height + side) / 2)
    return np.asarray(rgb.resize((SIZE, SIZE), Image.Resampling.BICUBIC, box=box)).transpose(2, 0, 1)


def _info():
    from timm.data import ImageNetInfo  # here, because timm takes a second to load and most data sets do not need it

    return ImageNetInfo()
