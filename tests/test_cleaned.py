"""Networks behind input defenses at several precisions: the rates by hand, and long attacks as artefacts."""

import dataclasses

import pytest
import torch

from qpatch import store
from qpatch.defenses import JPEG, Defended, FeatureSqueezing
from qpatch.errors import DataError, InputError, ParameterError
from qpatch.measure import cleaned, defended_predictions, defended_rows, predict, wilson
from qpatch.models.pixelcnn import PixelCNN
from qpatch.zoo import attacked
from qpatch.zoo import cleaned as zoo_cleaned
from qpatch.zoo.cleaned import IMAGES, CleanedEntry, load_cleaned
from qpatch.zoo.deployed import PRECISIONS
from untrained import untrained_target


@pytest.fixture(scope="module")
def aim():
    return untrained_target()


@pytest.fixture
def views(aim):
    return {precision: aim.scores(precision) for precision in PRECISIONS}


@pytest.fixture
def small_world(aim, tmp_path, monkeypatch):
    """Random weights in place of the zoo's, empty folders, a PixelCNN of one block, short attacks."""
    monkeypatch.setenv("QPATCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(zoo_cleaned, "FOLDER", tmp_path / "cleaned")
    monkeypatch.setattr(attacked, "target", lambda task, retrain=False: aim)
    monkeypatch.setattr(attacked, "SMOKE", {"DeepFool": {"steps": 3}})
    monkeypatch.setattr(zoo_cleaned, "load_pixelcnn", lambda dataset, retrain=False: PixelCNN(6, 1).eval())


class Counting:
    """A defense on bytes that counts what it cleans."""

    on_bytes = True

    def __init__(self):
        self.count = 0

    def __call__(self, images):
        self.count += len(images)
        return ((images * 255).round() / 255).flip(3)


def test_what_is_cleaned_is_what_a_defended_network_cleans(views):
    images = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    squeezing = {precision: FeatureSqueezing.published("cifar10", precision) for precision in PRECISIONS}
    for defense in (squeezing, dict.fromkeys(PRECISIONS, JPEG())):
        found, classes = cleaned(views, defense, images), defended_predictions(views, defense, images)
        for precision, net in views.items():
            wall = Defended(net, defense[precision])
            assert torch.equal(found[precision], wall.received(images))
            assert torch.equal(classes[precision], predict(wall, images))


def test_an_image_is_cleaned_once_for_all_networks_that_receive_the_same_bytes(views):
    images, counting = (torch.rand(5, 3, 32, 32) * 255).round() / 255, Counting()
    found = cleaned(views, dict.fromkeys(PRECISIONS, counting), images)
    assert counting.count == 5
    assert all(torch.equal(part, found["float"]) for part in found.values())
    images[2, 0, 0, 0] = 100.4999 / 255  # float has byte 100; an int16 network may receive the next one or not
    images[3, 0, 0, 0] = 0.0
    again = cleaned(views, dict.fromkeys(PRECISIONS, counting), images)
    for precision, net in views.items():
        assert torch.equal(again[precision], Defended(net, Counting()).received(images))


def test_rates_by_hand():
    labels = torch.tensor([0, 1, 2, 3])
    rows = defended_rows({"int8": torch.tensor([0, 1, 2, 0])}, {"int8": torch.tensor([0, 2, 2, 3])}, labels)
    (row,) = rows.to_dict("records")
    assert (row["n"], row["asr"], row["clean_accuracy"], row["accuracy"]) == (3, pytest.approx(1 / 3), 0.75, 0.75)
    assert (row["acc_low"], row["acc_high"]) == wilson(3, 4) and row["error_rate"] == 0.25
    with pytest.raises(InputError, match="precisions differ"):
        defended_rows({"int8": labels}, {"float": labels}, labels)


def test_all_defenses_have_all_precisions_and_papers_parameters(small_world):
    walls = zoo_cleaned.defenses("shapes")
    assert list(walls)[:3] == ["none", "rounding", "feature squeezing"] and len(walls) == 6
    assert all(list(wall) == list(PRECISIONS) for wall in walls.values())
    assert walls["feature squeezing"]["float"] == FeatureSqueezing(4, 2)
    assert walls["feature squeezing"]["int16"] == FeatureSqueezing(16, 2)
    assert walls["PixelDefend"]["int8"].eps == 38


def test_a_run_is_made_once_and_shipped_as_it_was_made(small_world):
    entry = CleanedEntry("DeepFool", "shapes", images=4)
    made = load_cleaned(entry)
    assert len(made) == 6 * len(PRECISIONS) and set(made["attack"]) == {"DeepFool"} and set(made["images"]) == {4}
    (kept,) = (store.cache_dir() / "adversarial").glob("*.safetensors")
    written = kept.stat().st_mtime_ns
    assert load_cleaned(entry).equals(made) and kept.stat().st_mtime_ns == written
    store.save_tensors(entry.path, *zoo_cleaned._make(entry, False, None))
    assert load_cleaned(entry).equals(made)
    assert set(load_cleaned(dataclasses.replace(entry, images=2))["images"]) == {2}  # a part of what ships
    assert zoo_cleaned.card(entry)["parameters"]["steps"] == 3


def test_bad_entries():
    with pytest.raises(ParameterError, match="attack"):
        CleanedEntry("FGSM")
    with pytest.raises(ParameterError, match="PixelCNN"):
        CleanedEntry("DeepFool", "vww")


@pytest.mark.parametrize("attack", IMAGES)
def test_what_ships_is_whole_and_from_the_shipped_networks(attack):
    entry = CleanedEntry(attack)
    if not entry.path.exists():
        pytest.skip(f"{entry.path.name} does not ship with this checkout")
    found, card = load_cleaned(entry), zoo_cleaned.card(entry)
    assert set(found["images"]) == {IMAGES[attack]} and len(found) == 6 * len(PRECISIONS)
    assert card["entry"] == dataclasses.asdict(entry) | {"images": entry.n}
    try:
        aim = attacked.target("cifar10")
    except DataError as error:
        pytest.skip(f"CIFAR-10 is not to be had: {error}")
    from qpatch.zoo.pixelcnn import load_pixelcnn

    assert card["fingerprints"]["float"] == aim.fingerprints["float"]
    assert card["fingerprints"]["pixelcnn"] == store.tensors_fingerprint(load_pixelcnn().state_dict())
