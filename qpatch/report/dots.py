"""Many networks under several conditions: one line each, a marker per condition, intervals as bars."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from qpatch.errors import InputError
from qpatch.report.style import INK, SERIES, titled

_MARKERS = ("o", "s", "^", "D", "v", "P")


def dots(
    frame: pd.DataFrame, line: str, hue: str, *, group: str | None = None, panel: str | None = None, xlabel: str,
    share: bool = True, threshold: float | None = None, colors: Mapping[object, str] | None = None, title: str = "",
) -> Figure:  # fmt: skip
    """Values with their 95 % intervals: networks down, conditions side by side in colour and marker.

    Args:
        frame: one row per network, condition and panel, with value, low and high.
        line: column with the text of a line; lines keep the table's order.
        hue: column with the condition.
        group: column whose values head blocks of lines.
        panel: column that splits the panels.
        share: values are shares in [0, 1] and shown as percentages.
        threshold: draws a dashed line in each panel, for instance where nothing differs.
        colors: value of `hue` → colour; None takes the colour-blind-safe set in order.

    Raises:
        InputError: no rows.
    """
    frame = frame.dropna(subset=["value"])
    if frame.empty:
        raise InputError("there are no rows to draw.")
    panels, hues = list(frame[panel].drop_duplicates()) if panel else [None], list(frame[hue].drop_duplicates())
    places, ticks, y = {}, [], 0.0
    for heading, block in frame.groupby(group, sort=False) if group else [(None, frame)]:
        if heading is not None:
            ticks.append((y, str(heading), "bold"))
            y += 0.9
        for name in block[line].drop_duplicates():
            places[heading, name] = y
            ticks.append((y, str(name), "normal"))
            y += 1
        y += 0.3
    size = (2.2 + 3.3 * len(panels), 1.1 + 0.21 * y)
    fig, axes = plt.subplots(1, len(panels), figsize=size, squeeze=False, sharey=True)
    colors = colors or dict(zip(hues, sns.color_palette(SERIES, len(hues))))
    for ax, name in zip(axes.flat, panels):
        shown = frame if panel is None else frame[frame[panel] == name]
        for number, value in enumerate(hues):
            rows = shown[shown[hue] == value]
            heads = rows[group] if group else [None] * len(rows)
            shift = 0.5 * (number - (len(hues) - 1) / 2) / len(hues)
            height = [places[key] + shift for key in zip(heads, rows[line])]
            spread = np.array([rows["value"] - rows["low"], rows["high"] - rows["value"]]).clip(min=0)
            marker = _MARKERS[number % len(_MARKERS)]
            ax.errorbar(rows["value"], height, xerr=spread, color=colors[value], marker=marker, markersize=4,
                        linestyle="none", elinewidth=1.2, label=str(value))  # fmt: skip
        if threshold is not None:
            ax.axvline(threshold, color=INK, linewidth=1, linestyle=(0, (4, 3)), zorder=0)
        if share:
            ax.xaxis.set_major_formatter(lambda value, _: f"{round(100 * value, 1):g} %".replace("-", "−"))
        ax.set_title("" if name is None else str(name))
        ax.set_xlabel(xlabel)
        ax.grid(axis="y", visible=False)
    axes[0, 0].set_yticks([place for place, *_ in ticks], [text for _, text, _ in ticks])
    for tick, (*_, weight) in zip(axes[0, 0].get_yticklabels(), ticks):
        tick.set_fontweight(weight)
    axes[0, 0].set_ylim(y - 0.5, -0.8)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    fig.legend(handles, labels, ncols=min(len(labels), 5), loc="outside lower left", fontsize=7.5, columnspacing=1.2)
    return titled(fig, title)
