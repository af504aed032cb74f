"""Visual Wake Words (Chowdhery et al. 2019) in MLPerf Tiny's form: is there a person in the picture?

The pictures come from COCO 2014 (annotations CC BY 4.0, pictures under the terms of Flickr), resized to 96×96 by the
makers of the benchmark.
"""

from __future__ import annotations

import os
from pathlib import Path

from qpatch.data import folders
from qpatch.data.dataset import Dataset

CLASSES = ("non_person", "person")
FOLDERS = ("vw_coco2014_96",)
TEST_SHARE = 0.1
SIZE = 96
HOW = (
    "It is the archive vw_coco2014_96.tar.gz that MLPerf Tiny trains on (its address is in download_and_train_vww.sh "
    "of GitHub mlcommons/tiny); unpack it in a folder and set QPATCH_DATA to that folder. It holds non_person/ and "
    "person/ with 96×96 JPEGs made from COCO 2014."
)


def folder(root: str | os.PathLike | None = None) -> Path:
    """Where the public folder lies.

    Raises:
        DataError: in none of `root` or QPATCH_DATA and the cache; the message says how to get it.
    """
    return folders.find(FOLDERS, root, CLASSES, HOW)


def load_vww(split: str, root: str | os.PathLike | None = None) -> Dataset:
    """Pictures without (class 0) and with (class 1) a person, 96×96 pixels, in a fixed order, not augmented.

    "test" is the first tenth of every class in the order of file names, as Keras' `ImageDataGenerator` with
    `validation_split=0.1` has it, "train" the rest: so MLPerf Tiny's networks have not been trained on "test".

    Two differences from paper C's evaluation. Its loader lists class after class without shuffling and its attacks take
    the first 1,000 images, which then are all of class "non_person": here the classes take turns (see
    `qpatch.data.folders`), so any first n images hold as many of either class, while the smaller lasts. And its loader
    rotates and zooms test images at random, which moves pixels off the lattice of 8-bit values: here they stay on it.

    Raises:
        DataError: the folder is in none of `root` or QPATCH_DATA and the cache; a picture is damaged.
    """
    public, classes = folder(root), []
    for name in CLASSES:
        files = folders.pictures(public / name)
        first = int(TEST_SHARE * len(files))
        classes.append(files[:first] if split == "test" else files[first:])
    files, labels = folders.take_turns(classes)
    return Dataset("vww", split, folders.decode(files, SIZE), labels, CLASSES)
