"""Photographs with ImageNet labels: their order and halves, two public layouts, and what is said where they are missing."""

import csv
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from qpatch.data import load, photographs
from qpatch.errors import DataError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Six grey pictures whose grey is their place in the order of names; listed backwards."""
    place = tmp_path / "nips2017_224"
    place.mkdir()
    names = [f"{letter}0" for letter in "abcdef"]
    with open(place / "images.csv", "w", newline="") as table:
        writer = csv.writer(table)
        writer.writerow(["ImageId", "TrueLabel"])
        for number, name in reversed(list(enumerate(names))):
            writer.writerow([name, 100 + number])
            Image.fromarray(np.full((224, 224, 3), 10 * number, np.uint8)).save(place / f"{name}.png")
    monkeypatch.setenv("QPATCH_DATA", str(tmp_path))
    monkeypatch.setenv("QPATCH_CACHE", str(tmp_path / "cache"))
    return place


def test_halves_take_turns_and_labels_count_from_zero(folder):
    train, test = load("photographs", "train"), load("photographs", "test")
    assert train.images[:, 0, 0, 0].tolist() == [0, 20, 40] and test.images[:, 0, 0, 0].tolist() == [10, 30, 50]
    assert train.labels.tolist() == [99, 101, 103] and test.labels.tolist() == [100, 102, 104]
    assert train.images.shape == (3, 3, 224, 224) and train.images.dtype == torch.uint8
    assert len(train.classes) == 1000 and train.classes[:2] == ("tench", "goldfish")


def test_the_repositorys_own_layout_has_a_folder_of_larger_pictures(folder):
    (folder / "images").mkdir()
    for file in folder.glob("*.png"):
        large = Image.open(file).resize((299, 299))
        large.save(folder / "images" / file.name)
        file.unlink()
    assert load("photographs", "test").images.shape == (3, 3, 224, 224)
    assert load("photographs", "test").images[:, 0, 0, 0].tolist() == [10, 30, 50]


def test_what_is_wrong_is_said(folder, tmp_path, monkeypatch):
    (folder / "c0.png").unlink()
    with pytest.raises(DataError, match="lacks 1 of 6 pictures, c0 first"):
        load("photographs", "train")
    (folder / "images.csv").write_text("Name,Label\na0,1\n")
    with pytest.raises(DataError, match="no columns ImageId and TrueLabel"):
        load("photographs", "train")
    monkeypatch.setenv("QPATCH_DATA", str(tmp_path / "elsewhere"))
    with pytest.raises(DataError, match="data not present.*Targeted-Transfer.*QPATCH_DATA"):
        load("photographs", "train")


def test_first_picture_of_each_class_of_a_validation_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("QPATCH_DATA", str(tmp_path))
    monkeypatch.setenv("QPATCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(photographs, "SIZE", 8)

    class Three:
        def label_names(self):
            return ["n01", "n02", "n03"]

        def num_classes(self):
            return 3

        def index_to_description(self, index):
            return f"class {index}, also called so"

    monkeypatch.setattr(photographs, "_info", Three)
    for number, wnid in enumerate(Three().label_names()):
        (tmp_path / "imagenet" / "val" / wnid).mkdir(parents=True)
        picture = np.zeros((40, 60, 3), np.uint8)
        picture[:, 2:58] = 50 * (number + 1)  # one grey in the central square of 35 pixels and where the filter looks
        Image.fromarray(picture).save(tmp_path / "imagenet" / "val" / wnid / "b.png")
        Image.fromarray(255 - picture).save(tmp_path / "imagenet" / "val" / wnid / "c.png")
    train, test = load("photographs", "train"), load("photographs", "test")
    assert train.labels.tolist() == [0, 2] and test.labels.tolist() == [1]
    assert (train.images[1] == 150).all() and (test.images == 100).all() and train.images.shape == (2, 3, 8, 8)
    assert train.classes[2] == "class 2"


def test_the_public_photographs():
    given = os.environ.get("QPATCH_DATA", "")
    if not (Path(given) / "nips2017_224").is_dir():
        pytest.skip("QPATCH_DATA holds no nips2017_224")
    test = load("photographs", "test")
    assert len(test) == 500 and 0 <= int(test.labels.min()) and int(test.labels.max()) < 1000
