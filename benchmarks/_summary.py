"""One table and one picture of all benchmarks, from their CSVs: `./run_all.sh bench` ends with it.

    python -m benchmarks._summary
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from benchmarks._harness import AT_LEAST, AT_MOST, COLUMNS, FOLDER, held, text
from qpatch.report.figures import save_figure
from qpatch.report.style import INK, SERIES, use_style

PANELS = {AT_MOST: "time of ours / limit", AT_LEAST: "peer / ours"}
LOOKS = {"yes": (SERIES[0], "o", "bound holds"), "no": (SERIES[1], "s", "bound missed"), "": (SERIES[2], "D", "no bound")}
CAPTION = ("Ratios of times, medians with quartiles over rounds: ours over the bare arithmetic (left, small is good) and "
           "other tools over ours (right, large is good; of success rates, ours over theirs). Black ticks are the bounds.")  # fmt: skip


def collect() -> pd.DataFrame:
    """The rows of all benchmarks that have been run, in the order of their names."""
    scripts = sorted(Path(__file__).parent.glob("[!_]*.py"))
    files = [FOLDER / f"{script.stem}.csv" for script in scripts]
    frames = [pd.read_csv(file) for file in files if file.exists()]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=list(COLUMNS))


def ratios(frame: pd.DataFrame) -> Figure:
    """One line for each ratio, a panel for each kind of bound; the axes are logarithmic."""
    frame = frame.dropna(subset=["ratio"]).assign(held=held)
    panels = {rule: frame[frame["rule"] == rule] for rule in PANELS}
    longest = max(len(rows) for rows in panels.values())
    fig, axes = plt.subplots(1, 2, figsize=(13, 1.4 + 0.2 * longest))
    for ax, (rule, rows) in zip(axes, panels.items()):
        rows = rows.assign(place=np.arange(len(rows)), **{end: rows[end].fillna(rows["ratio"]) for end in ("low", "high")})
        for state, (color, marker, label) in LOOKS.items():
            part = rows[rows["held"] == state]
            error = [(part["ratio"] - part["low"]).clip(lower=0), (part["high"] - part["ratio"]).clip(lower=0)]
            ax.errorbar(part["ratio"], part["place"], xerr=error, color=color, marker=marker, markersize=4, linestyle="none",
                        elinewidth=1.2, label=label)  # fmt: skip
        ax.plot(rows["bound"], rows["place"], linestyle="none", marker="|", markersize=11, markeredgewidth=1.8, color=INK,
                label="bound")  # fmt: skip
        ax.set_yticks(rows["place"], rows["case"] + " · " + rows["against"])
        ax.set_ylim(longest - 0.4, -0.6)
        ax.set_xscale("log")
        ax.xaxis.set_major_formatter("{x:g}")
        ax.xaxis.set_minor_formatter("")
        ax.grid(axis="y", visible=False)
        ax.set_xlabel(f"{PANELS[rule]}: {rule} the bound")
    fig.legend(*axes[0].get_legend_handles_labels(), ncols=4, loc="outside lower left", fontsize=7.5)
    return fig


def main() -> int:
    """Print the table, draw the picture; the exit status is 1 if a bound is missed."""
    frame = collect()
    if frame.empty:
        print("no benchmark has been run yet")
        return 0
    print(text(frame))
    use_style()
    run = SimpleNamespace(name="benchmarks", profile="laptop", parameters={}, figures=FOLDER,
                          versions={"all": "; ".join(sorted(frame["versions"].unique()))})  # fmt: skip
    save_figure(run, "ratios", ratios(frame), caption=CAPTION, data=frame)
    missed = int((held(frame) == "no").sum())
    print(f"{missed} of {int(frame['bound'].notna().sum())} bounds missed; the picture is figures/benchmarks/ratios.png")
    return int(missed > 0)


if __name__ == "__main__":
    raise SystemExit(main())
