"""PatchAttack on the defended networks: who is asked what, the counting of successes, and resuming."""

import pytest
import torch

from qpatch import data, store
from qpatch.attacks import QueryPatchAttack
from qpatch.errors import ParameterError
from qpatch.measure.success import attack_success
from qpatch.quant import WIDTHS
from qpatch.zoo import black_box, networks, painted, probes, scenarios
from qpatch.zoo.probes import Probe
from qpatch.zoo.scenarios import KINDS, SETTINGS, SURROGATE
from untrained import untrained


def test_the_plan_covers_every_kind_and_width():
    own, foreign = probes.own_probes(), probes.surrogate_probes()
    main = [probe for probe in own if probe.main]
    assert {(p.source, p.seed) for p in main} == {(str(w), s) for w in (32, 5, 4, 2) for s in range(scenarios.SEEDS)}
    assert {p.kind("surrogate") for p in foreign} == set(KINDS)
    assert {p.seed for p in foreign} == set(range(scenarios.SEEDS))
    assert {p.kind("own") for p in own} == set(SETTINGS)  # who asks the view itself needs no other width
    assert {(p.variant, p.policy) for p in own} == {("mono", "reinforce"), ("texture", "reinforce"), ("mono", "random")}
    assert {p.setting for p in foreign if p.variant == "texture"} == {"place", "all"}  # where the place is given
    assert len(set(own)) == len(own) and len(set(foreign)) == len(foreign)
    assert max(probes.QUERIES.values()) < 256  # what a byte holds


@pytest.mark.parametrize("wrong", [{"setting": "hidden"}, {"source": "7"}, {"variant": "plaid"}, {"policy": "greedy"}])
def test_an_unknown_probe_is_refused(wrong):
    with pytest.raises(ParameterError, match="unknown"):
        Probe(**{"setting": "seen", "source": "32", "seed": 0, **wrong})


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setenv("QPATCH_CACHE", str(tmp_path_factory.mktemp("cache")))
    nets = {name: untrained(seed) for seed, name in enumerate((SURROGATE, "patch-one", "float"))}
    for module in (scenarios, networks):
        monkeypatch.setattr(module, "load", lambda name, *_, **__: nets[name])
    dictionary = torch.rand(10, 2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(black_box, "load_textures", lambda *_, **__: dictionary)
    runs = {name: black_box.load_black_box(name, "shapes", seeds=1) for name in (SURROGATE, "patch-one")}
    yield nets, runs, dictionary
    monkeypatch.undo()


def test_rows_equal_a_direct_measurement(made):
    nets, runs, dictionary = made
    run, test = runs["patch-one"], data.load("shapes", "test")
    images, labels = test.take(black_box.evaluation_subset(test)[:24])
    assert torch.equal(run.label, labels)
    for setting, n, variant in (("seen", 24, "mono"), ("all", 12, "texture")):
        size, place, target = SETTINGS[setting]
        view, textures = nets["patch-one"].at(4), dictionary if variant == "texture" else None
        options = {"target": target, "place": place, "variant": variant, "textures": textures}
        result = QueryPatchAttack(view, size, queries=3, **options).run(images[:n], labels[:n])
        expected = attack_success(view, images[:n], result.images, labels[:n], target)
        rows = run.rows.query("access == 'own' and policy == 'reinforce' and source == '4'")
        row = rows.query("setting == @setting and variant == @variant")
        assert row.asr.item() == pytest.approx(expected.asr, nan_ok=True) and row.n.item() == expected.n
        assert (row.ci_low.item(), row.ci_high.item()) == pytest.approx((expected.ci_low, expected.ci_high))
        probe = Probe(setting, "4", 0)
        assert torch.equal(run.first[probe], result.first)
        last = run.curve(probe).iloc[-1]
        assert last.n == expected.n and last.asr == pytest.approx(row.asr.item(), nan_ok=True)


def test_the_surrogates_patches_are_shown_to_every_network_at_every_width(made):
    nets, runs, _ = made
    test, patches = data.load("shapes", "test"), black_box.surrogate_patches("shapes", seeds=1)
    images, labels = test.take(black_box.evaluation_subset(test)[:24])
    probe = Probe("size 8", "32", 0)
    attack = QueryPatchAttack(nets[SURROGATE].at(32), 8, place="away", queries=3, stop_at=1.0)
    result = attack.run(images, labels)
    assert torch.equal(patches[probe][0], result.pixels) and torch.equal(patches[probe][1], result.places)
    for name, run in runs.items():
        assert {probe for access, probe in run.hits if access == "surrogate"} == set(probes.surrogate_probes(1))
        for width in WIDTHS:
            row = run.rows.query("access == 'surrogate' and setting == 'size 8' and target_bits == @width")
            expected = attack_success(nets[name].at(width), images, result.images, labels)
            assert row.asr.item() == pytest.approx(expected.asr, nan_ok=True) and row.n.item() == expected.n


def test_it_is_resumed_from_the_store_and_read_back_from_a_file(made, monkeypatch, tmp_path):
    _, runs, _ = made
    monkeypatch.setattr(QueryPatchAttack, "run", lambda *_: pytest.fail("a question was asked again"))
    tensors, card = black_box._make(SURROGATE, "shapes", 1, False, None)
    store.save_tensors(tmp_path / "run.safetensors", tensors, card)
    again = black_box._black_box(SURROGATE, *store.load_tensors(tmp_path / "run.safetensors"), 1)
    assert again.rows.equals(runs[SURROGATE].rows)


def test_textures_are_painted_once(monkeypatch, tmp_path):
    monkeypatch.setenv("QPATCH_CACHE", str(tmp_path))
    monkeypatch.setattr(networks, "load", lambda *_, **__: untrained(0))
    calls = []

    def paint(net, images, labels, **options):
        calls.append((len(images), labels.bincount().tolist(), options))
        return torch.rand(10, 2, 3, 32, 32, generator=torch.Generator().manual_seed(len(calls)))

    monkeypatch.setattr(painted.textures, "texture_dictionary", paint)
    first, second = painted.load_textures("shapes"), painted.load_textures("shapes")
    assert calls == [(2000, [200] * 10, painted.OPTIONS["shapes"])]
    assert torch.equal(first, second) and torch.equal(first, (first * 255).round() / 255)
