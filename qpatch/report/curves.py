"""Curves and scatter plots of success, with intervals, in the project's style."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from qpatch.errors import InputError
from qpatch.report.style import INK, SERIES, SOFT, percent_tick, titled

_MARKERS = ("o", "s", "^", "D", "v", "P")
_APART = 0.06  # of a logarithmic axis, between the texts of two ticks


def curves(frame: pd.DataFrame, x: str, group: str, *, panel: str | None = None, xlabel: str, ylabel: str = "attack success",
           control: str | None = None, published: float | None = None, log: bool = False, share: bool = True, title: str = "") -> Figure:
    """Success against one quantity: a line per value of `group`, a panel per value of `panel`, intervals as bars.

    Args:
        frame: one row per point with `x`, value, low and high (shares in [0, 1]).
        control: column with the strongest control's rate, drawn as a grey dotted line per group.
        published: the paper's rate, drawn as a dashed line.
        log: logarithmic x axis.
        share: values are shares, shown as percentages from 0 to 100.

    Raises:
        InputError: no rows.
    """
    if frame.empty:
        raise InputError("there are no rows to draw.")
    panels = list(frame[panel].drop_duplicates()) if panel else [None]
    fig, axes = plt.subplots(1, len(panels), figsize=(3.4 * len(panels) + 0.8, 3.1), squeeze=False, sharey=True)
    for ax, name in zip(axes.flat, panels):
        part = frame if panel is None else frame[frame[panel] == name]
        for number, (label, rows) in enumerate(part.groupby(group, sort=False)):
            rows, color = rows.sort_values(x), SERIES[number % len(SERIES)]
            spread = [rows["value"] - rows["low"], rows["high"] - rows["value"]]
            ax.errorbar(rows[x], rows["value"], yerr=spread, color=color, marker=_MARKERS[number % len(_MARKERS)],
                        markersize=5, linewidth=1.4, elinewidth=1, capsize=2, label=str(label))
            if control:
                ax.plot(rows[x], rows[control], color=color, linestyle=":", linewidth=1.2)
        if published is not None:
            ax.axhline(published, color=INK, linewidth=1, linestyle=(0, (4, 3)))
        if log:
            ax.set_xscale("log")
        ticks = sorted(part[x].unique())
        if len(ticks) <= 12:
            ax.set_xticks(ticks, _labels(ticks, log))
        ax.minorticks_off()
        ax.set_xlabel(xlabel)
        ax.set_title("" if name is None else str(name))
    axes[0, 0].set_ylabel(ylabel)
    if share:
        axes[0, 0].set_ylim(-0.02, 1.02)
        axes[0, 0].yaxis.set_major_formatter(percent_tick)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    if control:
        handles.append(plt.Line2D([], [], color=SOFT, linestyle=":"))
        labels.append("strongest control")
    if published is not None:
        handles.append(plt.Line2D([], [], color=INK, linewidth=1, linestyle=(0, (4, 3))))
        labels.append("paper")
    fig.legend(handles, labels, ncols=len(labels), loc="outside lower left", fontsize=7.5, columnspacing=1.2)
    return titled(fig, title)


def _labels(ticks: Sequence[float], log: bool) -> list[str]:
    """The ticks as text; on a logarithmic axis one that is too near to the last text stays without."""
    texts, last, least = [], 0.0, (ticks[-1] / ticks[0]) ** _APART if log else 1.0
    for tick in ticks:
        texts.append("" if log and last and tick < last * least else f"{tick:g}")
        last = tick if texts[-1] else last
    return texts


def scatter(frame: pd.DataFrame, x: str, group: str, text: str, *, xlabel: str, ylabel: str = "attack success",
            title: str = "") -> Figure:
    """Success of single networks against one of their properties, each point with its interval and a short text.

    Args:
        frame: one row per point with `x`, value, low and high.
        group: column that decides marker and colour.
        text: column with the short text beside each point.

    Raises:
        InputError: no rows.
    """
    if frame.empty:
        raise InputError("there are no rows to draw.")
    fig, ax = plt.subplots(figsize=(5.6, 3.5))
    for number, (label, rows) in enumerate(frame.groupby(group, sort=False)):
        color = SERIES[number % len(SERIES)]
        spread = [rows["value"] - rows["low"], rows["high"] - rows["value"]]
        ax.errorbar(rows[x], rows["value"], yerr=spread, color=color, marker=_MARKERS[number % len(_MARKERS)],
                    markersize=6, linestyle="none", elinewidth=1, capsize=2, label=str(label))
        for row in rows.itertuples():
            ax.annotate(str(getattr(row, text)), (getattr(row, x), row.value), xytext=(6, 4),
                        textcoords="offset points", fontsize=7, color=SOFT)
    ax.set_xlabel(xlabel)
    ax.set_ylabel(ylabel)
    ax.set_ylim(-0.02, 1.02)
    ax.yaxis.set_major_formatter(percent_tick)
    fig.legend(*ax.get_legend_handles_labels(), ncols=frame[group].nunique(), loc="outside lower left", fontsize=7.5)
    return titled(fig, title)
