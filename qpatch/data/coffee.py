"""Coffee leaves: the public crops of symptoms by Esgario, Krohling and Ventura (2020), in place of paper C's own.

Paper C's leaf data are not public in a form that can be fetched. These are: five classes instead of its four.

Esgario, J. G. M., Krohling, R. A., Ventura, J. A. Deep learning for classification and severity estimation of coffee
leaf biotic stress. Computers and Electronics in Agriculture 169, 2020.
"""

from __future__ import annotations

import os
from pathlib import Path

from qpatch.data import folders
from qpatch.data.dataset import Dataset
from qpatch.errors import DataError

CLASSES = ("health", "miner", "rust", "phoma", "cercospora")
FOLDERS = ("coffee_symptom_160", "classification/dataset/symptom", "lara2018/classification/dataset/symptom")
PARTS = {"train": ("train",), "test": ("val", "test")}
COUNTS = {"train": 1905, "test": 817}
SIZE = 224
HOW = (
    "It comes from GitHub, esgario/lara2018: run `git clone --depth 1 https://github.com/esgario/lara2018` in a folder "
    "and set QPATCH_DATA to that folder; any folder coffee_symptom_160/{train,val,test}/{1_health,2_miner,3_rust,"
    "4_phoma,5_cercospora} serves. Licence: the repository is MIT, the BRACOL images CC BY 4.0, a part (Embrapa's "
    "Digipathos) unstated: do not pass them on."
)


def folder(root: str | os.PathLike | None = None) -> Path:
    """Where the public folder lies.

    Raises:
        DataError: in none of `root` or QPATCH_DATA and the cache; the message says how to get it.
    """
    return folders.find(FOLDERS, root, [f"{part}/1_health" for part in ("train", "val", "test")], HOW)


def load_coffee(split: str, root: str | os.PathLike | None = None) -> Dataset:
    """Coffee leaves with one of four diseases or none: 1,905 training and 817 test images, 224×224 pixels, 5 classes.

    "train" is the public training folder. "test" is the public validation and test folders together: nothing here is
    chosen by validation accuracy, so both are unseen. Names suggest that crops of some leaves lie on both sides of the
    public split, and one picture does: accuracy is a little optimistic, for every network alike. Classes take turns
    (see `qpatch.data.folders`); the pictures are resized to 224×224 by PIL's bilinear filter.

    Raises:
        DataError: the folder is in none of `root` or QPATCH_DATA and the cache; it is incomplete; a picture is damaged.
    """
    public = folder(root)
    classes = [
        [file for part in PARTS[split] for file in folders.pictures(public / part / f"{number}_{name}")]
        for number, name in enumerate(CLASSES, start=1)
    ]
    files, labels = folders.take_turns(classes)
    if len(files) != COUNTS[split]:
        raise DataError(
            f"{public} holds {len(files)} images of the {split} split instead of {COUNTS[split]}; copy them again."
        )
    return Dataset("coffee", split, folders.decode(files, SIZE), labels, CLASSES)
