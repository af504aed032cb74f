"""The rules of the claims on patch defenses fit the tables of notebooks 22 and 23 and follow their numbers."""

from __future__ import annotations

import itertools

import pandas as pd
import pytest
from test_robustness import network

from qpatch.report import claims, verdict
from qpatch.report.verdict import DOES_NOT, HOLDS, IN_PART, NOT_MEASURED
from qpatch.zoo import comparisons, robustness
from qpatch.zoo.scenarios import SURROGATE

RULES = {claim.id: claim.rule for claim in claims.load()}
EFFECTS = ("A3", "B3", "B4", "B5", "B6", "B7")


def effects(rule, good: float, other: float | None = None) -> pd.DataFrame:
    """The rows that a rule on differences asks for: `good` where it wants more, minus that where it wants less.

    With `other`, every second condition gets that instead.
    """
    rows = []
    for number, condition in enumerate(rule.conditions):
        value = other if other is not None and number % 2 else good
        value = value if condition.op == ">" else -value
        for case in itertools.product(*condition.each.values()):
            values = {condition.column: value, condition.interval[0]: value - 0.01, condition.interval[1]: value + 0.01}
            rows.append({**condition.where, **dict(zip(condition.each, case)), **values, "n": 900})
    keys = sorted({name for condition in rule.conditions for name in (*condition.where, *condition.each)})
    merged = pd.DataFrame(rows).groupby(keys, dropna=False, sort=False, as_index=False).first()  # one row for two columns
    return merged


def judged(id: str, frame: pd.DataFrame) -> str:
    return verdict.judge(verdict.outcomes_on(RULES[id], frame))[0]


@pytest.mark.parametrize("id", EFFECTS)
def test_verdicts_follow_the_effects(id):
    assert judged(id, effects(RULES[id], 0.5)) == HOLDS
    assert judged(id, effects(RULES[id], -0.5)) == DOES_NOT
    assert judged(id, effects(RULES[id], 0.5, -0.5)) == IN_PART
    assert judged(id, effects(RULES[id], 0.5).assign(dataset="shapes")) == NOT_MEASURED


def asr_table(dwq: float, undefended: float) -> pd.DataFrame:
    rows = [
        {"dataset": "cifar10", "defense": defense, "training_seed": 0, "attacker": "papers' setting", "inference": "fixed",
         "attack": attack, "kind": kind, "target_bits": bits, "n": 900, "asr": asr, "low": asr - 0.02, "high": asr + 0.02}
        for defense, asr in (("dwq", dwq), ("dwq-mild", dwq), ("undefended", undefended))
        for attack, kind, bits in itertools.product(("LaVAN", "GAP"), ("seen", "size 8", "size 10"), (32, 5, 4, 2))
    ]  # fmt: skip
    return pd.DataFrame(rows).assign(clean_accuracy=0.85, asr_noise=0.05, asr_grey=0.04, asr_photo=0.06)


def test_double_win_quant_is_judged_against_the_papers_range_and_the_undefended_network():
    assert judged("A13", asr_table(0.85, 0.9)) == HOLDS
    assert judged("A13", asr_table(0.4, 0.42)) == IN_PART, "it stops nothing, but the published range is not reached"
    assert judged("A13", asr_table(0.3, 0.9)) == DOES_NOT


def test_accuracy_is_kept_within_two_points():
    rows = [{"dataset": "cifar10", "defense": "qadtr", "training_seed": seed, "target_bits": bits, "n": 10_000,
             "undefended": 0.87} for seed in (0, 1) for bits in (32, 8, 5, 4, 2)]  # fmt: skip
    frame = pd.DataFrame(rows)
    assert judged("B9", frame.assign(clean_accuracy=0.868, ci_low=0.861, ci_high=0.875)) == HOLDS
    assert judged("B9", frame.assign(clean_accuracy=0.82, ci_low=0.812, ci_high=0.828)) == DOES_NOT


def test_the_tables_have_the_columns_and_names_that_the_rules_ask_for():
    names = (SURROGATE, "pbat-random", "pbat-random-s1", "pbat-full", "dwq", "dwq-mild", "qadtr", "qadtr-s1", "qadtr-without-dbwt")
    runs = {name: network(name, 0.5, seed) for seed, name in enumerate(names)}
    spread = comparisons.spread_rows(runs, [("qadtr-without-dbwt", "qadtr")])
    evened = spread[spread["to"] != ""].assign(kind="spread", reading="points", inference="fixed", target_bits=0)
    parts = comparisons.drop_rows(runs, [("qadtr-without-dbwt", "qadtr")])
    tables = {
        "A3": robustness.unseen_rows({name: runs[name] for name in names[:5]}), "A13": robustness.asr_rows(runs),
        "B3": comparisons.drop_rows(runs, [(name, "qadtr") for name in ("pbat-random", "pbat-full", "dwq", "dwq-mild")]),
        "B5": pd.concat([parts, evened]), "B9": comparisons.clean_rows(runs, "shapes").assign(dataset="cifar10"),
    }  # fmt: skip
    tables["B4"] = tables["A3"]
    for id, frame in tables.items():
        found = verdict.outcomes_on(RULES[id], frame)
        assert found and all(result.estimate is not None and result.reference is not None for result in found), id
        assert {result.estimate.seeds for result in found} == {1}, f"{id}: a condition mixes several rows"
    universal = [c for c in RULES["B7"].conditions if c.where["scope"] == "universal"]
    made_at = comparisons.made_at_rows(runs[SURROGATE])
    for condition in universal:
        for case in verdict._cases(condition, made_at):
            assert len(verdict._select(made_at, {**condition.where, **case})) == 1
