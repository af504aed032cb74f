"""Visual Wake Words from a folder: both classes in any first part, Keras' split, and what is said where missing."""

import numpy as np
import pytest
import torch
from PIL import Image

from qpatch.data import load
from qpatch.errors import DataError, InputError

COUNTS = {"non_person": 29, "person": 21}


@pytest.fixture
def words(tmp_path, monkeypatch):
    """A small vw_coco2014_96; picture i of a class is filled with the value i, or 100 + i where there is a person."""
    for name, count in COUNTS.items():
        folder = tmp_path / "vw_coco2014_96" / name
        folder.mkdir(parents=True)
        for i in range(count):
            grey = np.full((96, 96, 3), i + 100 * (name == "person"), np.uint8)
            Image.fromarray(grey).save(folder / f"COCO_{i:04}.jpg", quality=100)
    monkeypatch.setenv("QPATCH_DATA", str(tmp_path))
    monkeypatch.setenv("QPATCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "vw_coco2014_96"


def test_the_first_tenth_of_every_class_is_the_test_split(words):
    test, train = load("vww", "test"), load("vww", "train")
    assert test.images[:, 0, 0, 0].tolist() == [0, 100, 1, 101]  # int(2.9) and int(2.1) pictures
    assert len(train) == 46 and train.images[:, 0, 0, 0].min() == 2 and train.images[1, 0, 0, 0] == 102
    assert test.images.shape == (4, 3, 96, 96) and test.classes == ("non_person", "person")


def test_any_first_part_holds_both_classes(words):
    train = load("vww", "train")
    for n in range(2, 39):  # 19 pictures with a person
        counts = torch.bincount(train.labels[:n], minlength=2)
        assert counts[0] - counts[1] in (0, 1)
    assert torch.bincount(train.labels).tolist() == [27, 19]


def test_the_same_every_time(words):
    assert load("vww", "test").fingerprint == load("vww", "test", root=words).fingerprint


def test_missing_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setenv("QPATCH_DATA", str(tmp_path))
    monkeypatch.setenv("QPATCH_CACHE", str(tmp_path / "cache"))
    with pytest.raises(DataError, match="data not present.*vw_coco2014_96.tar.gz.*QPATCH_DATA"):
        load("vww", "test")


def test_bad_arguments_and_files(words):
    with pytest.raises(InputError, match="vww has a fixed size"):
        load("vww", "test", n=5)
    (words / "person" / "COCO_0000.jpg").write_text("no picture")
    with pytest.raises(DataError, match="COCO_0000.jpg cannot be read"):
        load("vww", "test")
