"""The rules that read notebook 30's tables, and its pictures."""

from __future__ import annotations

import itertools

import pandas as pd
import pytest
import torch

from qpatch import measure
from qpatch.errors import InputError
from qpatch.measure import Pair, Reading
from qpatch.report import claims, similarity_plots, verdict

RULES = {claim.id: claim.rule for claim in claims.load()}


def rows_for(rule, good: bool) -> pd.DataFrame:
    """One row for every condition and case of a rule, on the right or on the wrong side of its bound."""
    rows = []
    for condition in rule.conditions:
        bound = condition.than if isinstance(condition.than, float | int) else 0.0
        value = bound + 0.1 * (1 if (condition.op == ">") == good else -1)
        for case in itertools.product(*condition.each.values()):
            own = {condition.column: value, condition.interval[0]: value - 0.01, condition.interval[1]: value + 0.01}
            rows.append({**condition.where, **dict(zip(condition.each, case)), **own, "n": 600})
    keys = sorted({name for condition in rule.conditions for name in (*condition.where, *condition.each)})
    return pd.DataFrame(rows).groupby(keys, dropna=False, sort=False, as_index=False).first()


@pytest.mark.parametrize("id", ["A4", "A5", "A6", "A7", "A23"])
def test_verdicts_follow_the_distance_from_chance(id):
    judged = lambda frame: verdict.judge(verdict.outcomes_on(RULES[id], frame))[0]  # noqa: E731
    assert judged(rows_for(RULES[id], True)) == verdict.HOLDS
    assert judged(rows_for(RULES[id], False)) == verdict.DOES_NOT
    assert judged(rows_for(RULES[id], True).assign(n=499)) == verdict.NOT_DECIDABLE


def test_structure_has_to_beat_direction():
    kinds = ["LaVAN, universal", "GAP, universal", "LaVAN, image-specific"]

    def judged(structure: float, direction: float) -> str:
        rows = [
            {"dataset": "cifar10", "outcome": "relative", "measurement": name, "given": given, "attack": kind,
             "value": value, "low": value - 0.05, "high": value + 0.05, "margin": value - 0.3,
             "margin_low": value - 0.35, "margin_high": value - 0.25, "n": 92}
            for kind in kinds
            for name, given, value in (("HOG cosine", "nothing", 0.8), ("HOG cosine", "cosine", structure),
                                       ("cosine", "HOG cosine", direction))
        ]  # fmt: skip
        return verdict.judge(verdict.outcomes_on(RULES["A8"], pd.DataFrame(rows)))[0]

    assert judged(0.7, 0.1) == verdict.HOLDS and judged(0.1, 0.7) == verdict.IN_PART


def test_pictures_are_drawn():
    values = {name: torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(ord(name))) for name in "abc"}
    pairs = [Pair("joint", "32-4", "a", "b", "c"), Pair("apart", "32-2", "a", "c")]
    readings = [Reading("edge_iou"), Reading("hog_cosine", cell=4)]
    rows = measure.similarity_rows(values, pairs, readings, torch.arange(8) % 4, draws=20)
    paper = pd.DataFrame({"metric": ["edge_iou"], "pair": ["32-4"], "value": [0.14]})
    figure = similarity_plots.against_chance(rows, "training", "metric", paper=paper)
    assert len(figure.axes) == 4 and "float·4" in [tick.get_text() for tick in figure.axes[-1].get_xticklabels()]
    shown = {"float": {"map": torch.rand(8, 8), "edges": torch.rand(8, 8) > 0.5}}
    assert len(similarity_plots.gallery(shown, {"float": "IoU 1.00"}).axes) == 2
    plane = pd.DataFrame({"layer": ["L0", "L3"], "edge_iou": [0.2, 1.0], "hog_cosine": [0.7, 0.7], "cells": "4×4"})
    assert similarity_plots.metric_plane(plane, plane, hue="cells").axes
    with pytest.raises(InputError):
        similarity_plots.against_chance(rows[:0], "training", "metric")
    with pytest.raises(InputError):
        similarity_plots.gallery({}, {})
