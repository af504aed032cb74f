"""The zoo: what ships is whole, small, and as accurate as its cards say; smoke networks are made once."""

import json
from dataclasses import replace
from functools import cache

import pandas as pd
import pytest
import torch

from qpatch import data, measure, store, zoo
from qpatch.attacks import Patch
from qpatch.errors import DataError, ParameterError, StoreError
from qpatch.zoo import networks, patches, recipes
from qpatch.zoo.recipes import entry

SHIPPED = zoo.shipped()


@pytest.fixture(scope="module")
def test_splits():
    """Data set → its test split, loaded once; the test is skipped where the data are not to be had."""

    @cache
    def load(name: str) -> data.Dataset:
        try:
            return data.load(name, "test")
        except DataError as error:
            pytest.skip(f"{name} is not to be had: {error}")

    return load


def test_everything_that_should_ship_ships():
    assert set(SHIPPED) == set(zoo.ENTRIES) - set(recipes.NOT_SHIPPED)
    missing = [wanted.path for wanted in patches.shipped_entries()
               if not wanted.path.with_suffix(".png" if wanted.scope == "universal" else ".safetensors").exists()]
    assert not missing


def test_the_zoo_stays_small_and_without_pickles():
    files = [path for folder in (networks.FOLDER, patches.FOLDER) for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in networks.FOLDER.iterdir()) < 25e6
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".png"}


@pytest.mark.parametrize("name", SHIPPED)
def test_the_card_tells_all_and_its_accuracy_is_measured_again(name, test_splits):
    card = zoo.card(name)
    for field in ("entry", "data_fingerprint", "commit", "hardware", "torch", "training_seconds", "licence", "limits"):
        assert field in card, f"the card of {name} lacks {field}"
    assert card["entry"] == json.loads(json.dumps(networks.asdict(entry(name)))), "trained with another recipe"
    net = zoo.load(name)
    test = test_splits(card["dataset"])
    images, labels = test.take(data.balanced_subset(test, 500) if len(test) > 2000 else slice(None))
    for bits, expected in card["clean_accuracy"].items():
        measured = measure.accuracy(net.at(int(bits)), images, labels)
        assert abs(measured - expected) < 0.05, f"{name} at {bits} bits: card {expected}, measured {measured}"


def test_float_and_joint_reach_what_the_tables_need():
    """The bounds of the transfer study; the cards tell the accuracy on all 10,000 test images, measured again above."""
    joint, base = zoo.card("joint")["clean_accuracy"], zoo.card("float")["clean_accuracy"]["32"]
    assert zoo.card("joint")["test_images"] == zoo.card("float")["test_images"] == 10_000
    assert base >= 0.87
    for bits, loss in ((8, 0.007), (5, 0.02), (4, 0.04)):
        assert joint[str(bits)] >= base - loss
    assert joint["2"] >= 0.76 and zoo.card("qat-2")["clean_accuracy"]["2"] >= 0.80


def test_shipped_patches_load_and_say_where_they_come_from():
    for wanted in patches.shipped_entries():
        if wanted.scope == "universal":
            patch = zoo.load_patch(wanted)
            assert patch.size == (wanted.size, wanted.size) and patch.target == wanted.target
            assert patch.made_on["network"] == wanted.network and patch.made_on["bits"] == wanted.bits
            assert torch.equal(patch.pixels, patch.rounded().pixels)


def test_image_specific_sheets_fit_the_evaluation_subset():
    pixels, places = zoo.load_specific(zoo.PatchEntry("float", 32, scope="image-specific"))
    assert pixels.shape == (1000, 3, 6, 6) and places.shape == (1000, 2)
    assert 0 <= int(places.min()) and int(places.max()) == 26


def test_families_hold_the_same_float_network():
    names = {training: zoo.members(training) for training in zoo.FAMILIES}
    assert {names[training][32] for training in zoo.FAMILIES} == {"float", "joint"}
    assert names["qat-finetuned"][2] == "qat-2" and names["qat-independent"][8] == "indep-8"
    with pytest.raises(ParameterError, match="unknown family"):
        zoo.members("qat")
    with pytest.raises(ParameterError, match="unknown bit-width 3"):
        zoo.members("ptq", (3,))


def test_unknown_names_are_answered_with_the_nearest():
    with pytest.raises(ParameterError, match="Did you mean 'joint'"):
        zoo.load("joind")
    with pytest.raises(ParameterError, match="unknown attack"):
        zoo.PatchEntry("float", 32, "LAVAN")
    with pytest.raises(ParameterError, match="unknown data set for the network float"):
        zoo.load("float", "cifar100")


def test_a_damaged_checkpoint_is_named(tmp_path, monkeypatch):
    for suffix in (".safetensors", ".json"):
        source = networks.FOLDER / f"float{suffix}"
        (tmp_path / source.name).write_bytes(source.read_bytes())
    monkeypatch.setattr(networks, "FOLDER", tmp_path)
    path = tmp_path / "float.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(StoreError, match="float.safetensors is damaged"):
        zoo.load("float")


def test_a_smoke_network_is_trained_once_and_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("QPATCH_CACHE", str(tmp_path))
    tiny = replace(entry("float", "shapes"), recipe=replace(entry("float", "shapes").recipe, epochs=1))
    monkeypatch.setattr(networks, "entry", lambda name, dataset="cifar10": tiny)
    lines: list[str] = []
    first = zoo.load("float", "shapes", report=lines.append)
    assert any("epoch 1/1" in line for line in lines)
    lines.clear()
    again = zoo.load("float", "shapes", report=lines.append)
    assert not lines
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(first.at(32)(x), again.at(32)(x))
    assert not list((tmp_path / "training").glob("*")), "the resumable state of a finished training is left over"


@pytest.mark.parametrize("retrain", [False, True])
def test_retraining_reaches_back_to_the_first_network(retrain, monkeypatch, tmp_path):
    """A retrained network must not start from the shipped one."""
    monkeypatch.setenv("QPATCH_CACHE", str(tmp_path))
    asked, start = [], networks._build(entry("float")).eval()
    monkeypatch.setattr(networks, "load", lambda name, *args, retrain=False, **options: asked.append((name, retrain)) or start)
    networks.train_entry("ptq", "shapes", fresh=retrain, report=lambda line: None)
    assert asked == [("float", retrain)]


def test_patch_keys_change_with_the_network(monkeypatch):
    wanted = zoo.PatchEntry("float", 32)
    one = patches._parts(wanted, "shapes", False)
    net = zoo.load("float", "shapes")
    with torch.no_grad():
        net.at(32).fc.bias.add_(1)
    monkeypatch.setattr(networks, "load", lambda *args, **options: net)
    assert store.key(**one) != store.key(**patches._parts(wanted, "shapes", False))


def test_evaluation_rows_have_the_columns_of_the_transfer_matrix():
    evaluation = zoo.Evaluation("shapes", (32,), seeds=1)
    rows = evaluation.universal("ptq", "LaVAN")
    assert list(rows.columns) == (
        "dataset model training attack scope patch_size source_bits target_bits seed n asr ci_low ci_high error_rate "
        "clean_accuracy asr_noise asr_grey asr_photo"
    ).split()
    assert torch.equal(evaluation.places(), zoo.Evaluation("shapes", (32,)).places())
    pixel = evaluation.pixel("ptq", 20)
    assert isinstance(pixel, pd.DataFrame) and pixel["patch_size"].eq(0).all() and pixel["asr_grey"].isna().all()


def test_saved_patch_of_the_zoo_is_a_plain_patch(tmp_path):
    patch = zoo.load_patch(zoo.PatchEntry("joint", 32))
    assert torch.equal(Patch.load(patch.save(tmp_path / "copy")).pixels, patch.pixels)
