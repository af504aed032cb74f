"""A patch for each judged image on the defended networks: who makes it on what, and the counting of successes."""

import pytest
import torch

from qpatch import data
from qpatch.attacks import LaVAN
from qpatch.measure.success import predict
from qpatch.quant import WIDTHS
from qpatch.zoo import networks, scenarios, specific
from qpatch.zoo.attackers import ALL, RANDOM
from qpatch.zoo.scenarios import SURROGATE
from untrained import untrained

IMAGES = 30


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setenv("QPATCH_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr(specific, "evaluation_subset", lambda test: torch.arange(IMAGES))
    nets = {name: untrained(seed) for seed, name in enumerate((SURROGATE, "patch-one"))}
    for module in (scenarios, networks):
        monkeypatch.setattr(module, "load", lambda name, *_, **__: nets[name])
    yield nets, {name: specific.load_specific_run(name, "shapes") for name in nets}
    monkeypatch.undo()


def test_sources_are_every_width_all_widths_and_the_surrogate(made):
    _, runs = made
    assert list(runs[SURROGATE].hits) == [*map(str, WIDTHS), "mean"]
    assert list(runs["patch-one"].hits) == [*map(str, WIDTHS), "mean", "surrogate"]
    assert all(hits.shape == (len(WIDTHS), IMAGES) for hits in runs["patch-one"].hits.values())


@pytest.mark.parametrize("source, attacked", [("4", "patch-one"), ("surrogate", SURROGATE)])
def test_hits_equal_a_direct_attack(made, source, attacked):
    nets, runs = made
    images, labels = data.load("shapes", "test").take(torch.arange(IMAGES))
    view = nets[attacked].at(32 if source == "surrogate" else int(source))
    patched = LaVAN(view, 6, place="away", steps=3, lr=0.1)(images, labels)
    for number, width in enumerate(WIDTHS):
        wrong = predict(nets["patch-one"].at(width), patched) != labels
        assert torch.equal(runs["patch-one"].hits[source][number], wrong)


def test_rows_count_only_images_that_were_right(made):
    run = made[1]["patch-one"]
    rows = specific.success_rows(made[1]).query("defense == 'patch-one'").set_index(["attacker", "target_bits"])
    counts, hits = run.right[WIDTHS.index(8)], run.hits["mean"][WIDTHS.index(8)]
    row = rows.loc[(ALL, 8)]
    assert row["n"] == int(counts.sum()) and row["images"] == IMAGES and row["defense"] == "patch-one"
    assert row["asr"] == pytest.approx(float((hits & counts).sum()) / int(counts.sum()))
    drawn = (run.hits["mean"] & run.right).sum() / run.right.sum()
    assert rows.loc[(ALL, RANDOM), "asr"] == pytest.approx(float(drawn))


def test_any_of_the_patches_is_their_union(made):
    run = made[1]["patch-one"]
    at_two = torch.stack([hits[WIDTHS.index(2)] for hits in run.hits.values()]).any(0) & run.right[WIDTHS.index(2)]
    assert run.trials(specific.ANY, 2).won.sum() == int(at_two.sum())
    singles = [run.trials(source, RANDOM).rate for source in run.hits]
    assert max(singles) <= run.trials(specific.ANY, RANDOM).rate <= 1
