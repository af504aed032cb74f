"""Attackers of the defended networks and the tables made of them: against planted hits and hand-counted values."""

import itertools
import math

import numpy as np
import pytest
import torch

from qpatch.errors import DataError
from qpatch.quant import WIDTHS
from qpatch.zoo import attackers, comparisons, patched, robustness, scenarios
from qpatch.zoo.patched import CONTROLS, Patched
from qpatch.zoo.scenarios import ATTACKS, KINDS, MEAN, SETTINGS, SURROGATE

N, SEEDS = 60, 3
LABEL = torch.arange(N) % 10


def network(name: str, rate=0.5, seed=0, right=0.8, seeds=SEEDS, **planted) -> Patched:
    """A network whose patches all succeed at `rate`; `planted` gives (access, source) → rate, written access_source."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda share: torch.rand(len(WIDTHS), N, generator=generator) < share  # noqa: E731
    own = scenarios.own_shots(seeds) + (scenarios.surrogate_shots(seeds) if name == SURROGATE else [])
    shots = [("own", shot) for shot in dict.fromkeys(own)]
    shots += [] if name == SURROGATE else [("surrogate", shot) for shot in scenarios.surrogate_shots(seeds)]
    hits = {(access, shot): draw(planted.get(f"{access}_{shot.source}", rate)) for access, shot in shots}
    controls = {key: draw(0.05) for key in itertools.product(SETTINGS, CONTROLS)}
    return Patched(name, LABEL, draw(right), hits, controls, {"seeds": seeds})


@pytest.fixture(scope="module")
def runs():
    names = (SURROGATE, "qadtr", "qadtr-s1", "dwq")
    return {name: network(name, rate, seed) for seed, (name, rate) in enumerate(zip(names, (0.9, 0.3, 0.3, 0.8)))}


def share(run, access, attack, setting, source, width, seed):
    """The success rate, counted by hand."""
    number, counts = WIDTHS.index(width), run.counts(setting)[WIDTHS.index(width)]
    return float(run.hits[access, scenarios.Shot(attack, setting, source, seed)][number][counts].float().mean())


def test_names_say_defense_and_training_seed():
    assert attackers.label("qadtr-s1") == ("qadtr", 1) and attackers.label("joint") == ("undefended", 0)
    assert attackers.label("pbat-random") == ("pbat-random", 0) and attackers.label("qadtr-without-gir")[1] == 0


def test_every_attacker_takes_the_patches_that_its_line_says(runs):
    run, expected = runs["dwq"], {
        attackers.PAPERS: [("surrogate", "32")], attackers.SAME: [("own", "4")], attackers.ALL: [("own", MEAN)],
        attackers.OTHER: [("own", s) for s in ("32", "8", "5", "2")], attackers.FOREIGN: [("surrogate", MEAN)],
    }  # fmt: skip
    for attacker, choices in expected.items():
        rates = [share(run, access, "GAP", "seen", s, 4, seed) for access, s in choices for seed in range(SEEDS)]
        assert attackers.met(run, attacker, "GAP", "seen", 4).rate == pytest.approx(np.mean(rates)), attacker
    width = [share(run, "surrogate", "GAP", "seen", s, 4, seed) for s in ("8", "5", "4", "2") for seed in range(SEEDS)]
    assert attackers.met(run, attackers.PAPERS, "GAP", "width", 4).rate == pytest.approx(np.mean(width))
    every = [share(run, "surrogate", "GAP", "all", "4", 4, seed) for seed in range(SEEDS)]
    assert attackers.met(run, attackers.PAPERS, "GAP", "all", 4).rate == pytest.approx(np.mean(every))
    assert attackers.met(run, attackers.SAME, "GAP", "place", 4) is None and attackers.met(run, attackers.ALL, "GAP", "width", 4) is None
    with pytest.raises(KeyError, match="no own patches LaVAN, size 8, made at 32"):
        attackers.trials(run, "own", "LaVAN", "size 8", "32", 4)


def test_on_the_undefended_network_the_surrogates_patches_are_its_own(runs):
    one, other = (attackers.trials(runs[SURROGATE], access, "GAP", "place", "32", 8) for access in ("own", "surrogate"))
    assert one.rate == other.rate and one.patches == attackers.trials(runs["dwq"], "surrogate", "GAP", "place", "32", 8).patches


def test_random_precision_is_the_mean_over_the_widths(runs):
    run = runs["dwq"]
    hits = torch.stack([run.hits["own", scenarios.Shot("LaVAN", "seen", MEAN, seed)] for seed in range(SEEDS)])
    expected = float((hits & run.right).sum()) / SEEDS / float(run.right.sum())
    assert attackers.met(run, attackers.ALL, "LaVAN", "seen", attackers.RANDOM).rate == pytest.approx(expected)


def test_the_strongest_attacker_finds_the_planted_source_and_seed():
    run = network("dwq", rate=0.2, surrogate_5=0.95)
    found = attackers.met(run, attackers.STRONGEST, "LaVAN", "seen", 2)
    assert found.rate > 0.8 and {patch for patch, _ in found.patches} == {("joint", "LaVAN", "seen", "5")}
    run, lucky = network("dwq", rate=0.1), scenarios.Shot("GAP", "place", MEAN, 1)
    run.hits["own", lucky] |= torch.rand(len(WIDTHS), N, generator=torch.Generator().manual_seed(5)) < 0.9
    found = attackers.met(run, attackers.STRONGEST, "GAP", "place", 32)
    assert found.patches == (("dwq", "GAP", "place", MEAN), 1)  # both halves of the images choose the seed that worked
    assert found.rate == pytest.approx(share(run, "own", "GAP", "place", MEAN, 32, 1))
    assert attackers.met(run, attackers.ALL, "GAP", "place", 32).rate < 0.5


def test_asr_rows_hold_every_case_with_its_controls(runs):
    rows = robustness.asr_rows(runs)
    assert not rows.duplicated(["defense", "training_seed", "attack", "kind", "attacker", "target_bits"]).any()
    papers = rows[rows.attacker == attackers.PAPERS]
    assert set(papers.kind) == set(KINDS) and len(papers) == len(runs) * len(ATTACKS) * len(KINDS) * 6
    row = papers.query("defense == 'dwq' and attack == 'GAP' and kind == 'target' and target_bits == 8").iloc[0]
    run, number = runs["dwq"], WIDTHS.index(8)
    counts = run.right[number] & (LABEL != 3)
    assert row.n == int(counts.sum()) and row.images == N and math.isnan(row.error_rate) and row.seeds == SEEDS
    assert row.asr_photo == pytest.approx(float(run.controls["target", "photo"][number][counts].float().mean()))
    seen = papers.query("defense == 'dwq' and attack == 'GAP' and kind == 'seen' and target_bits == 8").iloc[0]
    hits = torch.stack([run.hits["surrogate", scenarios.Shot("GAP", "seen", "32", seed)][number] for seed in range(SEEDS)])
    assert seen.error_rate == pytest.approx(float(hits.float().mean())) and seen.low <= seen.asr <= seen.high


def test_access_rows_order_sources_from_wide_to_narrow_and_all(runs):
    rows = robustness.access_rows({"dwq": runs["dwq"]})
    assert list(rows[rows.access == "own"].source.unique()) == ["32", "8", "5", "4", "2", MEAN]


def test_what_unseen_patches_gain_in_four_readings(runs):
    rows = robustness.unseen_rows(runs).set_index(["defense", "training_seed", "attack", "kind", "access", "target_bits", "reading"])
    run, base = runs["dwq"], runs[SURROGATE]
    mean = lambda r, access, setting, source, width: np.mean([share(r, access, "GAP", setting, source, width, s) for s in range(SEEDS)])  # noqa: E731
    rise = lambda width: mean(run, "surrogate", "size 8", "32", width) - mean(run, "surrogate", "seen", "32", width)  # noqa: E731
    at = lambda reading: rows.loc[("dwq", 0, "GAP", "size 8", "surrogate", 2, reading), "value"]  # noqa: E731
    assert at("rise") == pytest.approx(rise(2))
    assert at("rise beyond the float view's") == pytest.approx(rise(2) - rise(32))
    left = mean(run, "surrogate", "size 8", "32", 2) / mean(base, "own", "size 8", "32", 2)
    left -= mean(run, "surrogate", "seen", "32", 2) / mean(base, "own", "seen", "32", 2)
    assert at("rise of what is left") == pytest.approx(left)
    floor = [attackers.control(run, setting, 2).rate for setting in ("size 8", "seen")]
    assert at("rise above the controls") == pytest.approx(rise(2) - floor[0] + floor[1])
    own = rows.loc[("dwq", 0, "GAP", "width", "own", 2, "rise"), "value"]
    others = np.mean([mean(run, "own", "seen", s, 2) for s in ("8", "5", "4", "2")])
    assert own == pytest.approx(others - mean(run, "own", "seen", "32", 2))
    assert ("undefended", 0, "GAP", "width", "own", 2, "rise of what is left") not in rows.index


def test_drops_and_what_another_training_changes(runs):
    rows = comparisons.drop_rows(runs, [("dwq", "qadtr")], [attackers.PAPERS])
    rate = lambda name, width: attackers.met(runs[name], attackers.PAPERS, "LaVAN", "seen", width).rate  # noqa: E731
    gap = np.sqrt(np.mean([(rate("qadtr", width) - rate("qadtr-s1", width)) ** 2 for width in WIDTHS]))
    assert comparisons.training_gap(runs, attackers.PAPERS, "LaVAN", "seen") == pytest.approx(gap)
    case = rows.query("attack == 'LaVAN' and kind == 'seen' and target_bits == 4").set_index("reading")
    drop = rate("dwq", 4) - rate("qadtr", 4)
    assert case.value["points"] == pytest.approx(drop) and case.value["relative"] == pytest.approx(drop / rate("dwq", 4))
    assert case.margin["points"] == pytest.approx(drop - 2 * gap) and math.isnan(case.margin["relative"])
    assert case.margin_low["points"] == pytest.approx(case.low["points"] - 2 * gap)
    assert math.isnan(comparisons.training_gap({"dwq": runs["dwq"]}, attackers.PAPERS, "LaVAN", "seen"))


def test_the_largest_drop_is_found_without_the_luck_of_the_best_cell():
    strong, weak = network("dwq", 0.5, seed=1), network("qadtr", 0.5, seed=2)
    top = lambda: comparisons.drop_rows({"dwq": strong, "qadtr": weak}, [("dwq", "qadtr")], [attackers.ALL]).set_index(  # noqa: E731
        ["kind", "reading"])["value"][comparisons.LARGEST, "points"]  # fmt: skip
    assert top() < 0.15, "all cells are alike: the best of seventy is luck"
    for (_, shot), hits in strong.hits.items():
        hits[WIDTHS.index(4)] |= (shot.attack, shot.setting) == ("GAP", "size 10")
    assert top() > 0.35


def test_the_spread_over_widths_and_its_difference():
    even, odd = network("qadtr", 0.5), network("patch-all", 0.5, seed=1)
    for (access, shot), hits in odd.hits.items():
        hits[WIDTHS.index(2)] = True  # every patch works at two bits
    rows = comparisons.spread_rows({"qadtr": even, "patch-all": odd}, [("patch-all", "qadtr")], [attackers.PAPERS])
    value = rows.query("attack == 'GAP'").set_index(["from", "to"])["value"]
    assert value["patch-all", ""] > 0.35 and abs(value["qadtr", ""]) < 0.2
    assert value["patch-all", "qadtr"] == pytest.approx(value["patch-all", ""] - value["qadtr", ""])


def test_where_a_patch_was_made(runs):
    rows = comparisons.made_at_rows(runs[SURROGATE]).set_index(["attack", "target_bits", "made_at", "compared"])["value"]
    run = runs[SURROGATE]
    mean = lambda source: np.mean([share(run, "own", "GAP", "seen", source, 4, seed) for seed in range(SEEDS)])  # noqa: E731
    assert rows["GAP", 4, "own", "success"] == pytest.approx(mean("4"))
    assert rows["GAP", 4, "all", "gain over float"] == pytest.approx(mean(MEAN) - mean("32"))


def test_clean_accuracy_beside_the_undefended_networks(runs):
    rows = comparisons.clean_rows(runs, "shapes").set_index(["defense", "training_seed", "target_bits"])
    assert rows.loc[("dwq", 0, 8), "clean_accuracy"] == pytest.approx(float(runs["dwq"].right[1].float().mean()))
    assert rows.loc[("dwq", 0, 8), "undefended"] == rows.loc[("undefended", 0, 8), "clean_accuracy"]


def test_networks_without_results_are_named_and_never_attacked(monkeypatch, tmp_path, runs):
    def never(*_, **__):
        raise AssertionError("hours of attacks")

    monkeypatch.setattr(patched, "FOLDER", tmp_path)
    monkeypatch.setattr(patched, "_make", never)
    with pytest.raises(DataError, match="python -m qpatch.zoo patched joint"):
        patched.load_runs(["dwq"])
    (tmp_path / f"{SURROGATE}.safetensors").touch()
    monkeypatch.setattr(patched, "load_patched", lambda name, *_, **__: runs[name])
    found, missing = patched.load_runs(["dwq", SURROGATE])
    assert list(found) == [SURROGATE] and missing == ["dwq"]
    assert list(patched.load_runs(["dwq"], "shapes")[0]) == [SURROGATE, "dwq"]
