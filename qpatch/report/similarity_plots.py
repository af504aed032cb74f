"""The pictures of notebook 30: similarities beside their chance levels and beside the paper's values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from itertools import product

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from torch import Tensor

from qpatch.errors import InputError
from qpatch.report.style import INK, SERIES, SOFT, titled

NAMES = {"cosine": "cosine", "edge_iou": "Edge IoU", "hog_cosine": "HOG cosine"}
_CHANCE = {"different image": ("another image", SERIES[1], "s"), "shuffled": ("pixels shuffled", SERIES[2], "^"),
           "independent net": ("independent network", SERIES[3], "D")}  # fmt: skip
_PAPER = {"color": INK, "marker": "*", "markersize": 8, "markerfacecolor": "white", "linestyle": "none"}


def pair_label(pair: str) -> str:
    """"float·5" for "32-5"."""
    return pair.replace("32", "float").replace("-", "·")


def gallery(columns: Mapping[str, Mapping[str, Tensor]], notes: Mapping[str, str], *, title: str = "") -> Figure:
    """Small maps: what is shown down, whose it is across, a note below each column.

    Args:
        columns: heading → row's label → (H, W) map, or (H, W, 3) picture.
        notes: heading → text under the column.

    Raises:
        InputError: no columns.
    """
    if not columns:
        raise InputError("there are no maps to draw.")
    lines = list(next(iter(columns.values())))
    size = (0.6 + 1.15 * len(columns), 1.0 + 1.15 * len(lines))
    fig, axes = plt.subplots(len(lines), len(columns), figsize=size, squeeze=False)
    for column, (heading, shown) in enumerate(columns.items()):
        for line, name in enumerate(lines):
            ax = axes[line, column]
            ax.imshow(np.asarray(shown[name]), cmap="gray")
            ax.set_xticks([])
            ax.set_yticks([])
            ax.grid(False)
            if column == 0:
                ax.set_ylabel(name, fontsize=8)
        axes[0, column].set_title(heading, fontsize=8)
        axes[-1, column].set_xlabel(notes.get(heading, ""), fontsize=7)
    return titled(fig, title)


def against_chance(
    frame: pd.DataFrame, row: str, column: str, *, paper: pd.DataFrame | None = None,
    rows: Mapping[str, str] | None = None, columns: Mapping[str, str] | None = None,
    limits: Mapping[str, tuple[float, float]] | None = None, title: str = "",
) -> Figure:  # fmt: skip
    """Each pair of widths as a mark with its interval, its chance levels around it: a grid of panels.

    Args:
        frame: rows of `qpatch.measure.similarity_rows`, one per panel, pair and comparison.
        row, column: columns that split the panels.
        paper: the same two columns as far as it knows them, pair and value.
        rows, columns: value → heading; they choose the panels and their order.
        limits: value of `column` → range of its axis, where it is not 0 to 1.

    Raises:
        InputError: no rows.
    """
    if frame.empty:
        raise InputError("there are no rows to draw.")
    rows = rows or {value: str(value) for value in frame[row].unique()}
    columns = columns or {value: str(value) for value in frame[column].unique()}
    pairs = list(frame["pair"].unique())
    x = dict(zip(pairs, range(len(pairs))))
    size = (0.9 + (0.5 + 0.25 * len(pairs)) * len(columns), 0.9 + 1.55 * len(rows))
    shared = "col" if limits else True
    fig, axes = plt.subplots(len(rows), len(columns), figsize=size, squeeze=False, sharex=True, sharey=shared)
    for (line, (r, heading)), (place, (c, name)) in product(enumerate(rows.items()), enumerate(columns.items())):
        ax, own = axes[line, place], frame[(frame[row] == r) & (frame[column] == c)]
        for kind, (label, color, marker) in _CHANCE.items():
            level = own[own["comparison"] == kind]
            ax.plot(level["pair"].map(x), level["value"], linestyle="none", marker=marker, markersize=4, color=color,
                    markerfacecolor="white", label=f"chance: {label}")  # fmt: skip
        same = own[own["comparison"] == "same image"]
        spread = np.array([same["value"] - same["low"], same["high"] - same["value"]]).clip(min=0)
        ax.errorbar(same["pair"].map(x), same["value"], yerr=spread, color=SERIES[0], marker="o", markersize=4.5,
                    linestyle="none", elinewidth=1.2, label="same image")  # fmt: skip
        if paper is not None:
            known = paper
            for split, value in ((row, r), (column, c)):
                known = known[known[split] == value] if split in known else known
            ax.plot(known["pair"].map(x), known["value"], **_PAPER, label="the paper")
        ax.set_title(name if line == 0 else "")
        if place == 0:
            ax.set_ylabel(heading)
    for ax, name in zip(axes[0], columns):
        ax.set_ylim(*(limits or {}).get(name, (-0.04, 1.04)))
    for ax in axes[-1]:
        names = [pair_label(pair) for pair in pairs]
        ax.set_xticks(range(len(pairs)), names, rotation=60, ha="right", rotation_mode="anchor")
    _legend(fig, axes[0, 0])
    return titled(fig, title)


def chance_by_cell(
    frame: pd.DataFrame, panels: Mapping[tuple[int, str], str], *, noise: pd.DataFrame, expected: Mapping[int, float],
    paper: tuple[float, float], title: str = "",
) -> Figure:  # fmt: skip
    """HOG cosine against the size of the cell: the same image on its chance levels, and the paper's range as a band.

    Args:
        frame: rows of `pooled_rows` with cell, block, norm, comparison, value, low, high.
        panels: (block, norm) → heading.
        noise: cell, block, norm, value of white noise.
        expected: cell → the formula's value, drawn in the panel of single cells under L2.
        paper: lowest and highest published value.
    """
    cells = sorted(frame["cell"].unique())
    fig, axes = plt.subplots(1, len(panels), figsize=(1.0 + 2.5 * len(panels), 3.1), squeeze=False, sharey=True)
    for ax, ((block, norm), heading) in zip(axes.flat, panels.items()):
        own, white = ((rows[(rows["block"] == block) & (rows["norm"] == norm)]) for rows in (frame, noise))
        ax.axhspan(*paper, color=SOFT, alpha=0.35, linewidth=0, label="the paper's range")
        for kind, (label, color, marker) in _CHANCE.items():
            level = own[own["comparison"] == kind]
            ax.plot(level["cell"], level["value"], marker=marker, markersize=4, color=color, linewidth=1,
                    markerfacecolor="white", label=f"chance: {label}")  # fmt: skip
        same = own[own["comparison"] == "same image"]
        spread = np.array([same["value"] - same["low"], same["high"] - same["value"]]).clip(min=0)
        ax.errorbar(same["cell"], same["value"], yerr=spread, color=SERIES[0], marker="o", markersize=4.5,
                    linewidth=1.4, label="same image")  # fmt: skip
        ax.plot(white["cell"], white["value"], linestyle="none", marker="x", markersize=5, color=INK,
                label="white noise")
        if (block, norm) == (1, "L2"):
            ax.plot(list(expected), list(expected.values()), color=INK, linestyle=":", linewidth=1.1, label="formula")
        ax.set_xscale("log", base=2)
        ax.set_xticks(cells, [str(cell) for cell in cells])
        ax.set_xlabel("cell, pixels")
        ax.set_title(heading)
    axes[0, 0].set_ylabel("HOG cosine")
    axes[0, 0].set_ylim(0.2, 1.02)
    _legend(fig, axes[0, 0], columns=4)
    return titled(fig, title)


def tie_sweep(frame: pd.DataFrame, here: Sequence[float], *, title: str = "") -> Figure:
    """Edge IoU against the share of active pixels, for the same and for another image and both thresholds.

    Args:
        frame: rows of `qpatch.measure.sparsity_rows`.
        here: shares of active pixels of the networks at hand, drawn as ticks along the axis.
    """
    fig, ax = plt.subplots(figsize=(4.6, 3.1))
    for (comparison, threshold), part in frame.groupby(["comparison", "threshold"], sort=False):
        color = SERIES[0] if comparison == "same image" else SERIES[1]
        strict = threshold.startswith("above")
        spread = np.array([part["value"] - part["low"], part["high"] - part["value"]]).clip(min=0)
        ax.errorbar(part["active"], part["value"], yerr=spread,
                    color=color, marker="os"[not strict], markersize=4, linewidth=1.3,
                    linestyle="-" if strict else "--", markerfacecolor=color if strict else "white",
                    label=f"{comparison}, {threshold}")  # fmt: skip
    ax.plot(here, np.full(len(here), 0.0), linestyle="none", marker="|", markersize=11, color=INK, label="our layers")
    ax.set_xscale("log")
    ax.set_xticks([0.005, 0.01, 0.05, 0.1, 0.5], ["0.5 %", "1 %", "5 %", "10 %", "50 %"])
    ax.minorticks_off()
    ax.set_xlabel("pixels of a feature map that are not zero")
    ax.set_ylabel("Edge IoU, each channel")
    ax.set_ylim(-0.04, 1.04)
    fig.legend(*ax.get_legend_handles_labels(), ncols=2, loc="outside lower left", fontsize=7.5)
    return titled(fig, title)


def metric_plane(ours: pd.DataFrame, paper: pd.DataFrame, *, hue: str, title: str = "") -> Figure:
    """Edge IoU against HOG cosine of the same features: two measures of one thing keep near one curve.

    Args:
        ours: edge_iou, hog_cosine and `hue`.
        paper: layer, edge_iou, hog_cosine.
    """
    fig, ax = plt.subplots(figsize=(4.6, 3.6))
    for number, (name, part) in enumerate(ours.groupby(hue, sort=False)):
        ax.plot(part["edge_iou"], part["hog_cosine"], linestyle="none", marker="os^D"[number % 4], markersize=3.5,
                alpha=0.6, color=SERIES[number], label=f"ours, {name}")  # fmt: skip
    for layer, part in paper.groupby("layer", sort=False):
        label = "the paper" if layer == paper["layer"].iloc[0] else None
        ax.plot(part["edge_iou"], part["hog_cosine"], **_PAPER, label=label)
        right = part.sort_values(["edge_iou", "hog_cosine"]).iloc[-1]
        beside = (-16, -3) if layer == "L2" else (5, 4)  # L2 and L3 lie on one another
        at = tuple(right[["edge_iou", "hog_cosine"]])
        ax.annotate(layer, at, xytext=beside, textcoords="offset points", fontsize=7.5)
    ax.set_xlabel("Edge IoU of features")
    ax.set_ylabel("HOG cosine of features")
    ax.set_xlim(-0.02, 1.06)
    ax.set_ylim(0.2, 1.02)
    fig.legend(*ax.get_legend_handles_labels(), ncols=2, loc="outside lower left", fontsize=7.5)
    return titled(fig, title)


def _legend(fig: Figure, ax, columns: int = 5) -> None:
    handles, labels = ax.get_legend_handles_labels()
    fig.legend(handles, labels, ncols=columns, loc="outside lower left", fontsize=7.5, columnspacing=1.2,
               handletextpad=0.5)

