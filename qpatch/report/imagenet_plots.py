"""The tables and pictures of notebook 36: folds put together, and who fools whom across widths and networks."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from qpatch.errors import InputError
from qpatch.report.pool import pool_table
from qpatch.report.style import INK, RATE_MAP, SOFT, bare, bit_label, rate_bar, titled

USABLE = 0.5
"""A network that is right less often than this has too little left that a patch could take away."""
KEYS = ["attack", "scope", "source", "source_bits", "target", "policy", "target_bits"]
_FLOORS = ["asr_noise", "asr_grey", "asr_photo"]


def pooled(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of `zoo.imagenet_rows.success_rows` with their folds put together.

    Every fold has a patch and pictures of its own; the interval is that of `qpatch.report.pool` and covers both.

    Returns:
        one row per attack, scope, source and target: value, low, high, n, seeds, control (the strongest),
        clean_accuracy, error_rate, usable (is the target right at least half of the time?).
    """
    rows = rows.assign(control=rows[_FLOORS].max(axis=1))
    means = rows.groupby(KEYS)[["control", "clean_accuracy", "error_rate"]].mean().reset_index()
    order = rows[KEYS].drop_duplicates()  # the study's own, where pooling sorts by name
    table = order.merge(pool_table(rows.dropna(subset=["asr"]), KEYS), on=KEYS).merge(means, on=KEYS)
    return table.assign(usable=table["clean_accuracy"] >= USABLE)


def across(table: pd.DataFrame, panel: str, *, title: str = "") -> Figure:
    """Success as heat maps, one above the other: where the patch was made down, what it is shown to across.

    Lines part the networks. Cells of a target that is not usable are grey.

    Args:
        table: rows of `pooled`, one per `panel`, source and target.
        panel: the column that splits the maps.

    Raises:
        InputError: no rows.
    """
    if table.empty:
        raise InputError("there are no rows to draw.")
    panels = list(table[panel].drop_duplicates())
    rows, columns = (_order(table, end) for end in ("source", "target"))
    size = (1.9 + 0.56 * len(columns), 0.9 + (0.75 + 0.42 * len(rows)) * len(panels))
    fig, axes = plt.subplots(len(panels), 1, figsize=size, squeeze=False, sharex=True)
    for ax, name in zip(axes[:, 0], panels):
        image = _map(ax, table[table[panel] == name], rows, columns)
        ax.set_title(str(name))
        ax.set_ylabel("patch made on")
    last = axes[-1, 0]
    last.set_xticks(range(len(columns)), [bit_label(bits) for _, bits in columns])
    for network in dict.fromkeys(network for network, _ in columns):
        middle = np.mean([x for x, column in enumerate(columns) if column[0] == network])
        place = {"xy": (middle, 0), "xycoords": ("data", "axes fraction"), "xytext": (0, -18)}
        last.annotate(network, **place, textcoords="offset points", ha="center", va="top", fontsize=8)
    last.set_xlabel("patch shown to (grey: right less than half of the time without any patch)", labelpad=20)
    rate_bar(fig, image, axes, aspect=24)
    return titled(fig, title)


def _order(table: pd.DataFrame, end: str) -> list[tuple[str, int]]:
    """(network, bits) in the table's order of networks, from high to low width."""
    networks = list(table[end].drop_duplicates())
    pairs = set(zip(table[end], table[f"{end}_bits"]))
    return sorted(pairs, key=lambda pair: (networks.index(pair[0]), -pair[1]))


def _map(ax, table: pd.DataFrame, rows: list[tuple[str, int]], columns: list[tuple[str, int]]):
    grid = np.full((len(rows), len(columns)), np.nan)
    cells = [(rows.index((cell.source, cell.source_bits)), columns.index((cell.target, cell.target_bits)), cell)
             for cell in table.itertuples()]  # fmt: skip
    for y, x, cell in cells:
        grid[y, x] = cell.value if cell.usable else np.nan
    colors = plt.get_cmap(RATE_MAP).with_extremes(bad="#d9d9de")
    image = ax.imshow(grid, vmin=0, vmax=1, cmap=colors, aspect="auto")
    for y, x, cell in cells:
        color = "white" if cell.usable and cell.value > 0.45 else INK if cell.usable else SOFT
        text = {"ha": "center", "va": "center", "color": color}
        ax.text(x, y - 0.12, f"{100 * cell.value:.0f}", fontweight="bold", fontsize=8, **text)
        ax.text(x, y + 0.26, f"{100 * cell.low:.0f}–{100 * cell.high:.0f}", fontsize=6, **text)
    for place, ends in ((ax.axvline, columns), (ax.axhline, rows)):
        for number in range(1, len(ends)):
            if ends[number][0] != ends[number - 1][0]:
                place(number - 0.5, color="white", linewidth=4)
    ax.set_yticks(range(len(rows)), [f"{network}, {bit_label(bits)}" for network, bits in rows])
    bare(ax)
    return image
