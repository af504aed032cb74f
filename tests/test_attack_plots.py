"""The pictures of the attack table: what they draw, and what they refuse."""

import matplotlib
import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch

from qpatch.errors import InputError
from qpatch.report import attack_plots

matplotlib.use("Agg")


def rows():
    return pd.DataFrame([
        {"side": side, "attack": attack, "precision": precision, "accuracy": 0.5, "acc_low": 0.4, "acc_high": 0.6,
         "control": 0.9, "paper": 0.1 if attack == "PGD" else float("nan")}
        for side in ("own", "float") for attack in ("PGD", "ZOO") for precision in ("float", "int16", "int8")])


def test_a_panel_per_side_a_line_per_attack_and_every_marker():
    figure = attack_plots.precision_panels(rows(), "side", control="control", published="paper")
    assert [ax.get_title() for ax in figure.axes] == ["own", "float"]
    assert [tick.get_text() for tick in figure.axes[0].get_yticklabels()] == ["PGD", "ZOO"]
    marks = [line.get_marker() for line in figure.axes[0].get_lines()]
    assert marks.count("x") == 6 and marks.count("D") == 3 and marks.count("s") == 2
    plt.close(figure)


def test_noise_is_stretched_around_grey_and_its_factor_is_told():
    clean = torch.full((3, 8, 8), 0.5)
    loud = clean.clone()
    loud[0, 0, 0] += 0.05
    figure = attack_plots.magnified(clean, {"loud": loud, "silent": clean})
    titles = [ax.get_title() for ax in figure.axes]
    assert titles == ["loud", "silent", "noise × 10", "no noise"]
    assert figure.axes[2].get_images()[0].get_array()[0, 0, 0] == pytest.approx(1.0)
    assert figure.axes[3].get_images()[0].get_array().min() == pytest.approx(0.5)
    plt.close(figure)


def test_the_grid_stays_whole_where_attacks_do_not_fill_the_last_row():
    clean = torch.full((3, 8, 8), 0.5)
    figure = attack_plots.magnified(clean, {str(number): clean for number in range(5)}, columns=3)
    assert len(figure.axes) == 12
    plt.close(figure)


def test_nothing_to_draw_is_said():
    with pytest.raises(InputError, match="no rows"):
        attack_plots.precision_panels(rows()[:0], "side")
    with pytest.raises(InputError, match="no attacks"):
        attack_plots.magnified(torch.zeros(3, 8, 8), {})
