"""Table 5 and Table 7 from stored hits: every cell against a count by hand."""

import numpy as np
import pandas as pd
import pytest
import torch

from qpatch.quant import WIDTHS
from qpatch.report import claims
from qpatch.zoo import table5
from qpatch.zoo.attackers import PAPERS, STRONGEST
from qpatch.zoo.black_box import BlackBox
from qpatch.zoo.patched import CONTROLS, Patched
from qpatch.zoo.probes import own_probes, surrogate_probes
from qpatch.zoo.scenarios import SETTINGS, SURROGATE, Shot, own_shots, surrogate_shots

N = 120


def bits(share: float, generator: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=generator) < share


def patched(name: str, share: float, seed: int) -> Patched:
    g = torch.Generator().manual_seed(seed)
    shots = {("own", shot): bits(share, g, 5, N) for shot in own_shots(3)}
    if name != SURROGATE:
        shots |= {("surrogate", shot): bits(share / 2, g, 5, N) for shot in surrogate_shots(3)}
    else:
        shots |= {("own", shot): bits(share / 2, g, 5, N) for shot in surrogate_shots(3) if ("own", shot) not in shots}
    controls = {(setting, control): bits(0.05, g, 5, N) for setting in SETTINGS for control in CONTROLS}
    return Patched(name, torch.arange(N) % 10, bits(0.9, g, 5, N), shots, controls, {})


def asked(name: str, seed: int) -> BlackBox:
    g = torch.Generator().manual_seed(seed)
    hits = {("own", probe): {int(probe.source): bits(0.6, g, N if probe.main else N // 2)} for probe in own_probes(3)}
    hits |= {("surrogate", probe): {w: bits(0.3, g, N) for w in WIDTHS} for probe in surrogate_probes(3)}
    first = {probe: torch.zeros(len(next(iter(h.values()))), dtype=torch.long) for (where, probe), h in hits.items() if where == "own"}
    return BlackBox(name, torch.arange(N) % 10, bits(0.9, g, 5, N), hits, first, {"queries": 9})


@pytest.fixture(scope="module")
def table():
    names = {"joint": 0.9, "pbat-full": 0.6, "triqdef": 0.3, "triqdef-s1": 0.35, "triqdef-without-both": 0.4, "triqdef-without-both-s1": 0.4}
    runs = {name: patched(name, share, number) for number, (name, share) in enumerate(names.items())}
    return table5.Table5(runs, {"triqdef": asked("triqdef", 50)}, claims.published("A-table5"))


def count(run: Patched, access: str, shot: Shot, width: int) -> float:
    number, counts = WIDTHS.index(width), run.counts(shot.setting)[WIDTHS.index(width)]
    return float((run.hits[access, shot][number] & counts).sum() / counts.sum())


def test_rows_are_counted_from_the_hits(table):
    rows = table.rows().set_index(["defense", "training_seed", "attack", "patches", "attacker", "target_bits"])
    run = table.runs["triqdef"]
    expected = np.mean([count(run, "surrogate", Shot("GAP", "size 10", "32", seed), 4) for seed in range(3)])
    cell = rows.loc[("triqdef", 0, "GAP", "size 10", PAPERS, 4)]
    assert cell["asr"] == pytest.approx(expected) and cell["seeds"] == 3 and cell["images"] == N
    assert cell["low"] < cell["asr"] < cell["high"]
    assert rows.loc[("triqdef", 1, "LaVAN", "seen", PAPERS, 2), "asr"] != rows.loc[("triqdef", 0, "LaVAN", "seen", PAPERS, 2), "asr"]


def test_unseen_is_the_mean_over_the_similar_kinds(table):
    for attacker, kinds in ((PAPERS, table5.SIMILAR), (STRONGEST, ("size 8", "size 10", "place"))):
        parts = [table.trials("triqdef", "LaVAN", kind, attacker, 5) for kind in kinds]
        pooled = table.trials("triqdef", "LaVAN", "unseen", attacker, 5)
        won, counts = np.mean([p.won.mean(0) for p in parts], axis=0), np.mean([p.counts for p in parts], axis=0)
        assert pooled.rate == pytest.approx(won.sum() / counts.sum())


def test_patch_attack_has_two_attackers(table):
    run = table.queried["triqdef"]
    own = table.trials("triqdef", "PatchAttack", "seen", STRONGEST, 2)
    probes = [p for p in own_probes(3) if (p.setting, p.source, p.variant, p.policy) == ("seen", "2", "mono", "reinforce")]
    counts = run.counts("seen", 2)
    assert own.rate == pytest.approx(np.mean([float((run.hits["own", p][2] & counts).sum() / counts.sum()) for p in probes]))
    assert table.trials("triqdef", "PatchAttack", "width", STRONGEST, 2) is None
    assert table.trials("triqdef", "PatchAttack", "size 8", STRONGEST, 2).counts.shape == (N // 2,)
    assert table.trials("pbat-full", "PatchAttack", "seen", PAPERS, 2) is None
    assert len(table.trials("triqdef", "PatchAttack", "all", PAPERS, 8).won) == 3


def test_drops_average_the_trainings_and_take_off_the_gap(table):
    rows = table.drops([("pbat-full", "triqdef"), ("triqdef-without-both", "triqdef")])
    rows = rows[rows.reading == "points"].set_index(["from", "attacker", "patches", "attack", "target_bits"])
    cell = rows.loc[("triqdef-without-both", PAPERS, "seen", "LaVAN", 32)]
    rate = lambda name: table.trials(name, "LaVAN", "seen", PAPERS, 32)  # noqa: E731
    sides = [[rate(name), rate(f"{name}-s1")] for name in ("triqdef-without-both", "triqdef")]
    means = [sum(t.won.mean(0).sum() for t in side) / sum(t.counts.sum() for t in side) for side in sides]
    assert cell["trainings"] == 2 and cell["value"] == pytest.approx(means[0] - means[1])
    gaps = [table.trials(n, "LaVAN", "seen", PAPERS, w).rate - table.trials(f"{n}-s1", "LaVAN", "seen", PAPERS, w).rate
            for n in ("triqdef", "triqdef-without-both") for w in WIDTHS]
    assert cell["training_gap"] == pytest.approx(np.sqrt(np.mean(np.square(gaps))) / np.sqrt(2))
    assert cell["margin"] == pytest.approx(cell["value"] - 2 * cell["training_gap"])
    assert rows.loc[("pbat-full", PAPERS, "seen", "LaVAN", 32), "trainings"] == 1
    everything = rows.loc[("pbat-full", PAPERS, "seen", "all", 0)]
    assert 0.1 < everything["value"] < 0.2  # (0.6 − 0.3) / 2 and scatter


def test_rises_are_unseen_minus_seen_and_beyond_the_controls(table):
    rows = table.rises().set_index(["defense", "training_seed", "attacker", "attack", "target_bits"])
    cell = rows.loc[("triqdef", 0, PAPERS, "GAP", 8)]
    both = [table.trials("triqdef", "GAP", patches, PAPERS, 8).rate for patches in ("unseen", "seen")]
    assert cell["value"] == pytest.approx(both[0] - both[1]) and cell["low"] < cell["value"] < cell["high"]
    shift = cell["value"] - cell["above_control"]
    assert cell["above_low"] == pytest.approx(cell["low"] - shift) and abs(shift) < 0.1


def test_the_papers_values_stand_beside(table):
    rows = table.rows().set_index(["defense", "training_seed", "attack", "patches", "attacker", "target_bits"])["published"]
    assert rows.loc[("triqdef", 0, "GAP", "seen", PAPERS, 2)] == pytest.approx(0.172)
    assert rows.loc[("pbat-full", 0, "LaVAN", "unseen", PAPERS, 32)] == pytest.approx(0.772)
    assert pd.isna(rows.loc[("triqdef", 0, "GAP", "size 8", PAPERS, 2)]) and pd.isna(rows.loc[("triqdef", 0, "GAP", "seen", PAPERS, 8)])
