"""Pictures of the way to a device: success after every step, and where integers run out of codes."""

from __future__ import annotations

from math import ceil

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from qpatch.errors import InputError
from qpatch.report.style import INK, SERIES, SOFT, percent_tick, titled

_MARKERS = ("o", "s", "^", "D", "v", "P")


def chain(frame: pd.DataFrame, *, columns: int = 4, title: str = "") -> Figure:
    """Attack success after every step of the chain, one panel per deployed network.

    Args:
        frame: rows in the chain's order with name, step, asr, ci_low, ci_high and control; steps with empty asr are
            left out, and the control is drawn where it was measured.
        columns: panels per row.

    Raises:
        InputError: no rows.
    """
    frame = frame.dropna(subset=["asr"])
    if frame.empty:
        raise InputError("there are no rows to draw.")
    names, steps = list(frame["name"].drop_duplicates()), list(frame["step"].drop_duplicates())
    columns = min(columns, len(names))
    lines = ceil(len(names) / columns)
    fig, axes = plt.subplots(lines, columns, figsize=(1.5 + 1.75 * columns, 0.9 + (0.9 + 0.2 * len(steps)) * lines),
                             squeeze=False, sharex=True, sharey=True)  # fmt: skip
    for ax, name in zip(axes.flat, names):
        rows = frame[frame["name"] == name]
        y = [steps.index(step) for step in rows["step"]]
        spread = [rows["asr"] - rows["ci_low"], rows["ci_high"] - rows["asr"]]
        ax.errorbar(rows["asr"], y, xerr=spread, color=SERIES[0], marker="o", markersize=4.5, linewidth=0.8,
                    elinewidth=1.4, label="patch, 95 % interval")  # fmt: skip
        ax.plot(rows["control"], y, color=SOFT, marker="x", markersize=5, linestyle="none", label="strongest control")
        ax.set_title(name, fontsize=8.5)
        ax.grid(axis="y", visible=False)
    for ax in axes.flat[len(names):]:
        ax.set_axis_off()
    axes[0, 0].set_yticks(range(len(steps)), steps)
    axes[0, 0].set_ylim(len(steps) - 0.5, -0.5)
    axes[0, 0].set_xlim(0, 1.05 * max(float(frame["ci_high"].max()), 0.1))
    axes[0, 0].xaxis.set_major_formatter(percent_tick)
    for column in range(columns):
        below = [row for row in range(lines) if row * columns + column < len(names)]
        axes[below[-1], column].set_xlabel("attack success")
        axes[below[-1], column].tick_params(labelbottom=True)
    fig.legend(*axes[0, 0].get_legend_handles_labels(), ncols=2, loc="outside lower left", fontsize=7.5)
    return titled(fig, title)


def clipped(frame: pd.DataFrame, *, title: str = "") -> Figure:
    """The share of activations at the upper end of their codes, operation by operation, a panel and scale per network.

    Args:
        frame: rows with name, shown, step, kind and share, see `measure.device.clipped_rows`.

    Raises:
        InputError: no rows.
    """
    if frame.empty:
        raise InputError("there are no rows to draw.")
    names = list(frame["name"].drop_duplicates())
    fig, axes = plt.subplots(1, len(names), figsize=(1.0 + 3.2 * len(names), 3.4), squeeze=False)
    for ax, name in zip(axes.flat, names):
        rows = frame[frame["name"] == name]
        for number, (shown, part) in enumerate(rows.groupby("shown", sort=False)):
            ax.plot(range(len(part)), part["share"], color=SERIES[number], marker=_MARKERS[number], markersize=5,
                    markerfacecolor="none", linewidth=1.1, label=str(shown))  # fmt: skip
        kinds = rows.drop_duplicates("step")["kind"]
        ax.set_xticks(range(len(kinds)), [kind.replace("_", " ").lower() for kind in kinds], rotation=65, ha="right",
                      fontsize=6.5)  # fmt: skip
        ax.set_title(name)
        ax.axhline(0, color=INK, linewidth=0.6, zorder=0)
        ax.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.3g} %")
    axes[0, 0].set_ylabel("activations at the highest code")
    fig.legend(*axes[0, 0].get_legend_handles_labels(), ncols=5, loc="outside lower left", fontsize=7.5)
    return titled(fig, title)
