"""Pictures of gradient estimates: scores along one value of an image, and what a difference is worth at which step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from qpatch.errors import InputError
from qpatch.report.style import INK, SERIES, SOFT, percent_tick, titled

_MARKERS = ("o", "s", "^", "D", "v", "P")


def slices(frame: pd.DataFrame, zooms: Sequence[float], marks: Mapping[str, float], *, title: str = "") -> Figure:
    """A change of a score along one value of one image, for several networks: a panel per zoom.

    Args:
        frame: offset (in input steps of int8), score, network; one row per point.
        zooms: half-widths of the panels, in input steps of int8.
        marks: name → distance on both sides at which dotted lines stand, in input steps of int8.

    Raises:
        InputError: no rows.
    """
    if frame.empty:
        raise InputError("there are no rows to draw.")
    fig, axes = plt.subplots(1, len(zooms), figsize=(4.4 * len(zooms), 3.1), squeeze=False)
    for ax, zoom in zip(axes.flat, zooms):
        shown = frame[frame["offset"].abs() <= zoom * 1.0001]
        for number, (network, rows) in enumerate(shown.groupby("network", sort=False)):
            ax.plot(rows["offset"], rows["score"], color=SERIES[number], linewidth=1.5, label=network,
                    drawstyle="default" if number == 0 else "steps-mid")
        for number, (name, distance) in enumerate(marks.items()):
            for side in (-1, 1):
                ax.axvline(side * distance, color=SOFT, linewidth=1, linestyle=(0, (1, 2 + 2 * number)),
                           label=name if side > 0 else None)
        ax.set_xlim(-zoom, zoom)
        ax.set_xlabel("change of one value, in input steps of int8 (1/255)")
    axes[0, 0].set_ylabel("change of the cross-entropy")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    fig.legend(handles, labels, ncols=len(labels), loc="outside lower left", fontsize=7.5, columnspacing=1.2)
    return titled(fig, title)


def step_curves(frame: pd.DataFrame, marks: Mapping[str, float], *, title: str = "") -> Figure:
    """Zeros (above) and sizes (below) of central differences against their step, on logarithmic axes.

    Args:
        frame: rows of `qpatch.measure.step_rows` with a column network.
        marks: name → step in [0, 1] units, drawn as dotted lines with their names.

    Raises:
        InputError: no rows.
    """
    if frame.empty:
        raise InputError("there are no rows to draw.")
    fig, axes = plt.subplots(2, 1, figsize=(5.6, 5.2), sharex=True)
    limits = ("value", "low", "high"), ("ratio", "ratio_low", "ratio_high")
    for number, (network, rows) in enumerate(frame.groupby("network", sort=False)):
        for ax, (value, low, high) in zip(axes, limits):
            there = rows.dropna(subset=[value]).sort_values("step")
            ax.errorbar(there["step"], there[value], yerr=[there[value] - there[low], there[high] - there[value]],
                        color=SERIES[number], marker=_MARKERS[number], markersize=4.5, linewidth=1.4, elinewidth=1,
                        capsize=2, label=network)  # fmt: skip
    for label, step in marks.items():
        for ax in axes:
            ax.axvline(step, color=SOFT, linewidth=0.9, linestyle=(0, (1, 2)), zorder=0)
        axes[0].annotate(label, (step, 1.02), xycoords=("data", "axes fraction"), rotation=40, fontsize=7, color=SOFT,
                         annotation_clip=False)  # fmt: skip
    axes[1].axhline(1, color=INK, linewidth=1, linestyle=(0, (4, 3)))
    axes[1].set_xlabel("step of the difference, in [0, 1] image units")
    axes[0].set_xscale("log")
    axes[1].set_yscale("log")
    axes[0].set_ylim(-0.03, 1.03)
    axes[0].yaxis.set_major_formatter(percent_tick)
    axes[0].set_ylabel("differences that are zero")
    axes[1].set_ylabel("size of the others\n÷ float gradient")
    handles, labels = axes[0].get_legend_handles_labels()
    fig.legend(handles, labels, ncols=len(labels), loc="outside lower left", fontsize=7.5, columnspacing=1.2)
    return titled(fig, title)


def angle_curves(
    frame: pd.DataFrame, *, yardstick: Mapping[str, tuple[float, float]], bound: float, title: str = ""
) -> Figure:
    """Cosine with the float network's gradient against the bit-width: a line per family, a panel per method.

    Args:
        frame: rows of `qpatch.measure.alignment_rows` with columns method, family and bits; the nulls are drawn dotted.
        yardstick: method → lowest and highest cosine between float networks of different seeds, drawn as a grey band.
        bound: a cosine at which a dashed line stands.

    Raises:
        InputError: no rows.
    """
    if frame.empty:
        raise InputError("there are no rows to draw.")
    methods = list(frame["method"].drop_duplicates())
    fig, axes = plt.subplots(1, len(methods), figsize=(4.2 * len(methods) + 0.4, 3.4), squeeze=False, sharey=True)
    for ax, method in zip(axes.flat, methods):
        part = frame[frame["method"] == method]
        for number, (family, rows) in enumerate(part.groupby("family", sort=False)):
            rows, color = rows.sort_values("bits"), SERIES[number]
            spread = [rows["value"] - rows["low"], rows["high"] - rows["value"]]
            ax.errorbar(rows["bits"], rows["value"], yerr=spread, color=color, marker=_MARKERS[number], markersize=5,
                        linewidth=1.4, elinewidth=1, capsize=2, label=family)  # fmt: skip
            null = rows[["null_class", "null_other"]].max(axis=1)
            ax.plot(rows["bits"], null, color=color, linestyle=":", linewidth=1.2)
        ax.axhspan(*yardstick[method], color=SOFT, alpha=0.3, linewidth=1.5)
        ax.axhline(bound, color=INK, linewidth=1, linestyle=(0, (4, 3)))
        ax.set_xscale("log")
        ticks = sorted(frame["bits"].unique())
        ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        ax.minorticks_off()
        ax.set_xlabel("bits of the activations")
        ax.set_title(method)
    axes[0, 0].set_ylabel("cosine with the float gradient")
    axes[0, 0].set_ylim(-0.1, 1.05)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    handles += [plt.Rectangle((0, 0), 1, 1, color=SOFT, alpha=0.3, linewidth=0),
                plt.Line2D([], [], color=SOFT, linestyle=":"),
                plt.Line2D([], [], color=INK, linewidth=1, linestyle=(0, (4, 3)))]  # fmt: skip
    labels += ["float networks of two seeds", "other images (null)", "45°"]
    fig.legend(handles, labels, ncols=len(labels), loc="outside lower left", fontsize=7.5, columnspacing=1.2)
    return titled(fig, title)
