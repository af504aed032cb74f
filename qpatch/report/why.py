"""The pictures of notebook 21: gradients by depth, maps of places, visibility, and what explains transfer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from qpatch.errors import InputError
from qpatch.report.style import (
    INK, RATE_MAP, SERIES, SOFT, bit_color, bit_label, bit_marker, percent_tick, rate_bar, titled,
)  # fmt: skip

_MARKERS = ("o", "s", "^", "D", "v", "P")
_DASHED = (0, (4, 3))


def depth_curves(
    rows: pd.DataFrame, floats: pd.DataFrame, depths: Mapping[str, str], *,
    ylabel: str = "cosine with the float network", title: str = "",
) -> Figure:  # fmt: skip
    """Likeness of gradients from the image inwards: a panel per family and kind of image, a line per width.

    Args:
        rows: family, points, bits, depth, value, low, high, null; dotted lines show the null.
        floats: points, depth, value of pairs of independent float networks; drawn as a grey band from least to most.
        depths: depth → its label, from the image inwards.

    Raises:
        InputError: no rows.
    """
    _some(rows)
    families, kinds, x = list(rows["family"].unique()), list(rows["points"].unique()), np.arange(len(depths))
    size = (1.2 + 2.25 * len(families), 0.8 + 1.9 * len(kinds))
    fig, axes = plt.subplots(len(kinds), len(families), figsize=size, squeeze=False, sharex=True, sharey=True)
    for (line, points), (column, family) in ((a, b) for a in enumerate(kinds) for b in enumerate(families)):
        ax = axes[line, column]
        band = floats[floats["points"] == points].groupby("depth")["value"].agg(["min", "max"]).reindex(list(depths))
        ax.fill_between(x, band["min"], band["max"], color=SOFT, alpha=0.35, linewidth=0,
                        label="independent float networks")
        own = rows[(rows["family"] == family) & (rows["points"] == points)]
        for bits, part in own.groupby("bits", sort=False):
            part, color = part.set_index("depth").reindex(list(depths)), bit_color(bits)
            spread = np.array([part["value"] - part["low"], part["high"] - part["value"]]).clip(min=0)
            ax.errorbar(x, part["value"], yerr=spread, color=color, marker=bit_marker(bits), markersize=4.5,
                        linewidth=1.4, elinewidth=1, label=bit_label(bits))  # fmt: skip
            ax.plot(x, part["null"], color=color, linestyle=":", linewidth=1.1)
        ax.axhline(0, color=INK, linewidth=0.7)
        if line == 0:
            ax.set_title(family)
        if column == 0:
            ax.set_ylabel(f"{points} images")
    fig.supylabel(ylabel, fontsize=9)
    axes[0, 0].set_ylim(-0.12, 1.04)
    for ax in axes[-1]:
        ax.set_xticks(x, list(depths.values()), rotation=35, ha="right", rotation_mode="anchor")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    handles.append(plt.Line2D([], [], color=SOFT, linestyle=":"))
    _legend(fig, handles, [*labels, "chance: another image of the class"])
    return titled(fig, title)


def place_pictures(
    maps: Mapping[str, Mapping[int, np.ndarray]], *, relative: Sequence[str] = (), title: str = ""
) -> Figure:
    """Maps over places: what is shown down, the width of the attacked network across.

    Args:
        maps: row's label → width → (side, side), shares in [0, 1]; missing widths stay empty.
        relative: rows that have a colour scale of their own, in multiples of their mean.

    Raises:
        InputError: no maps.
    """
    if not maps:
        raise InputError("there are no maps to draw.")
    widths = list(dict.fromkeys(bits for row in maps.values() for bits in row))
    top = max(float(np.max(picture)) for name, row in maps.items() if name not in relative for picture in row.values())
    size = (1.5 + 1.25 * len(widths), 0.5 + 1.22 * len(maps))
    fig, axes = plt.subplots(len(maps), len(widths), figsize=size, squeeze=False)
    for line, (name, row) in enumerate(maps.items()):
        for column, bits in enumerate(widths):
            ax = axes[line, column]
            ax.set_xticks([])
            ax.set_yticks([])
            ax.grid(False)
            if line == 0:
                ax.set_title(bit_label(bits))
            if column == 0:
                ax.set_ylabel(name, fontsize=8)
            if bits not in row:
                ax.set_frame_on(False)
                continue
            picture, own = np.asarray(row[bits], dtype=float), name in relative
            if own:
                shade = ax.imshow(picture / picture.mean(), vmin=0.5, vmax=1.5, cmap="cividis")
                ax.set_xlabel(f"most {picture.max() / picture.mean():.1f} ×", fontsize=7, labelpad=2)
            else:
                image = ax.imshow(picture, vmin=0, vmax=top, cmap=RATE_MAP)
                ax.set_xlabel(f"mean {100 * picture.mean():.0f} %", fontsize=7, labelpad=2)
    plain = [line for line, name in enumerate(maps) if name not in relative]
    rate_bar(fig, image, axes[plain], pad=0.02, aspect=24)
    if relative:
        others = [line for line in range(len(maps)) if line not in plain]
        bar = fig.colorbar(shade, ax=axes[others], pad=0.02, aspect=7, extend="both",
                           format=lambda value, _: f"{value:g} ×")  # fmt: skip
        bar.set_label("of the mean")
        bar.outline.set_visible(False)
    return titled(fig, title)


def knob_curves(frame: pd.DataFrame, labels: Mapping[str, str], *, title: str = "") -> Figure:
    """Success while one property of the patch is turned: a panel per knob, a line per width.

    Args:
        frame: rows of `qpatch.measure.visibility_rows`; the stronger of noise and grey is drawn as a dotted line.
        labels: knob → label of its axis; the panels keep this order.

    Raises:
        InputError: no rows.
    """
    _some(frame)
    fig, axes = plt.subplots(1, len(labels), figsize=(1.2 + 2.2 * len(labels), 3.0), squeeze=False, sharey=True)
    for ax, (knob, label) in zip(axes.flat, labels.items()):
        own = frame[frame["knob"] == knob]
        for bits, rows in own.groupby("target_bits", sort=False):
            made, others = rows[rows["pattern"] == "patch"].sort_values("amount"), rows[rows["pattern"] != "patch"]
            spread = np.array([made["asr"] - made["ci_low"], made["ci_high"] - made["asr"]]).clip(min=0)
            ax.errorbar(made["amount"], made["asr"], yerr=spread, color=bit_color(bits), marker=bit_marker(bits),
                        markersize=5, linewidth=1.4, elinewidth=1, capsize=2, label=bit_label(bits))  # fmt: skip
            ax.plot(others.groupby("amount")["asr"].max(), color=bit_color(bits), linestyle=":", linewidth=1.2)
        ticks = sorted(own["amount"].unique())
        ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        ax.set_xlabel(label)
        ax.set_title(knob)
    _rates(axes[0, 0])
    handles, names = axes[0, 0].get_legend_handles_labels()
    handles.append(plt.Line2D([], [], color=SOFT, linestyle=":"))
    _legend(fig, handles, [*names, "chance: noise or grey, shown alike"])
    return titled(fig, title)


def visibility_curves(frame: pd.DataFrame, x: str, *, xlabel: str, title: str = "") -> Figure:
    """Success against how visible the patch is, whatever made it so: a panel per width, a line per knob.

    Args:
        frame: as for `knob_curves`; noise and grey squares are small grey marks.
        x: column with the visibility, drawn on a logarithmic axis.

    Raises:
        InputError: no rows.
    """
    _some(frame)
    widths = list(frame["target_bits"].unique())
    fig, axes = plt.subplots(1, len(widths), figsize=(1.2 + 2.2 * len(widths), 3.0), squeeze=False, sharey=True)
    for ax, bits in zip(axes.flat, widths):
        own = frame[frame["target_bits"] == bits]
        for pattern, marker in (("noise", "x"), ("grey", "+")):
            rows = own[own["pattern"] == pattern]
            ax.plot(rows[x], rows["asr"], linestyle="none", marker=marker, markersize=4.5, color=SOFT,
                    label=f"chance: {pattern}")
        for number, (knob, rows) in enumerate(own[own["pattern"] == "patch"].groupby("knob", sort=False)):
            rows = rows.sort_values(x)
            spread = np.array([rows["asr"] - rows["ci_low"], rows["ci_high"] - rows["asr"]]).clip(min=0)
            ax.errorbar(rows[x], rows["asr"], yerr=spread, color=SERIES[number], marker=_MARKERS[number],
                        markersize=4.5, linewidth=1.3, elinewidth=0.9, label=knob)  # fmt: skip
        ax.set_xscale("log")
        ax.set_xticks([0.2, 0.5, 1, 2, 5], ["0.2", "0.5", "1", "2", "5"])
        ax.minorticks_off()
        ax.set_xlabel(xlabel)
        ax.set_title(bit_label(bits))
    _rates(axes[0, 0])
    _legend(fig, *axes[0, 0].get_legend_handles_labels())
    return titled(fig, title)


def explanations(
    frame: pd.DataFrame, outcomes: Mapping[str, str], *, threshold: float | None = None, title: str = ""
) -> Figure:
    """Rank correlations of many measurements with transfer, each with its interval and its chance level as a grey bar.

    Args:
        frame: rows of `qpatch.measure.explain`; question heads a block of lines, attack decides the colour.
        outcomes: outcome → title of its panel; the panels keep this order.
        threshold: the bound of the claim, a dashed line in every panel but the last.

    Raises:
        InputError: no rows.
    """
    _some(frame)
    attacks, places, ticks, y = list(frame["attack"].unique()), {}, [], 0.0
    for question, block in frame.groupby("question", sort=False):
        ticks.append((y, question, "bold"))
        for name in block["measurement"].unique():
            y += 1
            places[name] = y
            ticks.append((y, name, "normal"))
        y += 1.3
    size = (2.4 + 2.35 * len(outcomes), 1.1 + 0.3 * y)
    fig, axes = plt.subplots(1, len(outcomes), figsize=size, squeeze=False, sharey=True)
    for (column, ax), (outcome, heading) in zip(enumerate(axes.flat), outcomes.items()):
        for number, attack in enumerate(attacks):
            rows = frame[(frame["outcome"] == outcome) & (frame["attack"] == attack)].dropna(subset=["value"])
            height = np.array([places[name] for name in rows["measurement"]]) + 0.24 * (number - (len(attacks) - 1) / 2)
            ax.barh(height, rows["chance_high"] - rows["chance_low"], left=rows["chance_low"], height=0.2, color=SOFT,
                    alpha=0.28)
            spread = np.array([rows["value"] - rows["low"], rows["high"] - rows["value"]]).clip(min=0)
            ax.errorbar(rows["value"], height, xerr=spread, color=SERIES[number], marker=_MARKERS[number], markersize=4,
                        linestyle="none", elinewidth=1.2, label=attack)  # fmt: skip
        ax.axvline(0, color=INK, linewidth=0.7, zorder=0)
        if threshold is not None and column < len(outcomes) - 1:
            ax.axvline(threshold, color=INK, linewidth=1, linestyle=_DASHED, zorder=1.5)
        ax.set_xlim(-1.03, 1.03)
        ax.set_xticks([-1, -0.5, 0, 0.5, 1])
        ax.set_title(heading)
        ax.set_xlabel("rank correlation")
        ax.grid(axis="y", visible=False)
    axes[0, 0].set_yticks([place for place, *_ in ticks], [text for _, text, _ in ticks])
    for tick, (*_, weight) in zip(axes[0, 0].get_yticklabels(), ticks):
        tick.set_fontweight(weight)
    axes[0, 0].set_ylim(y - 0.6, -0.8)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    handles.append(plt.Rectangle((0, 0), 1, 1, color=SOFT, alpha=0.28, linewidth=0))
    labels.append("chance: networks with exchanged names")
    if threshold is not None:
        handles.append(plt.Line2D([], [], color=INK, linewidth=1, linestyle=_DASHED))
        labels.append("bound of the claim")
    _legend(fig, handles, labels)
    return titled(fig, title)


def pair_clouds(
    frame: pd.DataFrame, x: str, y: str, *, panel: str, group: str, xlabel: str, ylabel: str, title: str = ""
) -> Figure:
    """Every pair of networks as a point: a panel per kind of patch, colour and marker per family.

    Args:
        frame: one row per pair, with the columns `x`, `y`, `panel` and `group`.

    Raises:
        InputError: no rows.
    """
    _some(frame)
    panels = list(frame[panel].unique())
    size = (1.2 + 2.8 * len(panels), 3.2)
    fig, axes = plt.subplots(1, len(panels), figsize=size, squeeze=False, sharex=True, sharey=True)
    for ax, name in zip(axes.flat, panels):
        for number, (label, rows) in enumerate(frame[frame[panel] == name].groupby(group, sort=False)):
            ax.plot(rows[x], rows[y], linestyle="none", marker=_MARKERS[number], markersize=4.5, color=SERIES[number],
                    alpha=0.75, label=label)  # fmt: skip
        ax.axhline(0, color=INK, linewidth=0.7)
        ax.set_title(name)
        ax.set_xlabel(xlabel)
    axes[0, 0].set_ylabel(ylabel)
    axes[0, 0].yaxis.set_major_formatter(percent_tick)
    _legend(fig, *axes[0, 0].get_legend_handles_labels())
    return titled(fig, title)


def _some(frame: pd.DataFrame) -> None:
    if frame.empty:
        raise InputError("there are no rows to draw.")


def _rates(ax) -> None:
    ax.set_ylabel("attack success")
    ax.set_ylim(-0.02, 1.02)
    ax.yaxis.set_major_formatter(percent_tick)


def _legend(fig: Figure, handles: list, labels: list[str]) -> None:
    fig.legend(handles, labels, ncols=len(labels), loc="outside lower left", fontsize=7.5, columnspacing=1.2,
               handletextpad=0.5)

