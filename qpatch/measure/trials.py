"""Who is fooled by which patches: rates, differences of rates and honest choices, with intervals over images and patches.

Two things were drawn: the images, and the patches (an attack's seeds). Every interval here has a part for each, and the
two are added in quadrature (Zou and Donner, Statistics in Medicine 2008):

- images: all rates of a contrast are seen on the same images, so an image's contributions to them are added up first.
  The standard error is that of the mean of these sums, the linearisation that a bootstrap over images converges to.
- patches: Student's t over the seeds. Terms that show the very same patches are subtracted seed by seed; others are not
  paired, because a seed says nothing about two patches that were made on two networks.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from math import hypot, nan, sqrt
from typing import NamedTuple

import numpy as np
from scipy import stats
from torch import Tensor

from qpatch.errors import InputError
from qpatch.measure.stats import student, wilson

_Z = float(stats.norm.ppf(0.975))


@dataclass(frozen=True, eq=False)
class Trials:
    """Some patches of one kind, shown to one network.

    Attributes:
        hit: (S, N) in [0, 1], S patches and N images: does the image leave its class, or go to the target?
        won: (S, N), the same where the image counts (right when clean, and not of the target class), else 0.
        counts: (N,) in [0, 1], whether it counts; a share if the network or the attacker draws lots.
        patches: equal for two trials if seed by seed they show the same patches.
    """

    hit: np.ndarray
    won: np.ndarray
    counts: np.ndarray
    patches: Hashable

    @classmethod
    def of(cls, hits: Tensor, counts: Tensor, patches: Hashable) -> Trials:
        """From bool (S, N) and bool (N,).

        Raises:
            InputError: other shapes.
        """
        if hits.dim() != 2 or counts.shape != hits.shape[1:]:
            raise InputError(f"trials need hits (S, N) and counts (N,), got {tuple(hits.shape)}, {tuple(counts.shape)}.")
        hit, count = hits.double().cpu().numpy(), counts.double().cpu().numpy()
        return cls(hit, hit * count, count, patches)

    @property
    def n(self) -> int:
        """The images that count."""
        return round(float(self.counts.sum()))

    @property
    def by_seed(self) -> np.ndarray:
        """The success rate of each patch, (S,); nan if no image counts."""
        total = self.counts.sum()
        return self.won.sum(axis=1) / total if total else np.full(len(self.won), nan)

    @property
    def rate(self) -> float:
        """The mean success rate of the patches."""
        return float(self.by_seed.mean())

    @property
    def influence(self) -> np.ndarray:
        """How much each image moves the rate, (N,), with mean 0: the rate's linearisation as a ratio of two means."""
        return (self.won.mean(axis=0) - self.rate * self.counts) / self.counts.mean()

    def singles(self) -> list[Trials]:
        """Each patch on its own, for an attacker who keeps the best of several."""
        parts = zip(self.hit, self.won)
        return [Trials(hit[None], won[None], self.counts, (self.patches, s)) for s, (hit, won) in enumerate(parts)]

    def lost(self) -> Trials:
        """The same with all images counted: wrong when clean, or fooled. One minus this rate is the robust accuracy."""
        return Trials(self.hit, self.won + 1 - self.counts, np.ones_like(self.counts), self.patches)

    def only(self, images: np.ndarray) -> Trials:
        """The same on some of the images, bool (N,)."""
        return Trials(self.hit[:, images], self.won[:, images], self.counts[images], self.patches)


class Contrast(NamedTuple):
    """A value with its 95 % interval, the least number of images behind it, and the number of patches."""

    value: float
    low: float
    high: float
    n: int
    seeds: int


def pooled(parts: Sequence[Trials]) -> Trials:
    """The exact expectation over lots: each of the parts with the same probability."""
    identities = list(dict.fromkeys(part.patches for part in parts))
    mean = lambda name: np.mean([getattr(part, name) for part in parts], axis=0)  # noqa: E731
    return Trials(mean("hit"), mean("won"), mean("counts"), identities[0] if len(identities) == 1 else tuple(identities))


def contrast(*terms: tuple[float, Trials]) -> Contrast:
    """Σ c · rate over (c, trials): a difference of two rates, or a difference of differences."""
    return _contrast(sum(c * trials.rate for c, trials in terms), terms)


def relative_drop(base: Trials, other: Trials) -> Contrast:
    """1 − rate(other) / rate(base), by the delta method; nan if nothing succeeds in `base`."""
    value, terms = _ratio(other, base)
    return _contrast(1 - value, [(-c, trials) for c, trials in terms])


def ratio_difference(first: tuple[Trials, Trials], second: tuple[Trials, Trials]) -> Contrast:
    """rate(a) / rate(b) − rate(c) / rate(d) for (a, b), (c, d), by the delta method; nan where a denominator is 0."""
    (value, terms), (other, others) = _ratio(*first), _ratio(*second)
    return _contrast(value - other, [*terms, *((-c, trials) for c, trials in others)])


def rate_row(trials: Trials) -> dict:
    """What a table says of a rate.

    Returns:
        seeds, n, asr; low and high (images and patches together); ci_low and ci_high (Student over the patches alone,
        nan for one patch); wilson_low and wilson_high (the images alone); error_rate, the share of all images.
    """
    rate, n = trials.rate, trials.n
    ci = student(list(trials.by_seed))
    limits = wilson(min(rate * n, n), n) if n else (0.0, 1.0)
    spread = _spread([(1.0, trials)])
    return {
        "seeds": len(trials.won), "n": n, "asr": rate,
        "low": max(0.0, rate - hypot(rate - limits[0], spread)), "high": min(1.0, rate + hypot(limits[1] - rate, spread)),
        "ci_low": ci[0], "ci_high": ci[1], "wilson_low": limits[0], "wilson_high": limits[1],
        "error_rate": float(trials.hit.mean()),
    }  # fmt: skip


def crossfit(candidates: Sequence[tuple[Trials, ...]], score: Callable[..., float]) -> tuple[Trials, ...]:
    """The best candidate, without the luck of having been chosen: chosen on one half of the images, kept on the other.

    The images of even index judge the choice for those of odd index, and the other way round, so every image counts
    and none has a say in what is done to it. A maximum over the very images that are reported would be too high.

    Args:
        candidates: tuples of trials, all on the same images; a single attack is a tuple of one.
        score: of a tuple of trials; the highest wins, nan never does.

    Returns:
        a tuple like the candidates, made up of the two choices.

    Raises:
        InputError: no candidates.
    """
    if not candidates:
        raise InputError("there is nothing to choose from.")
    even = np.arange(len(candidates[0][0].counts)) % 2 == 0

    def best(judges: np.ndarray) -> tuple[Trials, ...]:
        return max(candidates, key=lambda parts: _number(score(*(part.only(judges) for part in parts))))

    return tuple(_joined(first, second, even) for first, second in zip(best(~even), best(even)))


def _ratio(above: Trials, below: Trials) -> tuple[float, list[tuple[float, Trials]]]:
    """The ratio of two rates, and its derivatives with respect to them."""
    a, b = above.rate, below.rate
    if not b > 0:
        return nan, [(nan, above), (nan, below)]
    return a / b, [(1 / b, above), (-a / b**2, below)]


def _joined(first: Trials, second: Trials, even: np.ndarray) -> Trials:
    same = first.patches if first.patches == second.patches else (first.patches, second.patches)
    parts = (np.where(even, getattr(first, name), getattr(second, name)) for name in ("hit", "won", "counts"))
    return Trials(*parts, same)


def _number(value: float) -> float:
    return -np.inf if np.isnan(value) else value


def _contrast(value: float, terms: Sequence[tuple[float, Trials]]) -> Contrast:
    n, seeds = min(trials.n for _, trials in terms), min(len(trials.won) for _, trials in terms)
    if n == 0 or np.isnan(value):
        return Contrast(nan, nan, nan, n, seeds)
    influence = sum(c * trials.influence for c, trials in terms)
    error = float(influence.std(ddof=1)) / sqrt(len(influence))
    half = hypot(_Z * error, _spread(terms))
    return Contrast(value, value - half, value + half, n, seeds)


def _spread(terms: Sequence[tuple[float, Trials]]) -> float:
    """Half of the interval over the patches; 0 for single patches, which show no spread."""
    own: dict[Hashable, np.ndarray] = {}
    for c, trials in terms:
        own[trials.patches] = own.get(trials.patches, 0) + c * trials.by_seed
    halves = [
        float(stats.t.ppf(0.975, len(values) - 1)) * float(values.std(ddof=1)) / sqrt(len(values))
        for values in own.values()
        if len(values) > 1
    ]
    return hypot(*halves) if halves else 0.0
