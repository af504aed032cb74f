"""The pictures of notebook 35: every attack on every defense, and which checks an evaluation has passed."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from qpatch.errors import InputError
from qpatch.report.patch_plots import width_label
from qpatch.report.style import GRID, INK, RATE_MAP, SERIES, bare, rate_bar, titled

OUTCOMES = {"pass": (SERIES[4], ""), "undecided": (SERIES[5], "?"), "fail": (SERIES[1], "✗")}
_SLANTED = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"}


def attack_map(frame: pd.DataFrame, *, title: str = "") -> Figure:
    """Success of every attack (down) on every defense (across), a panel per width; the strongest one is framed.

    Args:
        frame: rows of `zoo.adaptive_rows.asr_rows`, one per attack, defense and target_bits, with their scope.

    Raises:
        InputError: no rows.
    """
    if frame.empty:
        raise InputError("there are no rows to draw.")
    last = frame.sort_values("scope", key=lambda scope: scope == "worst case", kind="stable")  # the union comes last
    attacks, defenses = list(last["attack"].drop_duplicates()), list(frame["defense"].drop_duplicates())
    widths = list(frame["target_bits"].drop_duplicates())
    size = (max(5.6, 3.0 + 0.36 * len(defenses)), 1.5 + (0.3 + 0.19 * len(attacks)) * len(widths))
    fig, axes = plt.subplots(len(widths), 1, figsize=size, squeeze=False, sharex=True)
    for ax, width in zip(axes.flat, widths):
        part = frame[frame["target_bits"] == width].set_index(["attack", "defense"])
        table = part["asr"].unstack().reindex(attacks, columns=defenses)
        image = ax.imshow(table.to_numpy(float), vmin=0, vmax=1, cmap=RATE_MAP, aspect="auto")
        for y, x in np.ndindex(table.shape):
            rate = table.iat[y, x]
            if not np.isnan(rate):
                color = "white" if rate > 0.45 else INK
                ax.text(x, y, f"{100 * rate:.0f}", ha="center", va="center", fontsize=6.5, color=color)
            if (attacks[y], defenses[x]) in part.index and part.at[(attacks[y], defenses[x]), "strongest"]:
                ax.add_patch(Rectangle((x - 0.46, y - 0.46), 0.92, 0.92, fill=False, edgecolor=SERIES[0], linewidth=2))
        ax.set_xticks(range(len(defenses)), defenses, **_SLANTED)
        ax.set_yticks(range(len(attacks)), attacks)
        ax.set_title(width_label(width))
        bare(ax)
    rate_bar(fig, image, axes, aspect=22)
    return titled(fig, title)


def outcome_map(frame: pd.DataFrame, *, title: str = "") -> Figure:
    """Checks (down) of every defense (across), a panel per width: passed, undecided or failed, by colour and sign.

    Args:
        frame: rows of `zoo.adaptive_rows.checks_rows`, one per check, defense and target_bits.

    Raises:
        InputError: no rows.
    """
    if frame.empty:
        raise InputError("there are no rows to draw.")
    checks, defenses = list(frame["check"].drop_duplicates()), list(frame["defense"].drop_duplicates())
    widths, codes = list(frame["target_bits"].drop_duplicates()), {name: number for number, name in enumerate(OUTCOMES)}
    size = (max(5.6, 3.0 + 0.3 * len(defenses)), 1.8 + (0.3 + 0.2 * len(checks)) * len(widths))
    fig, axes = plt.subplots(len(widths), 1, figsize=size, squeeze=False, sharex=True)
    for ax, width in zip(axes.flat, widths):
        part = frame[frame["target_bits"] == width].set_index(["check", "defense"])["outcome"].unstack()
        table = part.reindex(checks, columns=defenses)
        tiles = ListedColormap([color for color, _ in OUTCOMES.values()])
        numbers = table.map(lambda name: codes.get(name, np.nan)).to_numpy(float)
        ax.imshow(numbers, cmap=tiles, vmin=0, vmax=2, aspect="auto")
        for y, x in np.ndindex(table.shape):
            ax.text(x, y, OUTCOMES.get(table.iat[y, x], ("", "–"))[1], ha="center", va="center", fontsize=8, color=INK)
        ax.set_xticks(range(len(defenses)), defenses, **_SLANTED)
        ax.set_yticks(range(len(checks)), checks)
        ax.set_title(width_label(width))
        bare(ax)
        for axis, count in ((ax.xaxis, len(defenses)), (ax.yaxis, len(checks))):
            axis.set_ticks(np.arange(count + 1) - 0.5, minor=True)
        ax.grid(True, which="minor", color=GRID, linewidth=1.5)
    handles = [Rectangle((0, 0), 1, 1, color=color) for color, _ in OUTCOMES.values()]
    names = [f"{name} {sign}".strip() for name, (_, sign) in OUTCOMES.items()]
    fig.legend(handles, names, ncols=3, loc="outside lower left", fontsize=7.5)
    return titled(fig, title)
