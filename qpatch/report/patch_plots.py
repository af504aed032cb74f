"""The pictures of notebooks 22 and 23: success by width, who made the patch where, effects, and a training watched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from qpatch.errors import InputError
from qpatch.report.dots import dots
from qpatch.report.style import (
    BIT_COLORS, INK, RATE_MAP, SERIES, SOFT, bare, bit_color, bit_label, bit_marker, percent_tick, rate_bar, titled,
)  # fmt: skip

_MARKERS = ("o", "s", "^", "D", "v", "P")
_SLANTED = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"}


def width_label(width: int) -> str:
    """As `bit_label`; 0 stands for random precision inference."""
    return "drawn" if width == 0 else bit_label(width)


def by_width(
    frame: pd.DataFrame, line: str, column: str, row: str | None = None, *, control: str | None = None,
    published: pd.DataFrame | None = None, ylabel: str = "attack success", title: str = "",
) -> Figure:  # fmt: skip
    """Success at every width: panels by `column` (and `row`), one marked line per value of `line`, intervals as bars.

    Args:
        frame: one row per point: target_bits (0 is random precision, drawn apart), value, low, high.
        control: column with the strongest control's rate, drawn as a grey dotted line.
        published: the paper's values, with the columns `column`, `row`, target_bits and value; hollow diamonds.

    Raises:
        InputError: no rows.
    """
    _some(frame)
    columns, rows = list(frame[column].unique()), list(frame[row].unique()) if row else [None]
    lines, widths = list(frame[line].unique()), sorted(frame["target_bits"].unique(), key=lambda b: -b or 1)
    place = {width: x + (0.4 if width == 0 else 0) for x, width in enumerate(widths)}
    size = (1.0 + (0.5 + 0.27 * len(widths)) * len(columns), 1.0 + 1.9 * len(rows))
    fig, axes = plt.subplots(len(rows), len(columns), figsize=size, squeeze=False, sharex=True, sharey=True)
    for (i, one), (j, other) in ((a, b) for a in enumerate(rows) for b in enumerate(columns)):
        ax, part = axes[i, j], frame[(frame[column] == other) & ((frame[row] == one) if row else True)]
        for number, name in enumerate(lines):
            own = part[part[line] == name].assign(order=lambda f: f["target_bits"].map(place)).sort_values("order")
            x = own["order"] + 0.13 * (number - (len(lines) - 1) / 2)
            spread = np.array([own["value"] - own["low"], own["high"] - own["value"]]).clip(min=0)
            style = {"color": SERIES[number % len(SERIES)], "marker": _MARKERS[number % len(_MARKERS)], "markersize": 4.2}
            ax.errorbar(x, own["value"], yerr=spread, linestyle="none", elinewidth=1, label=str(name), **style)
            fixed = (own["target_bits"] > 0).to_numpy()
            ax.plot(x[fixed], own["value"][fixed], color=style["color"], linewidth=1.1, alpha=0.6)
        if control:
            floor = part.groupby("target_bits")[control].max()
            there = [b for b in widths if b in floor]
            ax.plot([place[b] for b in there], [floor[b] for b in there], color=SOFT, linestyle=":")
        if published is not None:
            known = published[(published[column] == other) & ((published[row] == one) if row else True)]
            known = known[known["target_bits"].isin(widths)]
            ax.plot(known["target_bits"].map(place), known["value"], linestyle="none", marker="D", markersize=6,
                    markerfacecolor="none", markeredgecolor=INK)  # fmt: skip
        if i == 0:
            ax.set_title(str(other))
        if j == 0:
            ax.set_ylabel(ylabel if row is None else f"{one}: {ylabel}")
        ax.grid(axis="x", visible=False)
    for ax in axes[-1]:
        ax.set_xticks(list(place.values()), [width_label(b) for b in widths], **_SLANTED)
    axes[0, 0].set_ylim(-0.03, 1.03)
    axes[0, 0].yaxis.set_major_formatter(percent_tick)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    extra = [("strongest control", {"color": SOFT, "linestyle": ":"})] if control else []
    if published is not None:
        extra.append(("paper", {"color": INK, "marker": "D", "markerfacecolor": "none", "linestyle": "none"}))
    handles += [plt.Line2D([], [], **style) for _, style in extra]
    _legend(fig, handles, [*labels, *(name for name, _ in extra)])
    return titled(fig, title)


def rate_maps(frame: pd.DataFrame, panel: str, row: str, *, values: str = "asr", title: str = "") -> Figure:
    """Success as a heat map per panel: where the patch was made down, the width that is attacked across.

    Args:
        frame: one row per cell with `panel`, `row` (text, in the table's order), target_bits and `values`.

    Raises:
        InputError: no rows.
    """
    _some(frame)
    panels, rows = list(frame[panel].unique()), list(frame[row].unique())
    widths = sorted(frame["target_bits"].unique(), key=lambda b: -b or 1)
    size = (1.9 + 0.5 * len(widths) * len(panels), 0.95 + 0.25 * len(rows))
    fig, axes = plt.subplots(1, len(panels), figsize=size, squeeze=False, sharey=True)
    for ax, name in zip(axes.flat, panels):
        cells = frame[frame[panel] == name].pivot(index=row, columns="target_bits", values=values)
        cells = cells.reindex(rows, columns=widths)
        image = ax.imshow(cells.to_numpy(float), vmin=0, vmax=1, cmap=RATE_MAP, aspect="auto")
        for y, x in np.ndindex(cells.shape):
            rate = cells.iat[y, x]
            if not np.isnan(rate):
                color = "white" if rate > 0.45 else INK
                ax.text(x, y, f"{100 * rate:.0f}", ha="center", va="center", fontsize=7, color=color)
        ax.set_xticks(range(len(widths)), [width_label(b) for b in widths], **_SLANTED)
        ax.set_yticks(range(len(rows)), rows)
        ax.set_title(str(name))
        bare(ax)
    axes[0, 0].set_ylabel("patch made on")
    fig.supxlabel("width of the attacked network", fontsize=9)
    rate_bar(fig, image, axes)
    return titled(fig, title)


def effects(
    frame: pd.DataFrame, line: str, hue: str, panel: str, *, gap: str | None = None, bounds: Sequence[float] = (),
    xlabel: str, share: bool = True, title: str = "",
) -> Figure:  # fmt: skip
    """Differences of success with their intervals, a dashed line at nothing, and what another training seed changes.

    Args:
        frame: one row per mark: `line`, `hue`, `panel`, value, low, high.
        gap: column with the difference between two trainings of one defense; a grey band of twice its size per panel.
        bounds: further dashed lines, for instance where a claim lies.
        share: one x-axis for all panels; else each has its own.

    Raises:
        InputError: no rows.
    """
    frame = frame.dropna(subset=["value"])
    widths = {bit_label(bits): color for bits, color in BIT_COLORS.items()}
    colors = widths if set(frame[hue]) <= set(widths) else None
    figure = dots(frame, line, hue, panel=panel, xlabel=xlabel, share=share, threshold=0, colors=colors, title=title)
    lines, marks = frame[line].nunique(), frame[hue].nunique()
    figure.set_size_inches(2.2 + 2.5 * frame[panel].nunique(), max(2.1, 1.3 + lines * (0.16 + 0.06 * marks)))
    for ax, name in zip(figure.axes, frame[panel].drop_duplicates()):
        part = frame if share else frame[frame[panel] == name]
        least, most = min(part["low"].min(), 0), max(part["high"].max(), 0, *bounds)
        ax.set_xlim(least - 0.04 * (most - least), most + 0.04 * (most - least))
        ax.xaxis.set_major_formatter(lambda value, _: f"{round(100 * value, 1):g}".replace("-", "−"))
        for bound in bounds:
            ax.axvline(bound, color=SERIES[1], linewidth=1.2, linestyle=(0, (4, 3)), zorder=1.5)
        width = frame.loc[frame[panel] == name, gap].max() if gap else np.nan
        if not np.isnan(width):
            ax.axvspan(-2 * width, 2 * width, color=SOFT, alpha=0.18, linewidth=0, zorder=0)
    return figure


def training_tape(frame: pd.DataFrame, names: Mapping[str, str], *, title: str = "") -> Figure:
    """A few training steps: the loss, coloured by the width that was trained, above the widths that the attack met.

    Args:
        frame: rows of `zoo.rehearsal.Rehearsal.training_steps`.
        names: network → title of its column.

    Raises:
        InputError: no rows.
    """
    _some(frame)
    fig, axes = plt.subplots(2, len(names), figsize=(0.9 + 2.7 * len(names), 3.9), squeeze=False, sharex=True)
    for ax, below, (network, heading) in zip(*axes, names.items()):
        own = frame[frame["network"] == network]
        trained, attacked = (own[own["role"] == role] for role in ("trained", "attacked"))
        loss = trained.groupby("step")["loss"].first()
        ax.plot(loss.index, loss, color=SOFT, linewidth=1, zorder=1)
        for row in trained.itertuples():
            ax.plot(row.step, row.loss, marker=bit_marker(row.width), color=bit_color(row.width), markersize=6, zorder=2)
        for row in attacked.itertuples():
            below.add_patch(plt.Rectangle((row.step - 0.45, row.number - 0.45), 0.9, 0.9, color=bit_color(row.width)))
        ax.set_title(heading)
        below.set_xlim(-0.7, own["step"].max() + 0.7)
        below.set_ylim(-0.7, frame["number"].max() + 0.7)
        below.set_xlabel("training step")
        below.yaxis.set_major_locator(MaxNLocator(integer=True))
        below.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.set_ylim(0, 1.1 * own["loss"].max())
        below.grid(False)
    axes[0, 0].set_ylabel("loss of the\ntrained width")
    axes[1, 0].set_ylabel("iteration of\nthe inner attack")
    widths = sorted(frame["width"].unique(), reverse=True)
    handles = [plt.Line2D([], [], color=bit_color(b), marker=bit_marker(b), linewidth=5) for b in widths]
    _legend(fig, handles, [bit_label(b) for b in widths])
    return titled(fig, title)


def _some(frame: pd.DataFrame) -> None:
    if frame.empty:
        raise InputError("there are no rows to draw.")


def _legend(fig: Figure, handles: list, labels: list[str]) -> None:
    fig.legend(handles, labels, ncols=min(len(labels), 6), loc="outside lower left", fontsize=7.5, columnspacing=1.2,
               handletextpad=0.5)  # fmt: skip

