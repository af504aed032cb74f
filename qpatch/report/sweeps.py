"""Accuracy against the size of the noise: curves, the paper's points, and the cliffs that rounding predicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MultipleLocator

from qpatch.errors import InputError
from qpatch.measure.stats import wilson
from qpatch.report import claims
from qpatch.report.style import INK, SERIES, SOFT, percent_tick, titled

LATTICE = 255  # steps of an int8 input over the image range [0, 1]
_LOOKS = {"float": (SERIES[0], "o"), "int8": (SERIES[1], "s"), "int16": (SERIES[2], "^")}  # the same in all figures
_CONTROL = (SERIES[3], "D")
_SOLID = ("float", "int8")  # the others lie on one of these, and must not hide it


def steps_moved(epsilon: float) -> int:
    """By how many int8 steps noise of size ε moves a pixel that lies on the lattice: ⌊255 ε + ½⌋."""
    return int(LATTICE * epsilon + 0.5)


def cliffs(largest: float) -> list[float]:
    """The sizes up to `largest` at which a pixel on the lattice starts to move one step more: (m − ½) / 255."""
    found = [(m - 0.5) / LATTICE for m in range(1, int(LATTICE * largest) + 2)]
    return [size for size in found if size <= largest]


def predicted_levels(curve: pd.DataFrame) -> pd.DataFrame:
    """The plateaus of an int8 network that only rounds its input, from the float network's own curve.

    Between two cliffs a pixel moves by exactly m steps, so the network sees the noise of size m / 255 and nothing
    else: there the float curve is read off, by straight lines between its points.

    Args:
        curve: the float network's rows of one task: epsilon and accuracy.

    Returns:
        One row per plateau: steps m, first and last ε (of the curve's range), predicted accuracy.
    """
    curve = curve.sort_values("epsilon")
    largest = curve["epsilon"].max()
    edges = [0.0, *cliffs(largest), largest]
    rows = [{"steps": m, "first": left, "last": right,
             "predicted": float(np.interp(min(m / LATTICE, largest), curve["epsilon"], curve["accuracy"]))}
            for m, (left, right) in enumerate(zip(edges, edges[1:])) if m / LATTICE <= largest]  # fmt: skip
    return pd.DataFrame(rows)


def published_rows() -> pd.DataFrame:
    """The authors' transfer table in our form: a row per task, ε and view, Wilson intervals for 1,000 images."""
    table = claims.published("C-pgd-transfer").rename(columns={"dataset": "task", "float32": "float"})
    rows = table.melt(["task", "epsilon"], var_name="view", value_name="accuracy").assign(n=1000)
    limits = [wilson(share * n, n) for share, n in zip(rows["accuracy"], rows["n"])]
    return rows.assign(ci_low=[low for low, _ in limits], ci_high=[high for _, high in limits])


def accuracy_curves(
    frame: pd.DataFrame,
    views: Sequence[str],
    *,
    panel: str = "task",
    published: pd.DataFrame | None = None,
    levels: Mapping[str, Sequence[tuple[float, float, float]]] | None = None,
    title: str = "",
) -> Figure:
    """Accuracy of each view against ε, a panel per task, dashed lines at the predicted cliffs.

    Args:
        frame: one row per point with epsilon, view, accuracy, ci_low, ci_high and `panel`.
        views: the views to draw.
        published: rows with the same columns, drawn as hollow points in the colour of their view.
        levels: panel → (from ε, to ε, accuracy) of plateaus that were predicted, drawn as thin grey bars.

    Raises:
        InputError: no rows of these views.
    """
    frame = frame[frame["view"].isin(views)]
    if frame.empty:
        raise InputError("there are no rows to draw.")
    panels = list(frame[panel].drop_duplicates())
    fig, axes = plt.subplots(1, len(panels), figsize=(4.4 * len(panels) + 0.6, 3.6), squeeze=False, sharey=True)
    for ax, name in zip(axes.flat, panels):
        rows = frame[frame[panel] == name]
        edges = cliffs(rows["epsilon"].max())
        for edge in edges:
            ax.axvline(edge, color=INK, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        for first, last, level in (levels or {}).get(name, ()):
            ax.plot([first, last], [level, level], color=SOFT, linewidth=5, alpha=0.35, solid_capstyle="butt", zorder=0)
        for view in views:
            _curve(ax, rows[rows["view"] == view], view)
            if published is not None:
                points = published[(published[panel] == name) & (published["view"] == view)]
                color, marker = _LOOKS.get(view, _CONTROL)
                ax.plot(points["epsilon"], points["accuracy"], linestyle="none", marker=marker, markersize=7,
                        markerfacecolor="none", markeredgecolor=color, markeredgewidth=0.9)  # fmt: skip
        ax.set_title(str(name), pad=16)
        ax.set_xlabel("size ε of the noise, in units of the [0, 1] range")
        ax.xaxis.set_major_locator(MultipleLocator(0.002))
        ax.grid(axis="x", visible=False)
        for m, (left, right) in enumerate(zip([0, *edges], [*edges, rows["epsilon"].max()])):
            if right - left > 0.001:
                ax.annotate(f"{m} step{'s' if m != 1 else ''}", ((left + right) / 2, 1.0), xytext=(0, 3), fontsize=7.5,
                            textcoords="offset points", ha="center", color=SOFT,
                            xycoords=("data", "axes fraction"))  # fmt: skip
    axes[0, 0].set_ylabel("accuracy under the noise")
    axes[0, 0].set_ylim(-0.02, 1.02)
    axes[0, 0].yaxis.set_major_formatter(percent_tick)
    _legend(fig, axes[0, 0], published is not None, bool(levels))
    return titled(fig, title)


def _curve(ax, rows: pd.DataFrame, view: str) -> None:
    rows, (color, marker) = rows.sort_values("epsilon"), _LOOKS.get(view, _CONTROL)
    line, face = ("-", color) if view in _SOLID else ((0, (2, 1.5)), "white")
    ax.plot(rows["epsilon"], rows["accuracy"], color=color, linestyle=line, marker=marker, markersize=4.5,
            markerfacecolor=face, linewidth=1.4, label=view)  # fmt: skip
    ax.fill_between(rows["epsilon"], rows["ci_low"], rows["ci_high"], color=color, alpha=0.18, linewidth=0)


def _legend(fig: Figure, ax, published: bool, levels: bool) -> None:
    handles, labels = ax.get_legend_handles_labels()
    if published:
        handles.append(plt.Line2D([], [], color=INK, marker="o", markerfacecolor="none", linestyle="none"))
        labels.append("paper")
    if levels:
        handles.append(plt.Line2D([], [], color=SOFT, linewidth=5, alpha=0.35))
        labels.append("predicted level")
    handles.append(plt.Line2D([], [], color=INK, linewidth=1, linestyle=(0, (4, 3))))
    labels.append("predicted cliff")
    fig.legend(handles, labels, ncols=len(labels), loc="outside lower left", fontsize=7.5, columnspacing=1.2)
