"""The picture types of the notebooks: transfer heat maps, interval plots with the paper's value, image galleries."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from torch import Tensor

from qpatch.checks import check_images
from qpatch.errors import InputError
from qpatch.report.pool import pool_table
from qpatch.report.style import (
    INK, RATE_MAP, SERIES, SOFT, bare, bit_color, bit_label, bit_marker, percent_tick, rate_bar, titled,
)  # fmt: skip


def transfer_heatmaps(frame: pd.DataFrame, panel: str, *, column: str = "asr",
                      interval: tuple[str, str] | None = ("ci_low", "ci_high"), title: str = "",
                      columns: int = 4) -> Figure:
    """One heat map per value of `panel`: source width down, target width across, rate and interval in each cell.

    Args:
        frame: a transfer matrix with source_bits, target_bits, seed, n, and one experiment per panel; seeds are pooled.
        panel: the column that splits the panels, for instance "training"; panels keep the table's order.
        column: the share in [0, 1] that is shown.
        interval: the columns of its limits; None for Wilson's.
        columns: panels per row.

    Raises:
        InputError: no rows, or rows of one seed that differ in something else than panel and widths.
    """
    if frame.empty:
        raise InputError("there are no rows to draw.")
    cells = pool_table(frame, [panel, "source_bits", "target_bits"], column, interval)
    names = list(frame[panel].drop_duplicates())
    sources, targets = (sorted(cells[c].unique(), reverse=True) for c in ("source_bits", "target_bits"))
    columns = min(columns, len(names))
    lines = ceil(len(names) / columns)
    size = (0.72 * len(targets) * columns + 1.6, (0.62 * len(sources) + 0.75) * lines + 0.35)
    fig, axes = plt.subplots(lines, columns, figsize=size, squeeze=False, sharex=True, sharey=True)
    for ax, name in zip(axes.flat, names):
        image = _heatmap(ax, cells[cells[panel] == name], sources, targets)
        ax.set_title(str(name))
    for ax in axes.flat[len(names):]:
        ax.set_axis_off()
    for ax in axes[:, 0]:
        ax.set_ylabel("patch made at")
    for ax in axes[-1, :]:
        ax.set_xlabel("attacked at")
    rate_bar(fig, image, axes)
    return titled(fig, title)


def _heatmap(ax: Axes, cells: pd.DataFrame, sources: Sequence[int], targets: Sequence[int]):
    grid = cells.pivot(index="source_bits", columns="target_bits", values="value")
    grid = grid.reindex(index=sources, columns=targets)
    image = ax.imshow(grid.to_numpy(float), vmin=0, vmax=1, cmap=RATE_MAP, aspect="auto")
    for cell in cells.itertuples():
        x, y = targets.index(cell.target_bits), sources.index(cell.source_bits)
        red, green, blue, _ = image.cmap(image.norm(cell.value))
        color = "white" if 0.30 * red + 0.59 * green + 0.11 * blue < 0.55 else INK
        ax.text(x, y - 0.1, f"{100 * cell.value:.0f}", ha="center", va="center", color=color, fontweight="bold")
        ax.text(x, y + 0.27, f"{100 * cell.low:.0f}–{100 * cell.high:.0f}", ha="center", va="center", color=color,
                fontsize=6.5)
    ax.set_xticks(range(len(targets)), [bit_label(b) for b in targets])
    ax.set_yticks(range(len(sources)), [bit_label(b) for b in sources])
    bare(ax)
    return image


def forest(frame: pd.DataFrame, label: str, *, group: str | None = None, published: str | None = None,
           control: str | None = None, threshold: float | None = None, xlabel: str = "attack success",
           share: bool = True, title: str = "") -> Figure:
    """Values with their 95 % intervals, one per line; the paper's value as a hollow diamond, the control as a cross.

    Args:
        frame: one row per line with value, low, high, for instance from `pool_table` or `claims.conditions`.
        label: the column with the text of a line.
        group: a column that heads blocks of lines; a group whose values are bit-widths also gives their colour.
        published, control: columns with the paper's value and the control's; empty cells draw nothing.
        threshold: draws a dashed line, for instance at the bound that a claim names.
        share: the values are shares in [0, 1] and shown as percentages.

    Raises:
        InputError: no rows.
    """
    frame = frame.dropna(subset=["value"])
    if frame.empty:
        raise InputError("there are no rows to draw.")
    fig, ax = plt.subplots(figsize=(6.6, 1.1 + 0.27 * len(frame) + (0.33 * frame[group].nunique() if group else 0)))
    bits = group is not None and "bits" in group
    ticks, y = [], 0.0
    for name, rows in frame.groupby(group, sort=False) if group else [(None, frame)]:
        if group:
            heading = bit_label(name) if bits else str(name)
            ticks.append((y, heading, "bold"))
            y += 1
        for row in rows.itertuples():
            color = bit_color(name) if bits else SERIES[0]
            ax.plot([row.low, row.high], [y, y], color=color, linewidth=1.6, solid_capstyle="butt")
            ax.plot(row.value, y, marker=bit_marker(name) if bits else "o", color=color, markersize=5.5)
            _mark(ax, getattr(row, published) if published else None, y, "D", INK)
            _mark(ax, getattr(row, control) if control else None, y, "x", SOFT)
            ticks.append((y, str(getattr(row, label)), "normal"))
            y += 1
        y += 0.35
    if threshold is not None:
        ax.axvline(threshold, color=INK, linewidth=1, linestyle=(0, (4, 3)), zorder=0)
    ax.set_yticks([position for position, *_ in ticks], [text for _, text, _ in ticks])
    for tick, (*_, weight) in zip(ax.get_yticklabels(), ticks):
        tick.set_fontweight(weight)
    ax.set_ylim(y - 0.3, -0.8)
    ax.set_xlabel(xlabel)
    ax.grid(axis="y", visible=False)
    if share:
        ax.set_xlim(-0.02, 1.02)
        ax.xaxis.set_major_formatter(percent_tick)
    _legend(fig, published, control, threshold, INK if bits else SERIES[0])
    return titled(fig, title)


def _mark(ax: Axes, value: float | None, y: float, marker: str, color: str) -> None:
    if value is not None and not np.isnan(value):
        ax.plot(value, y, marker=marker, markerfacecolor="none", markeredgecolor=color, markersize=6, linestyle="none")


def _legend(fig: Figure, published: str | None, control: str | None, threshold: float | None, color: str) -> None:
    handles = [plt.Line2D([], [], color=color, marker="o", markersize=5.5, label="measured, 95 % interval")]
    if published:
        handles.append(plt.Line2D([], [], color=INK, marker="D", markerfacecolor="none", linestyle="none",
                                  label="paper"))
    if control:
        handles.append(plt.Line2D([], [], color=SOFT, marker="x", linestyle="none", label="strongest control"))
    if threshold is not None:
        handles.append(plt.Line2D([], [], color=INK, linewidth=1, linestyle=(0, (4, 3)), label="bound of the claim"))
    fig.legend(handles=handles, ncols=len(handles), loc="outside lower left", fontsize=7.5, handletextpad=0.4,
               columnspacing=1.2)


def show_images(images: Tensor, titles: Sequence[str] | None = None, *, columns: int = 6, size: float = 1.3,
                wrong: Sequence[bool] | None = None, title: str = "") -> Figure:
    """Images or patches side by side, each pixel a sharp square.

    Args:
        images: float32 N×C×H×W in [0, 1], C = 1 or 3.
        titles: a line of text above each image.
        wrong: draws a frame around the images for which it is true, and a sign before their titles.
        size: width of one image in inches.

    Raises:
        InputError: malformed images, or not one title or mark per image.
    """
    check_images(images)
    for name, given in (("titles", titles), ("marks", wrong)):
        if given is not None and len(given) != len(images):
            raise InputError(f"{len(images)} images need as many {name}, got {len(given)}.")
    columns = min(columns, len(images))
    lines = ceil(len(images) / columns)
    height = size * images.shape[2] / images.shape[3] + (0.22 if titles is not None else 0.05)
    figsize = (size * columns, height * lines + (0.3 if title else 0))
    fig, axes = plt.subplots(lines, columns, figsize=figsize, squeeze=False)
    for ax in axes.flat:
        ax.set_axis_off()
    for index, (ax, image) in enumerate(zip(axes.flat, images.detach().cpu())):
        pixels = image.permute(1, 2, 0).squeeze(-1).numpy()
        ax.imshow(pixels, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        fooled = wrong is not None and bool(wrong[index])
        if titles is not None:
            ax.set_title(f"{'✘ ' if fooled else ''}{titles[index]}", fontsize=7.5, fontweight="normal", pad=3,
                         color=SERIES[1] if fooled else INK)
        if fooled:
            ax.add_patch(plt.Rectangle((-0.5, -0.5), images.shape[3], images.shape[2], fill=False, linewidth=2.5,
                                       edgecolor=SERIES[1]))
    return titled(fig, title)


def verdict_bars(tally: pd.DataFrame, colors: dict[str, str], signs: dict[str, str], *, title: str = "") -> Figure:
    """How many claims of each paper (rows of `tally`) came to which verdict (columns), as one stacked bar per paper."""
    fig, ax = plt.subplots(figsize=(6.6, 0.75 + 0.42 * len(tally)))
    for y, (_, counts) in enumerate(tally.iterrows()):
        left = 0
        for verdict, number in counts.items():
            ax.barh(y, number, left=left, color=colors[verdict], edgecolor="white", linewidth=1.5, height=0.72)
            if number:
                between, size = (" ", 8) if number > 1 else ("\n", 6.5)  # a bar of one claim is as wide as one sign
                ax.text(left + number / 2, y, f"{signs[verdict]}{between}{number}", ha="center", va="center", fontsize=size,
                        linespacing=0.95, color="white" if sum(to_rgb(colors[verdict])) < 1.35 else INK)  # fmt: skip
            left += number
    ax.set_yticks(range(len(tally)), list(tally.index))
    ax.invert_yaxis()
    ax.set_xlabel("claims")
    ax.grid(False)
    handles = [plt.Rectangle((0, 0), 1, 1, color=colors[v], label=f"{signs[v]} {v}") for v in tally.columns]
    fig.legend(handles=handles, ncols=len(handles), loc="outside lower left", fontsize=7.5, handlelength=1)
    return titled(fig, title)
