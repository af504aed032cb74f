"""What all benchmarks share: calls that take turns, ratios with their spread, the machine, and a CSV for each script."""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median, quantiles

import pandas as pd
import torch

from qpatch.allocator import keep_freed_memory
from qpatch.report.tables import csv_text
from qpatch.store import write_atomic

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "figures" / "benchmarks"
sys.path.append(str(ROOT / "build" / "peers"))  # run_all.sh puts them there; last, so that they replace no package
AT_MOST, AT_LEAST = "at most", "at least"
COLUMNS = ("benchmark", "case", "against", "rule", "bound", "ratio", "low", "high", "n", "seconds", "seconds_against", "note",
           "versions", "threads", "machine")
WARM_UP, ROUNDS = 2, 5  # rounds that do not count, and the fewest that do
WARM = 2.0  # seconds after which nothing needs another round to warm up


@dataclass(frozen=True)
class Limit:
    """The same arithmetic with nothing around it. The ratio is the time of ours over its time, and should be small.

    Attributes:
        name: what is done. call: does it once. bound: the largest ratio wanted, or None.
        times: how many of its calls the work of one call of ours consists of.
    """

    name: str
    call: Callable[[], object]
    bound: float | None = None
    times: float = 1.0
    rule = AT_MOST
    package = None

    def ratio(self, ours: float, other: float) -> float:
        return ours / (self.times * other)


@dataclass(frozen=True)
class Peer:
    """Another tool on the same work. The ratio is its time over the time of ours, and should be large.

    Attributes: as of `Limit`; call is None where its package is missing.
        package: its distribution, whose version is written down.
    """

    name: str
    call: Callable[[], object] | None
    bound: float | None = None
    times: float = 1.0
    package: str | None = None
    rule = AT_LEAST

    def ratio(self, ours: float, other: float) -> float:
        return self.times * other / ours


def by_turns(calls: Mapping[str, Callable[[], object]], seconds: float | None = None) -> dict[str, list[float]]:
    """Seconds of every call in every round that counts.

    In a round each call runs once, forwards and backwards in turn, so that whatever slows the machine meets all alike.

    Args:
        seconds: rounds go on until this time is over, but there are at least `ROUNDS`, after one or two to warm up. None,
            for smoke runs: two rounds, and both count.
    """
    order = list(calls)
    begun = time.perf_counter()
    for _ in range(WARM_UP if seconds is not None else 0):
        _round(calls, order)
        if time.perf_counter() - begun > WARM:
            break
    rounds, begun = [], time.perf_counter()
    while len(rounds) < (2 if seconds is None else ROUNDS) or time.perf_counter() - begun < (seconds or 0):
        rounds.append(_round(calls, order))
        order.reverse()
    return {name: [spent[name] for spent in rounds] for name in calls}


def _round(calls: Mapping[str, Callable[[], object]], order: Sequence[str]) -> dict[str, float]:
    spent = {}
    for name in order:
        started = time.perf_counter()
        calls[name]()
        spent[name] = time.perf_counter() - started
    return spent


def compare(case: str, ours: Callable[[], object], *rivals: Limit | Peer, seconds: float | None = None) -> list[dict]:
    """One row for each rival: the median over the rounds of the ratio within a round, and its quartiles."""
    there = {rival.name: rival.call for rival in rivals if rival.call is not None}
    spent = by_turns({"ours": ours} | there, seconds)
    rows = []
    for rival in rivals:
        found = {"case": case, "against": rival.name, "rule": rival.rule, "bound": rival.bound,
                 "versions": versions(rival.package if rival.call else None)}  # fmt: skip
        if rival.call is None:
            rows.append(found | {"note": "peer not installed"})
            continue
        ratios = [rival.ratio(mine, other) for mine, other in zip(spent["ours"], spent[rival.name])]
        rows.append(found | spread(ratios) | {"seconds": median(spent["ours"]), "seconds_against": median(spent[rival.name])})
    return rows


def spread(values: Sequence[float]) -> dict:
    """Median, quartiles and number of the rounds' values."""
    low, middle, high = quantiles(values, n=4, method="inclusive")
    return {"ratio": middle, "low": low, "high": high, "n": len(values)}


def table(name: str, rows: Sequence[dict]) -> pd.DataFrame:
    """The rows of one benchmark with the machine and the versions that made them."""
    frame = pd.DataFrame(rows).reindex(columns=list(COLUMNS))
    return frame.assign(benchmark=name, threads=torch.get_num_threads(), machine=machine())


def held(frame: pd.DataFrame) -> pd.Series:
    """For each row whether its bound holds: "yes", "no", or "" where there is no bound or no ratio."""
    within = (frame["ratio"] <= frame["bound"]).where(frame["rule"] == AT_MOST, frame["ratio"] >= frame["bound"])
    return within.map({True: "yes", False: "no"}).where(frame["ratio"].notna() & frame["bound"].notna(), "")


def text(frame: pd.DataFrame) -> str:
    """The table as it is printed."""
    shown = frame[["case", "against", "ratio", "low", "high", "n", "rule", "bound", "note"]].assign(held=held(frame))
    shown = shown.assign(n=frame["n"].astype("Int64"), rule=frame["rule"].where(frame["bound"].notna(), ""))
    return shown.astype(object).where(shown.notna(), "").to_string(index=False, float_format="{:.2f}".format)


def main(name: str, doc: str, measure: Callable[[bool], list[dict]], arguments: list[str] | None = None) -> int:
    """The command line of every benchmark: measure, print, and, unless it is a smoke run, write NAME.csv.

    Args:
        name: of the script. doc: its docstring.
        measure: smoke or not → rows of `compare`.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}", description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", choices=("smoke", "laptop"), default="laptop",
                        help="smoke: small sizes, seconds, prints only; its ratios mean nothing")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of torch")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(chosen.threads)
    keep_freed_memory()
    frame = table(name, measure(chosen.profile == "smoke"))
    print(text(frame))
    if chosen.profile != "smoke":
        write_atomic(FOLDER / f"{name}.csv", csv_text(frame))
    return 0


def machine() -> str:
    """The name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):  # not Linux, or a processor without a name
        return platform.processor() or platform.machine()


def versions(package: str | None = None) -> str:
    """Those of Python and torch, and of the package if there is one."""
    return ", ".join([f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in ("torch", package) if name)])
