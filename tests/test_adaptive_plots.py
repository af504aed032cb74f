"""Pictures of notebook 35: what is drawn where, and the worst case last."""

import pandas as pd
import pytest

from qpatch.errors import InputError
from qpatch.report import adaptive_plots


def test_the_strongest_attack_is_framed_and_the_worst_case_comes_last():
    rows = [("joint", "white-box", "within", 0.4, True), ("joint", "worst case", "worst case", 0.6, False),
            ("dwq", "white-box", "within", 0.2, False), ("dwq", "own randomness", "within", 0.3, True)]  # fmt: skip
    frame = pd.DataFrame(rows, columns=["defense", "attack", "scope", "asr", "strongest"]).assign(target_bits=2)
    axis = adaptive_plots.attack_map(frame).axes[0]
    assert [tick.get_text() for tick in axis.get_yticklabels()] == ["white-box", "own randomness", "worst case"]
    assert sorted(text.get_text() for text in axis.texts) == ["20", "30", "40", "60"]
    assert [(round(patch.get_x() + 0.46), round(patch.get_y() + 0.46)) for patch in axis.patches] == [(0, 0), (1, 1)]


def test_outcomes_carry_a_sign_besides_their_colour():
    frame = pd.DataFrame({"check": ["a", "b", "c"], "defense": "joint", "target_bits": 4, "outcome": ["pass", "fail", "undecided"]})
    axis = adaptive_plots.outcome_map(frame).axes[0]
    assert [text.get_text() for text in axis.texts] == ["", "✗", "?"]


def test_nothing_to_draw_is_refused():
    for draw in (adaptive_plots.attack_map, adaptive_plots.outcome_map):
        with pytest.raises(InputError, match="no rows"):
            draw(pd.DataFrame())
