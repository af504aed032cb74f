"""Coffee leaves from a folder of JPEGs: order, size, splits, and what is said where they are missing or damaged."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from qpatch.data import balanced_subset, coffee, folders, load
from qpatch.errors import DataError, InputError

COUNTS = {"train": (1, 3, 2, 1, 1), "val": (1, 1, 1, 1, 1), "test": (1, 2, 1, 1, 1)}


@pytest.fixture
def leaves(tmp_path, monkeypatch):
    """A small folder in the public layout; every picture has one grey value, 10 · class + its number."""
    for part, counts in COUNTS.items():
        for label, count in enumerate(counts):
            folder = tmp_path / "coffee_symptom_160" / part / f"{label + 1}_{coffee.CLASSES[label]}"
            folder.mkdir(parents=True)
            for number in reversed(range(count)):
                grey = 10 * label + number + (100 if part == "test" else 0)
                Image.fromarray(np.full((160, 160, 3), grey, np.uint8)).save(folder / f"{number}.jpg", quality=100)
    monkeypatch.setattr(coffee, "COUNTS", {"train": 8, "test": 11})
    monkeypatch.setenv("QPATCH_DATA", str(tmp_path))
    monkeypatch.setenv("QPATCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "coffee_symptom_160"


def greys(dataset):
    assert (dataset.images.flatten(1) == dataset.images[:, :1, 0, 0]).all()  # resizing keeps a flat picture flat
    return dataset.images[:, 0, 0, 0].tolist()


def test_classes_take_turns_in_a_fixed_order(leaves):
    train = load("coffee", "train")
    assert train.images.shape == (8, 3, 224, 224) and train.images.dtype == torch.uint8
    assert greys(train) == [0, 10, 20, 30, 40, 11, 21, 12]
    assert train.labels.tolist() == [0, 1, 2, 3, 4, 1, 2, 1] and train.classes[2] == "rust"
    assert load("coffee", "train").fingerprint == train.fingerprint


def test_test_is_the_validation_folder_then_the_test_folder(leaves):
    assert greys(load("coffee", "test")) == [0, 10, 20, 30, 40, 100, 110, 120, 130, 140, 111]


def test_resized_by_pils_bilinear_filter(leaves):
    picture = np.random.default_rng(0).integers(0, 256, (160, 160, 3), np.uint8)
    Image.fromarray(picture).save(leaves / "train" / "1_health" / "0.jpg", quality=90)
    with Image.open(leaves / "train" / "1_health" / "0.jpg") as decoded:
        expected = np.asarray(decoded.resize((224, 224), Image.Resampling.BILINEAR))
    assert np.array_equal(load("coffee", "train").images[0].permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize("where", ["root", "itself", "cache", "checkout"])
def test_found_wherever_it_may_lie(leaves, monkeypatch, where):
    monkeypatch.delenv("QPATCH_DATA")
    if where == "root":
        assert len(load("coffee", "train", root=leaves.parent)) == 8
    elif where == "itself":
        assert len(load("coffee", "train", root=leaves)) == 8
    elif where == "cache":
        monkeypatch.setenv("QPATCH_CACHE", str(leaves.parent))
        assert len(load("coffee", "train")) == 8
    else:
        checkout = leaves.parent / "lara2018" / "classification" / "dataset"
        checkout.mkdir(parents=True)
        leaves.rename(checkout / "symptom")
        for root in (leaves.parent, checkout.parents[1]):
            assert len(load("coffee", "train", root=root)) == 8


def test_missing_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setenv("QPATCH_DATA", str(tmp_path))
    monkeypatch.setenv("QPATCH_CACHE", str(tmp_path / "cache"))
    with pytest.raises(DataError, match="data not present.*esgario/lara2018.*QPATCH_DATA"):
        load("coffee", "train")


def test_damaged_or_incomplete(leaves):
    victim = leaves / "train" / "2_miner" / "1.jpg"
    victim.write_bytes(victim.read_bytes()[:200])
    with pytest.raises(DataError, match="1.jpg cannot be read"):
        load("coffee", "train")
    victim.unlink()
    with pytest.raises(DataError, match="7 images of the train split instead of 8"):
        load("coffee", "train")
    (leaves / "train" / "4_phoma" / "0.jpg").unlink()
    with pytest.raises(DataError, match="4_phoma is missing or holds no"):
        load("coffee", "train")


def test_has_a_fixed_size(leaves):
    with pytest.raises(InputError, match="coffee has a fixed size"):
        load("coffee", "test", n=5)
    assert len(balanced_subset(load("coffee", "test"), 5)) == 5


def test_take_turns():
    files, labels = folders.take_turns([[Path("a"), Path("b"), Path("c")], [Path("d")]])
    assert [str(f) for f in files] == ["a", "d", "b", "c"] and labels.tolist() == [0, 1, 0, 0]


def test_the_public_leaves():
    given = os.environ.get("QPATCH_DATA", "")
    if not (Path(given) / "coffee_symptom_160").is_dir():
        pytest.skip("QPATCH_DATA holds no coffee_symptom_160")
    test = load("coffee", "test")
    assert torch.bincount(test.labels).tolist() == [77, 179, 297, 151, 113]
    assert torch.bincount(test.labels[:100]).tolist() == [20] * 5
