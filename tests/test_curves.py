"""Curves and scatter plots show every point, its interval, the control and the paper's value."""

import pandas as pd
import pytest

from qpatch.errors import InputError
from qpatch.report import curves

ROWS = pd.DataFrame(
    {"steps": [10, 100, 10, 100], "shown_at": ["float", "float", "2-bit", "2-bit"], "attack": ["LaVAN"] * 4,
     "value": [0.2, 0.6, 0.1, 0.3], "low": [0.1, 0.5, 0.05, 0.2], "high": [0.3, 0.7, 0.2, 0.4], "control": [0.05] * 4}
)  # fmt: skip


def test_curves_draw_a_line_per_group_with_intervals_control_and_paper():
    figure = curves.curves(
        ROWS, "steps", "shown_at", panel="attack", xlabel="steps", control="control", published=0.73, log=True
    )
    (ax,) = figure.axes
    lines = {tuple(line.get_ydata()) for line in ax.get_lines()}
    assert {(0.2, 0.6), (0.1, 0.3), (0.05, 0.05), (0.73, 0.73)} <= lines
    bars = [tuple(point[1] for point in path.vertices) for bar in ax.collections for path in bar.get_paths()]
    assert any(low == pytest.approx(0.5) and high == pytest.approx(0.7) for low, high in bars)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["float", "2-bit", "strongest control", "paper"]
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["10", "100"]


def test_scatter_labels_every_point():
    figure = curves.scatter(ROWS.assign(text=["a", "b", "c", "d"]), "steps", "shown_at", "text", xlabel="distance")
    assert {text.get_text() for text in figure.axes[0].texts} == {"a", "b", "c", "d"}


@pytest.mark.parametrize("draw", [
    lambda empty: curves.curves(empty, "steps", "shown_at", xlabel=""),
    lambda empty: curves.scatter(empty, "steps", "shown_at", "text", xlabel=""),
])  # fmt: skip
def test_no_rows_is_an_error(draw):
    with pytest.raises(InputError, match="no rows"):
        draw(ROWS.iloc[:0])
