"""Seen and unseen patches on the defended networks: what is shot at what, and the counting of successes."""

import copy

import pytest
import torch

from qpatch import data, zoo
from qpatch.attacks import LaVAN, make_mask, paste, sample_places
from qpatch.errors import DataError, ParameterError
from qpatch.measure.success import attack_success
from qpatch.quant import WIDTHS
from qpatch.zoo import networks, patched, remote, scenarios
from qpatch.zoo.bits import pack, unpack
from qpatch.zoo.scenarios import KINDS, SETTINGS, SURROGATE, Shot
from untrained import untrained

IMAGES = 40


def test_each_unseen_setting_changes_one_thing_and_the_last_changes_all():
    seen = SETTINGS["seen"]
    for name, setting in SETTINGS.items():
        changed = sum(a != b for a, b in zip(seen, setting))
        assert changed == {"seen": 0, "all": len(seen)}.get(name, 1)


def test_shots_cover_every_kind_and_both_attacks():
    surrogate, own = scenarios.surrogate_shots(), scenarios.own_shots()
    assert {(s.attack, s.kind) for s in surrogate} == {(a, k) for a in scenarios.ATTACKS for k in KINDS}
    assert {s.source for s in own if s.setting == "seen"} == {*map(str, WIDTHS), scenarios.MEAN}
    assert all(s.source == scenarios.MEAN for s in own if s.setting != "seen")
    assert len(set(surrogate)) == len(surrogate) and {s.seed for s in own} == set(range(scenarios.SEEDS))


@pytest.mark.parametrize("wrong", [("PGD", "seen", "32"), ("GAP", "hidden", "32"), ("GAP", "seen", "7")])
def test_an_unknown_shot_is_refused(wrong):
    with pytest.raises(ParameterError, match="unknown"):
        Shot(*wrong, 0)


def test_deployed_noise_stays_at_inference(monkeypatch):
    names = {"qadtr": "qadtr", "qadtr-gir-activations": "qadtr-gir-activations"}
    net = zoo.load("joint")
    monkeypatch.setattr(scenarios, "load", lambda *_, **__: net)
    images = torch.rand(2, 3, 32, 32)
    plain, noisy = (scenarios.deployed_views(name)[8] for name in names)
    assert torch.equal(plain(images), plain(images)) and not torch.equal(noisy(images), noisy(images))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setenv("QPATCH_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr(patched, "_SMOKE_STEPS", 2)
    monkeypatch.setattr(patched, "OPTIONS", {attack: {"lr": 0.1, "batch": 8} for attack in scenarios.ATTACKS})
    monkeypatch.setattr(patched, "evaluation_subset", lambda test: torch.arange(IMAGES))
    nets = {name: untrained(seed) for seed, name in enumerate((SURROGATE, "patch-one"))}
    for module in (scenarios, networks):
        monkeypatch.setattr(module, "load", lambda name, *_, **__: nets[name])
    yield nets, {name: patched.load_patched(name, "shapes", seeds=1) for name in (SURROGATE, "patch-one")}
    monkeypatch.undo()


@pytest.fixture
def runs(made):
    return made[1]


def test_rows_equal_a_direct_measurement(made, runs):
    run, rows = runs["patch-one"], runs["patch-one"].rows
    test = data.load("shapes", "test")
    images, labels = test.take(torch.arange(IMAGES))
    patches = patched.made_patches("patch-one", "shapes", seeds=1)
    for setting in ("seen", "all"):
        shot = Shot("GAP", setting, scenarios.MEAN, 0)
        size, place, target = SETTINGS[setting]
        places = sample_places(place, len(images), 32, size, torch.Generator().manual_seed(0))
        shown = paste(images, patches[shot], make_mask("square", size), places)
        row = rows.query("access == 'own' and attack == 'GAP' and setting == @setting and source == 'mean' and target_bits == 4")
        expected = attack_success(made[0]["patch-one"].at(4), images, shown, labels, target)
        assert row.asr.item() == pytest.approx(expected.asr, nan_ok=True) and row.n.item() == expected.n
        assert row.clean_accuracy.item() == pytest.approx(expected.clean_accuracy)
        assert (row.ci_low.item(), row.ci_high.item()) == pytest.approx((expected.ci_low, expected.ci_high))
    assert torch.equal(run.label, labels)


def test_surrogate_patches_are_those_of_the_undefended_network(runs):
    mine = {shot for access, shot in runs["patch-one"].hits if access == "surrogate"}
    assert mine == set(scenarios.surrogate_shots(1)) and not any(access == "surrogate" for access, _ in runs[SURROGATE].hits)
    made = patched.made_patches(SURROGATE, "shapes", seeds=1)
    assert mine <= set(made)
    assert set(runs["patch-one"].rows.kind) == set(KINDS)


def test_the_same_run_again_gives_the_same_bits(runs):
    again = patched.load_patched("patch-one", "shapes", seeds=1)
    assert all(torch.equal(bits, again.hits[key]) for key, bits in runs["patch-one"].hits.items())


def test_packing_is_exact():
    bits = torch.rand(5, 13) < 0.5
    assert torch.equal(unpack(pack(bits), 13), bits)


def test_a_remote_network_is_attacked_as_the_network_itself(monkeypatch):
    """No second device is at hand in tests: the CPU stands for it, and the arithmetic is then the same to the last bit."""
    images, labels = data.load("shapes", "test").take(torch.arange(24))
    near = untrained(0)
    far = remote.Remote(copy.deepcopy(near.at(4)), "cpu")
    assert not list(far.parameters()) and not far.training
    attack = {"patch_size": 6, "steps": 3, "lr": 0.1, "batch": 12, "seed": 1}
    assert torch.equal(LaVAN(near.at(4), **attack).fit(images, labels).pixels, LaVAN(far, **attack).fit(images, labels).pixels)
    monkeypatch.setenv("QPATCH_DEVICE", "warp")
    with pytest.raises(ParameterError, match="QPATCH_DEVICE"):
        remote.on_chosen_device(near.at(4))


def test_only_networks_with_stored_results_are_ready(tmp_path):
    with pytest.raises(DataError, match=f"zoo patched {SURROGATE}"):
        scenarios.ready(["qadtr"], tmp_path, "patched")
    (tmp_path / f"{SURROGATE}.safetensors").touch()
    assert scenarios.ready(["qadtr", "qadtr"], tmp_path, "patched") == ([SURROGATE], ["qadtr"])
    assert scenarios.ready(["qadtr"], tmp_path, "patched", "shapes") == ([SURROGATE, "qadtr"], [])
