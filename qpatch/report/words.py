"""Rules and their outcomes in words, generated from the same data that is evaluated, so that they cannot drift."""

from __future__ import annotations

from qpatch.report.text import NOTHING, count, exactly, listing, number, span
from qpatch.report.verdict import MISSING, Condition, Outcome, Rule


def rule_in_words(rule: Rule) -> str:
    """The whole rule as text: what is compared, on which rows, with which controls and minimum counts."""
    lines = [f"({i}) {condition_in_words(c, rule.unit)}" for i, c in enumerate(rule.conditions, 1)]
    return f"{rule.written.strip()} Table {rule.table}, rate {rule.rate}. " + " ".join(lines)


def condition_in_words(condition: Condition, unit: str = "share") -> str:
    """One condition as a sentence."""
    rows = [f"{column} {value}".replace("=", "equal to ") for column, value in condition.where.items()]
    each = [f"each {column}" if values == "*" else f"each {column} of {listing(values)}"
            for column, values in condition.each.items()]
    parts = [f"{condition.say}: {condition.column} {condition.op} {_than(condition, unit)}",
             "with the whole 95 % interval" if condition.whole_interval else "by its value alone"]
    if condition.control:
        parts.append(f"and {_gap(condition.control['margin'], unit)} above the strongest of "
                     f"{listing(condition.control['columns'])}")
    parts.append(f"for {', '.join(rows)}" + (f", {', '.join(each)}" if each else ""))
    if condition.usable:
        parts.append(f"where {condition.usable['column']} ≥ {exactly(condition.usable['at_least'], unit)}")
    if condition.min_n or condition.min_seeds > 1:
        parts.append(f"(at least {count(condition.min_n)} images"
                     + (f" and {condition.min_seeds} seeds)" if condition.min_seeds > 1 else ")"))
    return " ".join(parts) + "."


def _than(condition: Condition, unit: str) -> str:
    than = condition.than
    if not isinstance(than, dict):
        return exactly(than, unit)
    shift = than.get("plus", 0) - than.get("minus", 0)
    times = f"{than['times']:g} × " if "times" in than else ""
    where = ", ".join(f"{column} {value}" for column, value in than.get("where", {}).items())
    tail = f" {'+' if shift > 0 else '−'} {_gap(abs(shift), unit)}" if shift else ""
    return f"{times}{than.get('column', condition.column)}{' at ' + where if where else ''}{tail}"


def _gap(value: float, unit: str) -> str:
    return f"{100 * value:.4g} points" if unit == "share" else exactly(value, unit)


def measured_in_words(results: list[Outcome], unit: str = "share") -> dict[str, str]:
    """The columns measured, ci, n and control of the ledger, each condition of the rule apart."""
    measured, limits, controls, counts = [], [], [], []
    for condition in dict.fromkeys(r.condition.say for r in results):
        own = [r for r in results if r.condition.say == condition and r.estimate and r.status != MISSING]
        label = "" if len({r.condition.say for r in results}) == 1 else f"{condition}: "
        if not own:
            measured.append(f"{label}{NOTHING}")
            continue
        cases = "" if len(own) == 1 else f" in {len(own)} cases"
        measured.append(f"{label}{span([r.estimate.value for r in own], unit)}{cases}")
        limits.append(f"{label}{span([v for r in own for v in (r.estimate.low, r.estimate.high)], unit)}")
        counts += [r.estimate.n for r in own]
        controls += [r.control for r in own if r.control is not None]
    return {
        "measured": "; ".join(measured), "ci": "; ".join(limits) or NOTHING,
        "n": count(min(counts)) if counts else NOTHING,
        "control": f"at most {number(max(controls), unit)}" if controls else NOTHING,
    }
