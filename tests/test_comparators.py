"""Jedi of the zoo and its run under patches: what is counted, what is kept, and that the shipped parts are sound."""

import pytest
import torch

from qpatch import data, store
from qpatch.attacks.controls import noise_patch
from qpatch.attacks.equiluminant import LUMA
from qpatch.measure.localisation import localisation, patch_masks
from qpatch.measure.success import predict
from qpatch.quant import WIDTHS
from qpatch.zoo import comparators, networks, patched, scenarios
from qpatch.zoo import jedi as zoo_jedi
from qpatch.zoo.jedi import load_jedi
from qpatch.zoo.scenarios import MEAN, SETTINGS, SURROGATE, Shot
from untrained import untrained

IMAGES = 20
KNOWING = [Shot("LaVAN", "seen", MEAN, 0)]
SHOTS = [Shot("LaVAN", "seen", "32", 0), Shot("GAP", "target", "32", 0)]


def test_knowing_shots_cover_every_setting_on_all_widths():
    shots = comparators.knowing_shots(2)
    assert {shot.source for shot in shots} == {MEAN} and len(shots) == len(SETTINGS) * 2


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setenv("QPATCH_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr(patched, "_SMOKE_STEPS", 2)
    monkeypatch.setattr(scenarios, "surrogate_shots", lambda seeds: SHOTS)
    monkeypatch.setattr(scenarios, "own_shots", lambda seeds: KNOWING)
    for module in (patched, comparators):
        monkeypatch.setattr(module, "OPTIONS", {attack: {"lr": 0.1, "batch": 8} for attack in scenarios.ATTACKS})
        monkeypatch.setattr(module, "evaluation_subset", lambda test: torch.arange(IMAGES))
    net = untrained(0)
    for module in (scenarios, networks):
        monkeypatch.setattr(module, "load", lambda name, *_, **__: net)
    yield net, comparators.load_jedi_run("shapes", seeds=1)
    monkeypatch.undo()


def test_the_run_holds_both_kinds_of_patches_and_all_controls(made):
    _, run = made
    assert [key for key in run.hits] == [("own", KNOWING[0]), *(("surrogate", shot) for shot in SHOTS)]
    assert set(run.controls) == {(setting, control) for setting in SETTINGS for control in patched.CONTROLS}
    assert len(run.rows) == len(WIDTHS) * 3 and run.network == "jedi"


def test_patches_that_know_jedi_have_one_brightness(made):
    pixels = comparators.made_knowing(KNOWING[0], "shapes").float() / 255
    luma = (pixels * torch.tensor(LUMA).view(3, 1, 1)).sum(0)
    assert pixels.shape == (3, 6, 6) and torch.allclose(luma, torch.tensor(3.5 / 6), atol=0.003)


def test_hits_are_those_of_the_network_behind_jedi(made):
    net, run = made
    images, labels = data.load("shapes", "test").take(torch.arange(IMAGES))
    behind, shot = comparators.jedi_views("shapes"), SHOTS[0]
    pixels = patched.made_patches(SURROGATE, "shapes", seeds=1)[shot]
    expected = patched.judged(behind, shot, pixels, images, labels)
    assert torch.equal(run.hits["surrogate", shot], expected)
    assert torch.equal(run.right[0], predict(behind[WIDTHS[0]], images) == labels)
    assert torch.equal(behind[4](images), net.at(4)(load_jedi("shapes")(images)))


def test_a_second_run_comes_from_the_store_and_one_with_other_shots_does_not(made, monkeypatch):
    _, run = made
    monkeypatch.setattr(comparators, "predict", lambda *_: pytest.fail("judged again"))
    again = comparators.load_jedi_run("shapes", seeds=1)
    assert all(torch.equal(again.hits[key], hits) for key, hits in run.hits.items())
    with pytest.raises(pytest.fail.Exception, match="judged again"):
        comparators.load_jedi_run("shapes", seeds=1, shots=[])


def test_the_search_ranks_settings(made, monkeypatch):
    searched = {"windows": ((3,),), "levels": (3,), "rule": ("clean",), "tolerance": (1.0, 9.0)}
    monkeypatch.setattr(zoo_jedi, "SEARCHED", searched)
    monkeypatch.setattr(zoo_jedi, "ATTACKS", {"LaVAN": scenarios.ATTACKS["LaVAN"]})
    monkeypatch.setattr(zoo_jedi, "load_patch", lambda entry, dataset: noise_patch(6, seed=entry.seed))
    ranked = zoo_jedi.jedi_search(20, "shapes")
    assert list(ranked.columns) == ["windows", "levels", "rule", "tolerance", "clean", "patched", "mean"]
    assert ranked["mean"].is_monotonic_decreasing and set(ranked["tolerance"]) == {1.0, 9.0}


def test_the_shipped_jedi_is_the_tuned_one_and_finds_noise():
    if not zoo_jedi._JEDI.exists():
        pytest.skip("Jedi does not ship yet: python -m qpatch.zoo.jedi")
    jedi = load_jedi()
    assert {name: getattr(jedi, name) for name in zoo_jedi.TUNED} == zoo_jedi.TUNED
    card = store.load_tensors(zoo_jedi._JEDI)[1]
    assert {name: tuple(v) if isinstance(v, list) else v for name, v in card["tuned"].items()} == zoo_jedi.TUNED
    images = torch.full((4, 3, 32, 32), 0.4)
    places = torch.tensor([[1, 1], [20, 3], [13, 13], [25, 25]])
    for image, (row, column) in zip(images, places.tolist()):
        noise = torch.rand(3, 6, 6, generator=torch.Generator().manual_seed(row))
        image[:, row : row + 6, column : column + 6] = noise.round()
    true, elsewhere = patch_masks(places, 6, 32), patch_masks((places + 13) % 26, 6, 32)
    found = localisation(jedi.mask(images), true, elsewhere)
    assert found.iou > 0.4 and found.detected >= 0.5 and found.iou_elsewhere < 0.1
