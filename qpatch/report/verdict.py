"""Verdicts from rules: a rule is data, written before the table that it names exists (see claims.yaml).

A rule is a list of conditions. A condition selects rows of a results table, pools them over seeds, and compares the
value with a number or with other rows of the same table, interval included. The verdict follows from the outcomes.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd

from qpatch.errors import InputError, ParameterError
from qpatch.report.pool import Estimate, difference, pool_seeds

_LUCKY = 40  # a 95 % interval lies above a bound that is true in one case of forty
HOLDS, IN_PART, DOES_NOT = "holds", "holds in part", "does not hold"
NOT_DECIDABLE, NOT_MEASURED = "not decidable here", "not yet measured"
VERDICTS = (HOLDS, IN_PART, DOES_NOT, NOT_DECIDABLE, NOT_MEASURED)

MET, FAILED, UNDECIDED = "met", "not met", "undecided"
FEW, WEAK, MISSING = "too little data", "network too weak", "missing"
OUTCOMES = (MET, FAILED, UNDECIDED, FEW, WEAK, MISSING)

RATES = {
    "asr": "of the images that the attacked network classifies right when clean (and, for a targeted attack, that are "
    "not of the target class), the share that the attack changes, or sends to its target",
    "error_rate": "of all images, the share that is misclassified under the attack",
}


@dataclass(frozen=True)
class Condition:
    """One comparison; see `words` for what each part means.

    `where` filters rows by value ("=other" compares two columns), `each` makes one condition per combination of values
    ("*" stands for every value in the table), `than` is a number, {published: name}, or {where: ..., column: ...} for
    other rows; `times`, `plus` and `minus` shift it.
    """

    say: str
    op: str
    than: object
    where: dict = field(default_factory=dict)
    each: dict = field(default_factory=dict)
    column: str = "asr"
    interval: tuple[str, str] | None = ("ci_low", "ci_high")
    whole_interval: bool = True
    control: dict | None = None
    usable: dict | None = None
    min_n: int = 0
    min_seeds: int = 1


@dataclass(frozen=True)
class Rule:
    """The conditions of one claim on one results table (path relative to the figures folder)."""

    table: str
    conditions: tuple[Condition, ...]
    written: str
    rate: str
    figure: str = ""
    unit: str = "share"


@dataclass(frozen=True)
class Outcome:
    """What one condition of one combination of values came to."""

    condition: Condition
    case: dict
    status: str
    estimate: Estimate | None = None
    reference: Estimate | None = None
    control: float | None = None


def parse_rule(data: dict, published: dict[str, float], owner: str) -> Rule:
    """The rule in a `verdict` block of claims.yaml; keys of the block are defaults for its conditions.

    Raises:
        ParameterError: an unknown or missing key, comparison, or published value.
    """
    data = dict(data)
    try:
        head = {key: data.pop(key) for key in ("table", "written", "rate")}
        head |= {key: data.pop(key) for key in ("figure", "unit") if key in data}
        conditions = data.pop("conditions")
        data.setdefault("column", head["rate"])
        return Rule(conditions=tuple(_condition(data, own, published) for own in conditions), **head)
    except (KeyError, TypeError, AttributeError) as error:
        raise ParameterError(f"the rule of claim {owner} in claims.yaml is malformed: {error}.") from error


def _condition(defaults: dict, own: dict, published: dict[str, float]) -> Condition:
    merged = {**defaults, **own}
    for key in ("where", "each"):
        merged[key] = {**defaults.get(key, {}), **own.get(key, {})}
    op, than = merged.pop("is"), merged["than"]
    if op not in (">", "<"):
        raise ParameterError(f"a condition compares with '>' or '<', got {op!r}.")
    if isinstance(than, dict) and "published" in than:
        bound = published[than["published"]]
        merged["than"] = bound * than.get("times", 1) + than.get("plus", 0) - than.get("minus", 0)
    if merged.get("interval"):
        merged["interval"] = tuple(merged["interval"])
    return Condition(op=op, **merged)


def under_rate(rule: Rule, rate: str) -> Rule:
    """The same rule read with another definition of the rate: Wilson intervals from n, and no controls.

    The controls of a results table are measured with its own definition, so they cannot be set against another.
    """
    swap = [replace(c, column=rate, interval=None, control=None) for c in rule.conditions if c.column == rule.rate]
    return replace(rule, rate=rate, conditions=tuple(swap))


def outcomes(rule: Rule, figures: Path) -> list[Outcome] | None:
    """Every condition of the rule tried on its table in the folder `figures`; None if the table is not there.

    Raises:
        InputError: the table is damaged, lacks a column that the rule names, or its rows cannot be told apart.
    """
    path = Path(figures) / rule.table
    if not path.exists():
        return None
    try:
        frame = pd.read_csv(path)
    except (ValueError, UnicodeDecodeError) as error:
        raise InputError(f"the results table {rule.table} is damaged: {error}; make it again.") from error
    return outcomes_on(rule, frame)


def outcomes_on(rule: Rule, frame: pd.DataFrame) -> list[Outcome]:
    """Every condition of the rule tried on these rows, as if they stood in its table.

    Raises:
        InputError: as for `outcomes`.
    """
    named = {c for condition in rule.conditions for c in [
        *condition.where, *condition.each, condition.column, *(condition.interval or ["n"]),
        *([condition.usable["column"]] if condition.usable else [])]}
    absent = sorted(named - set(frame.columns))
    if absent:
        raise InputError(f"the results table {rule.table} lacks the columns {', '.join(absent)}.")
    words = [c for c in frame.columns if not pd.api.types.is_numeric_dtype(frame[c])]
    frame = frame.astype({c: object for c in words})  # plain arrays compare much faster than pandas strings
    return [_try(c, case, frame) for c in rule.conditions for case in _cases(c, frame)]


def _select(frame: pd.DataFrame, where: dict) -> pd.DataFrame:
    hit = np.ones(len(frame), dtype=bool)
    for column, value in where.items():
        same = isinstance(value, str) and value.startswith("=")
        hit &= frame[column].to_numpy() == (frame[value[1:]].to_numpy() if same else value)
    return frame[hit]


def _cases(condition: Condition, frame: pd.DataFrame) -> list[dict]:
    """All combinations of `each`; "*" is replaced by the values that the selected rows have."""
    selected = _select(frame, condition.where)
    choices = [sorted(selected[c].unique()) or ["*"] if v == "*" else v for c, v in condition.each.items()]
    return [dict(zip(condition.each, combination)) for combination in itertools.product(*choices)]


def _try(condition: Condition, case: dict, frame: pd.DataFrame) -> Outcome:
    where = {**condition.where, **case}
    rows = _select(frame, where)
    if rows.empty:
        return Outcome(condition, case, MISSING)
    if condition.usable and rows[condition.usable["column"]].mean() < condition.usable["at_least"]:
        return Outcome(condition, case, WEAK)
    if rows[condition.column].isna().any():
        return Outcome(condition, case, MISSING)
    estimate = pool_seeds(rows, condition.column, condition.interval)
    reference = _reference(condition, where, frame)
    control = _control(condition, rows)
    outcome = Outcome(condition, case, MISSING, estimate, reference, control.value if control else None)
    if reference is None or (condition.control and control is None):
        return outcome
    if ("n" in rows and rows["n"].min() < condition.min_n) or estimate.seeds < condition.min_seeds:
        return replace(outcome, status=FEW)
    checks = [_compare(estimate, reference, condition)]
    if control:
        checks.append(_compare(estimate, control.shifted(plus=condition.control["margin"]), replace(condition, op=">")))
    status = FAILED if FAILED in checks else UNDECIDED if UNDECIDED in checks else MET
    return replace(outcome, status=status)


def _reference(condition: Condition, where: dict, frame: pd.DataFrame) -> Estimate | None:
    than = condition.than
    if not isinstance(than, dict):
        return Estimate(float(than))
    column = than.get("column", condition.column)
    rows = _select(frame, {**where, **than.get("where", {})})
    if rows.empty or rows[column].isna().any():
        return None
    pooled = pool_seeds(rows, column, condition.interval if column == condition.column else None)
    return pooled.shifted(than.get("times", 1), than.get("plus", 0) - than.get("minus", 0))


def _control(condition: Condition, rows: pd.DataFrame) -> Estimate | None:
    """The strongest of the control columns that are filled in every row."""
    if not condition.control:
        return None
    filled = [c for c in condition.control["columns"] if c in rows and rows[c].notna().all()]
    return max((pool_seeds(rows, c) for c in filled), key=lambda e: e.value, default=None)


def _compare(estimate: Estimate, reference: Estimate, condition: Condition) -> str:
    gap = difference(estimate, reference)
    low, high = (gap.low, gap.high) if condition.whole_interval else (gap.value, gap.value)
    if condition.op == "<":
        low, high = -high, -low
    return MET if low > 0 else FAILED if high <= 0 else UNDECIDED


def judge(results: list[Outcome] | None) -> tuple[str, str]:
    """The verdict and its reason.

    Conditions on networks too weak to be attacked do not count. All others met: holds; some: holds in part; all
    decided and none met: does not hold. If none is met and some could not be decided, neither can the claim. Of forty
    conditions one is met by luck alone, because intervals are 95 % ones; as few as that count as none.
    """
    if results is None or all(r.status == MISSING for r in results):
        return NOT_MEASURED, "the results are not there yet"
    count = {status: sum(r.status == status for r in results) for status in OUTCOMES}
    counted = len(results) - count[WEAK]
    parts = [f"{number} {status}" for status, number in count.items() if number and status != MET]
    reason = "; ".join([f"{count[MET]} of {counted} conditions met", *parts])
    if counted and count[MET] == counted:
        return HOLDS, reason
    if count[MET] > counted / _LUCKY:
        return IN_PART, reason
    return (DOES_NOT if counted and count[FAILED] + count[MET] == counted else NOT_DECIDABLE), reason
