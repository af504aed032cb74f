"""Figures about integer networks: what codes resolve, where a requantization steps, where engines differ."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from qpatch.errors import InputError
from qpatch.report.style import INK, SERIES, SOFT, bit_color, bit_marker, percent_tick, titled

_MARKERS = ("o", "s", "^", "D", "v")


def resolution(frame: pd.DataFrame, *, title: str = "") -> Figure:
    """What the codes of every activation cover, and how finely.

    Args:
        frame: one row per tensor and precision with name, precision ("int8" or "int16"), low, high (the reals of the
            smallest and the largest code), least, most (the reals seen on images) and step (one code).

    Raises:
        InputError: no rows.
    """
    if frame.empty:
        raise InputError("there are no rows to draw.")
    names = list(frame["name"].drop_duplicates())
    fig, (left, right) = plt.subplots(1, 2, figsize=(7.6, 1.1 + 0.24 * len(names)), sharey=True, width_ratios=(3, 2))
    for precision, rows in frame.groupby("precision", sort=False):
        color = bit_color(int(precision.removeprefix("int")))
        y = [names.index(name) for name in rows["name"]]
        shift = -0.18 if precision == "int8" else 0.18
        left.hlines(np.add(y, shift), rows["low"], rows["high"], color=color, linewidth=3, alpha=0.45)
        left.hlines(np.add(y, shift), rows["least"], rows["most"], color=color, linewidth=1.4)
        marker = bit_marker(int(precision.removeprefix("int")))
        right.plot(rows["step"], y, marker=marker, linestyle="none", color=color, label=precision)
    left.axvline(0, color=INK, linewidth=0.8)
    left.set_yticks(range(len(names)), names)
    left.invert_yaxis()
    left.set_xlabel("real value: covered by codes (wide), seen on images (thin)")
    right.set_xscale("log")
    right.set_xlabel("step from code to code, real units")
    fig.legend(*right.get_legend_handles_labels(), ncols=2, loc="outside lower left", fontsize=7.5)
    return titled(fig, title)


def staircase(totals: Sequence[int], lines: dict[str, Sequence[int]], *, title: str = "") -> Figure:
    """Codes against accumulators; every function but the first is marked where it differs from the first.

    Args:
        totals: consecutive accumulators.
        lines: name → code for each accumulator; the first is the integer arithmetic.
    """
    (name, exact), *others = lines.items()
    fig, ax = plt.subplots(figsize=(6.6, 3.0))
    ax.step(totals, exact, where="mid", color=INK, linewidth=1.3, label=name)
    for number, (label, codes) in enumerate(others):
        wrong = np.asarray(codes) != np.asarray(exact)
        points = np.asarray(totals)[wrong], np.asarray(codes)[wrong]
        ax.plot(*points, _MARKERS[number], color=SERIES[number + 1], markersize=6, markerfacecolor="none",
                label=f"{label}: differs at {wrong.sum()} of {len(wrong)}")  # fmt: skip
    ax.set_xlabel("accumulator: sum of products plus bias")
    ax.set_ylabel("code − zero point")
    fig.legend(ncols=len(lines), loc="outside lower left", fontsize=7.5)
    return titled(fig, title)


def differences(frame: pd.DataFrame, *, title: str = "") -> Figure:
    """The share of codes that differ from the reference's, operation by operation, one line per engine.

    Args:
        frame: rows with step, kind, engine and share, see `quant.tflite.compare.layer_differences`.

    Raises:
        InputError: no rows.
    """
    if frame.empty:
        raise InputError("there are no rows to draw.")
    fig, ax = plt.subplots(figsize=(6.8, 3.3))
    for number, (engine, rows) in enumerate(frame.groupby("engine", sort=False)):
        color, size = SERIES[number % len(SERIES)], 9 - 2 * (number % 4)
        ax.plot(rows["step"], rows["share"], marker=_MARKERS[number % len(_MARKERS)], markersize=size, linewidth=1.2,
                color=color, markerfacecolor="none", markeredgewidth=1.4, label=engine)  # fmt: skip
    steps = frame.drop_duplicates("step")
    ax.set_xticks(steps["step"], [kind.replace("_", " ").lower() for kind in steps["kind"]], rotation=60, ha="right")
    ax.yaxis.set_major_formatter(percent_tick)
    ax.set_ylabel("codes that differ")
    ax.axhline(0, color=SOFT, linewidth=0.8, zorder=0)
    fig.legend(ncols=frame["engine"].nunique(), loc="outside lower left", fontsize=7.5)
    return titled(fig, title)
