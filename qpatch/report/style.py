"""One look for all figures: a seaborn theme, and a colour and a marker for each bit-width, paper and verdict."""

from __future__ import annotations

import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colorbar import Colorbar
from matplotlib.figure import Figure

from qpatch.errors import one_of

BIT_COLORS = {32: "#0b0b3b", 16: "#4a0c8a", 8: "#8f0da4", 5: "#c5407e", 4: "#ec7853", 2: "#fdb130"}
"""From dark to light with falling precision (matplotlib's plasma): ordered also in grey and for the colour-blind."""

BIT_MARKERS = {32: "o", 16: "h", 8: "s", 5: "^", 4: "D", 2: "v"}
"""A marker per bit-width, so that no figure needs colour to be read."""

SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
"""Colours of things without an order: Okabe and Ito's colour-blind-safe set."""

INK, SOFT, GRID = "#1c1c22", "#6b6b76", "#e4e4ea"
RATE_MAP = "rocket_r"
"""Colour map of success rates: light is harmless, dark is fooled; even in lightness."""

SETTINGS = {
    "font.family": "DejaVu Sans", "font.size": 9, "axes.titlesize": 10, "axes.titleweight": "bold",
    "axes.labelsize": 9, "xtick.labelsize": 8, "ytick.labelsize": 8, "figure.titlesize": 10,
    "figure.titleweight": "bold", "axes.spines.top": False, "axes.spines.right": False,
    "axes.edgecolor": SOFT, "axes.labelcolor": INK, "text.color": INK, "xtick.color": INK,
    "ytick.color": INK, "grid.color": GRID, "legend.frameon": False, "figure.facecolor": "white",
    "figure.constrained_layout.use": True, "image.interpolation": "nearest", "savefig.facecolor": "white",
}


def use_style() -> None:
    """Set the theme for all figures drawn after it; call it once, before the first figure."""
    sns.set_theme(context="notebook", style="whitegrid", palette=list(SERIES), rc=SETTINGS)


def bit_color(bits: int) -> str:
    """The colour of a bit-width.

    Raises:
        ParameterError: no colour for this width.
    """
    return BIT_COLORS[one_of(bits, BIT_COLORS, "bit-width")]


def bit_marker(bits: int) -> str:
    """The marker of a bit-width.

    Raises:
        ParameterError: no marker for this width.
    """
    return BIT_MARKERS[one_of(bits, BIT_MARKERS, "bit-width")]


def bit_label(bits: int) -> str:
    """"float" for 32 bits, "4-bit" and so on below."""
    return "float" if bits == 32 else f"{bits}-bit"


def titled(fig: Figure, title: str) -> Figure:
    """The figure with its title at the upper left, if there is one."""
    if title:
        fig.suptitle(title, x=0.01, ha="left")
    return fig


def percent_tick(share: float, _=None) -> str:
    """A share as per cent, for ticks."""
    return f"{100 * share:.0f} %".replace("-", "−")


def bare(ax: Axes) -> Axes:
    """A heat map's panel: no grid, no tick marks, no frame."""
    ax.grid(False)
    ax.tick_params(length=0, which="both")
    for spine in ax.spines.values():
        spine.set_visible(False)
    return ax


def rate_bar(fig: Figure, image: ScalarMappable, axes, label: str = "attack success", **options) -> Colorbar:
    """The colour bar of heat maps in `RATE_MAP`, in per cent; options as in `Figure.colorbar`."""
    bar = fig.colorbar(image, ax=axes, format=percent_tick, **{"pad": 0.01, "aspect": 18} | options)
    bar.set_label(label)
    bar.outline.set_visible(False)
    return bar
