"""Numbers as text: the one place that decides how a rate, an interval or a count is written."""

from __future__ import annotations

from math import isnan

NOTHING = "–"


def percent(share: float | None, digits: int = 1) -> str:
    """A share in [0, 1] as a percentage: percent(0.7308) is "73.1 %"; NaN and None are a dash."""
    return NOTHING if share is None or isnan(share) else f"{100 * share:.{digits}f} %"


def points(share: float, digits: int = 1) -> str:
    """A difference of shares as signed percentage points: points(-0.1) is "−10.0 points"."""
    return f"{100 * share:+.{digits}f} points".replace("-", "−")


def interval(low: float, high: float, digits: int = 1) -> str:
    """An interval of shares: interval(0.71, 0.75) is "71.0–75.0 %"."""
    if any(isnan(v) for v in (low, high)):
        return NOTHING
    return f"{100 * low:.{digits}f}–{100 * high:.{digits}f} %"


def rate(share: float, low: float, high: float, n: int | None = None, digits: int = 1) -> str:
    """A share with its 95 % interval and its denominator: "73.1 % (71.0–75.1 %, n = 1,000)"."""
    tail = f", n = {count(n)}" if n is not None else ""
    return f"{percent(share, digits)} ({interval(low, high, digits)}{tail})"


def count(number: int) -> str:
    """A whole number with thousands separated: count(10000) is "10,000"."""
    return f"{int(number):,}"


def number(value: float, unit: str = "share") -> str:
    """A value in its unit: shares as percentages, everything else with three significant digits."""
    return percent(value) if unit == "share" else NOTHING if isnan(value) else f"{value:.3g}"


def exactly(value: float, unit: str = "share") -> str:
    """A value that was chosen, not measured, in its unit and without zeros at the end: exactly(0.7) is "70 %"."""
    return f"{100 * value:.4g} %" if unit == "share" else f"{value:.4g}"


def span(values: list[float], unit: str = "share") -> str:
    """The range of some values, or the one value that they all are."""
    low, high = min(values), max(values)
    if number(low, unit) == number(high, unit):
        return number(low, unit)
    return interval(low, high) if unit == "share" else f"{number(low, unit)}–{number(high, unit)}"


def listing(words, last: str = "and") -> str:
    """Words as a list in a sentence: "a", "a and b", "a, b and c"."""
    words = [str(word) for word in words]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {last} {words[-1]}"
