"""Cliffs, levels and curves of accuracy against the size of the noise."""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from qpatch.errors import InputError
from qpatch.measure import wilson
from qpatch.report import claims, sweeps
from qpatch.zoo.sweep import EPSILONS


def test_steps_and_cliffs():
    assert [sweeps.steps_moved(size) for size in (0, 0.0019, 0.00197, 0.0058, 0.0059, 0.0099)] == [0, 0, 1, 1, 2, 3]
    assert sweeps.cliffs(0.008) == pytest.approx([0.5 / 255, 1.5 / 255]) and sweeps.cliffs(0.001) == []
    for edge in sweeps.cliffs(0.03):
        assert sweeps.steps_moved(edge + 1e-9) == sweeps.steps_moved(edge - 1e-9) + 1


def test_levels_are_read_off_the_float_curve():
    curve = pd.DataFrame({"epsilon": [0.0, 0.004, 0.008], "accuracy": [0.9, 0.5, 0.1]})  # a straight line
    levels = sweeps.predicted_levels(curve)
    assert levels["steps"].tolist() == [0, 1, 2]
    assert levels["predicted"].tolist() == pytest.approx([0.9, 0.9 - 100 / 255, 0.9 - 200 / 255])
    assert levels["first"].tolist() == pytest.approx([0, 0.5 / 255, 1.5 / 255]) and levels["last"].iloc[-1] == 0.008
    assert sweeps.predicted_levels(curve.iloc[:2])["steps"].tolist() == [0, 1]


def test_published_rows_are_the_authors_table():
    rows = sweeps.published_rows()
    assert sorted(rows["epsilon"].unique()) == list(EPSILONS) and len(rows) == 3 * 13 * 3
    row = rows.query("task == 'cifar10' and view == 'int8' and epsilon == 0.002").squeeze()
    assert row["accuracy"] == 0.167 and (row["ci_low"], row["ci_high"]) == pytest.approx(wilson(167, 1000))
    norms = claims.published("C-pgd-norms")
    assert len(norms) == 36 and (norms["L0"] <= norms["L0_max"]).all() and (norms["L2"] <= norms["L2_max"]).all()
    pixels = norms["task"].map({"cifar10": 3 * 32**2, "vww": 3 * 96**2, "coffee": 3 * 224**2})
    assert (norms["L1_max"] <= norms["epsilon"] * pixels * 1.001).all()  # no noise is larger than ε everywhere
    assert (norms["L2_max"] <= norms["epsilon"] * pixels**0.5 * 1.001).all()


def test_curves_show_every_view_and_cliff():
    rows = sweeps.published_rows()
    rows = rows[rows["task"] != "coffee"]
    bars = {"vww": [(0, 0.002, 0.9)]}
    figure = sweeps.accuracy_curves(rows, ["float", "int8"], published=rows, levels=bars, title="t")
    assert [ax.get_title() for ax in figure.axes] == ["cifar10", "vww"]
    lines = figure.axes[0].get_lines()
    assert sum(line.get_linestyle() == "None" for line in lines) == 2  # the paper's points
    assert [line.get_label() for line in lines if not line.get_label().startswith("_")] == ["float", "int8"]
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts == ["float", "int8", "paper", "predicted level", "predicted cliff"]
    plt.close(figure)
    with pytest.raises(InputError, match="no rows"):
        sweeps.accuracy_curves(rows, ["int4"])
