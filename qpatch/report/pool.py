"""Rates pooled over the seeds of an attack, with intervals that cover both the images and the seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from math import hypot, inf, sqrt
from statistics import fmean, stdev

import pandas as pd
from scipy.stats import t as student

from qpatch.errors import InputError
from qpatch.measure.stats import wilson


@cache
def _student(freedom: int) -> float:
    return float(student.ppf(0.975, freedom))


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval, which has two parts: `down` and `up` for the images, the spread for the seeds.

    `n` is the total count behind it, over all seeds; `by_seed` holds each seed's value.
    """

    value: float
    down: float = 0.0
    up: float = 0.0
    n: int = 0
    by_seed: dict[object, float] = field(default_factory=dict)
    bounds: tuple[float, float] = (-inf, inf)

    @property
    def seeds(self) -> int:
        return max(1, len(self.by_seed))

    @property
    def spread(self) -> float:
        """Half of Student's 95 % interval for the mean over the seeds; 0 for a single seed, which shows no spread."""
        values = list(self.by_seed.values())
        if len(values) < 2:
            return 0.0
        return _student(len(values) - 1) * stdev(values) / sqrt(len(values))

    @property
    def low(self) -> float:
        return max(self.bounds[0], self.value - hypot(self.down, self.spread))

    @property
    def high(self) -> float:
        return min(self.bounds[1], self.value + hypot(self.up, self.spread))

    def shifted(self, times: float = 1.0, plus: float = 0.0) -> Estimate:
        """The estimate of times · value + plus, for times ≥ 0."""
        by_seed = {seed: times * value + plus for seed, value in self.by_seed.items()}
        return Estimate(times * self.value + plus, times * self.down, times * self.up, self.n, by_seed)


def pool_seeds(rows: pd.DataFrame, column: str, interval: Sequence[str] | None = None, n: str = "n") -> Estimate:
    """Mean of `column` over the rows, one row per seed, with a 95 % interval.

    Every seed is scored on the same images, so the images count once: the distance from a row's value to its limits is
    averaged over the rows, and the spread of the seeds is added in quadrature (MOVER: Zou and Donner, Statistics in
    Medicine 2008).

    Args:
        rows: one row per seed of the same experiment.
        column: a share of `n` in [0, 1], or any number if `interval` is given and there is no `n`.
        interval: the columns that hold the lower and upper limit; without them, Wilson's limits.
        n: the column of the denominator.

    Raises:
        InputError: no rows, a missing column, or two rows of the same seed (the rows mix two experiments).
    """
    needed = [column, *(interval or [n])]
    absent = [c for c in needed if c not in rows.columns]
    if absent or rows.empty:
        raise InputError(f"cannot pool {column!r}: " + (f"no column {', '.join(absent)}." if absent else "no rows."))
    seeds = list(rows["seed"]) if "seed" in rows else list(range(len(rows)))
    if len(set(seeds)) < len(seeds):
        varied = [c for c in rows.columns if c not in ("seed", n, *needed) and rows[c].nunique() > 1]
        raise InputError(f"rows of one seed differ in {', '.join(varied) or 'nothing'}: filter by it before pooling.")
    values = [float(value) for value in rows[column]]
    counts = [int(count) for count in rows[n]] if n in rows else []
    if interval:
        limits = list(zip(*(map(float, rows[side]) for side in interval)))
    else:
        limits = [wilson(value * count, count) for value, count in zip(values, counts)]
    down = fmean(value - low for value, (low, _) in zip(values, limits))
    up = fmean(high - value for value, (_, high) in zip(values, limits))
    shares = counts and all(0 <= value <= 1 for triple in zip(values, *zip(*limits)) for value in triple)
    bounds = (0.0, 1.0) if shares else (-inf, inf)
    return Estimate(fmean(values), down, up, sum(counts), dict(zip(seeds, values)), bounds)


def difference(first: Estimate, second: Estimate) -> Estimate:
    """first − second with a 95 % interval.

    The parts for the images add in quadrature, as if the images were different ones (Newcombe's hybrid; for rates on
    the same images this is the wider, cautious choice). Seeds are paired where both have the same ones.
    """
    value, n = first.value - second.value, first.n
    if first.by_seed and first.by_seed.keys() == second.by_seed.keys():
        paired = {seed: first.by_seed[seed] - second.by_seed[seed] for seed in first.by_seed}
        return Estimate(value, hypot(first.down, second.up), hypot(first.up, second.down), n, paired)
    down = hypot(first.down, first.spread, second.up, second.spread)
    up = hypot(first.up, first.spread, second.down, second.spread)
    return Estimate(value, down, up, n)


def pool_table(frame: pd.DataFrame, by: Sequence[str], column: str = "asr",
               interval: Sequence[str] | None = ("ci_low", "ci_high")) -> pd.DataFrame:
    """One row per combination of `by`, pooled over seeds: value, low, high, n and seeds beside the columns of `by`."""
    rows = []
    for values, group in frame.groupby(list(by), sort=True):
        pooled = pool_seeds(group, column, interval)
        rows.append([*values, pooled.value, pooled.low, pooled.high, pooled.n, pooled.seeds])
    return pd.DataFrame(rows, columns=[*by, "value", "low", "high", "n", "seeds"])
