"""Pictures of attacks on several precisions of one network: accuracy per attack, and the noise itself, magnified."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib.pyplot as plt
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from qpatch.errors import InputError
from qpatch.report.plots import show_images
from qpatch.report.style import INK, SERIES, SOFT, percent_tick, titled

PRECISION_LOOK = {"float": (SERIES[0], "o"), "int16": (SERIES[2], "^"), "int8": (SERIES[1], "s")}


def precision_panels(frame: pd.DataFrame, panel: str, *, label: str = "attack", value: str = "accuracy",
                     interval: tuple[str, str] = ("acc_low", "acc_high"), control: str | None = None,
                     control_label: str = "same noise, shuffled", published: str | None = None, columns: int = 8,
                     xlabel: str = "accuracy under attack", title: str = "") -> Figure:
    """One panel per value of `panel`, one line per attack, a marker with its interval for float, int16 and int8.

    Args:
        frame: one row per panel, attack and precision, with shares in [0, 1].
        control: column with the value of the control, a small cross beside each marker, and its name in the legend.
        published: column with the paper's value, a hollow diamond; nan draws nothing.
        columns: panels per row.

    Raises:
        InputError: no rows.
    """
    if frame.empty:
        raise InputError("there are no rows to draw.")
    panels, names = list(frame[panel].drop_duplicates()), list(frame[label].drop_duplicates())
    columns = min(columns, len(panels))
    lines = -(-len(panels) // columns)
    size = (3.3 * columns + 1.2, (0.42 * len(names) + 1.0) * lines + 0.3)
    fig, axes = plt.subplots(lines, columns, figsize=size, squeeze=False, sharey=True)
    for ax in axes.flat[len(panels) :]:
        ax.set_axis_off()
    for ax, name in zip(axes.flat, panels):
        part = frame[frame[panel] == name]
        for shift, (precision, (color, marker)) in zip((-0.24, 0.0, 0.24), PRECISION_LOOK.items()):
            for row in part[part["precision"] == precision].to_dict("records"):
                y = names.index(row[label]) + shift
                ax.plot([row[limit] for limit in interval], [y, y], color=color, linewidth=1.4, solid_capstyle="butt")
                ax.plot(row[value], y, marker=marker, color=color, markersize=4.5)
                if control:
                    ax.plot(row[control], y, marker="x", color=SOFT, markersize=4)
                if published and pd.notna(row[published]):
                    ax.plot(row[published], y, marker="D", markerfacecolor="none", markeredgecolor=INK, markersize=6)
        ax.set_title(str(name))
        ax.set_xlabel(xlabel)
        ax.set_xlim(-0.02, 1.02)
        ax.xaxis.set_major_formatter(percent_tick)
        ax.grid(axis="y", visible=False)
        for line in range(1, len(names)):
            ax.axhline(line - 0.5, color="#e4e4ea", linewidth=0.8)
    axes[0, 0].set_yticks(range(len(names)), names)
    axes[0, 0].set_ylim(len(names) - 0.5, -0.5)
    handles = [plt.Line2D([], [], color=color, marker=marker, markersize=5, label=precision)
               for precision, (color, marker) in PRECISION_LOOK.items()]  # fmt: skip
    if control:
        handles.append(plt.Line2D([], [], color=SOFT, marker="x", linestyle="none", label=control_label))
    if published:
        handles.append(plt.Line2D([], [], color=INK, marker="D", markerfacecolor="none", linestyle="none", label="paper"))
    fig.legend(handles=handles, ncols=len(handles), loc="outside lower left", fontsize=7.5, handletextpad=0.4)
    return titled(fig, title)


def magnified(clean: Tensor, adversarial: Mapping[str, Tensor], *, columns: int = 6, title: str = "") -> Figure:
    """One image under several attacks: the attacked image, and below it what was added, stretched to full contrast.

    Args:
        clean: float32 (C, H, W) in [0, 1].
        adversarial: text above each pair of pictures → attacked image of the same shape.
        columns: attacks per row.

    Raises:
        InputError: no attacks.
    """
    if not adversarial:
        raise InputError("there are no attacks to show.")
    names, tiles, titles = list(adversarial), [], []
    for start in range(0, len(names), columns):
        row = names[start : start + columns]
        noise = {name: adversarial[name] - clean for name in row}
        gain = {name: 0.5 / max(float(change.abs().max()), 1e-5) for name, change in noise.items()}
        blank = [torch.ones_like(clean)] * (columns - len(row)) if len(names) > columns else []
        tiles += [adversarial[name] for name in row] + blank
        tiles += [(0.5 + gain[name] * noise[name]).clamp(0, 1) for name in row] + blank
        below = [f"noise × {gain[name]:.3g}" if noise[name].abs().max() > 1e-5 else "no noise" for name in row]
        titles += row + [""] * len(blank) + below + [""] * len(blank)
    return show_images(torch.stack(tiles), titles, columns=min(columns, len(names)), title=title)
