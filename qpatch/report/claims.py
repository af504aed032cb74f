"""The claims ledger: what each paper says, what we measured, the verdict.

`load` reads the claims from claims.yaml, the one file with the papers' numbers; `evaluate` sets them against the
results tables in a figures folder; `write` (in page.py) makes the page that a reader takes away.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, field, fields
from functools import cache
from importlib.resources import files
from pathlib import Path

import pandas as pd
import yaml

from qpatch.errors import ParameterError, one_of
from qpatch.report.page import write
from qpatch.report.text import NOTHING
from qpatch.report.verdict import NOT_MEASURED, RATES, Rule, judge, outcomes, parse_rule, under_rate
from qpatch.report.words import measured_in_words, rule_in_words

__all__ = ["Claim", "conditions", "evaluate", "load", "papers", "published", "write"]

QUESTIONS = ("transfer", "mechanism", "attack", "defense", "accuracy", "cost", "artefact", "open")


@dataclass(frozen=True)
class Claim:
    """One claim of one paper; `number` is the published value as text, `values` as numbers (rates in [0, 1])."""

    id: str
    statement: str
    question: str
    setting: str
    place: str
    source: str
    confidence: str
    number: str = NOTHING
    values: dict[str, float] = field(default_factory=dict)
    note: str = ""
    rule: Rule | None = None

    @property
    def paper(self) -> str:
        """The letter of the paper: A, B or C."""
        return self.id[0]


@cache
def _source() -> dict:
    text = files("qpatch.report").joinpath("claims.yaml").read_text(encoding="utf-8")
    return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # the C one is ten times faster


@cache
def load() -> tuple[Claim, ...]:
    """All claims, in the ledger's order.

    Raises:
        ParameterError: an entry of claims.yaml is malformed; the message names the claim.
    """
    return parse(_source())


def parse(source: dict) -> tuple[Claim, ...]:
    """The claims in a ledger with the keys papers, confidence and claims; see `load`."""
    known = {f.name for f in fields(Claim)} - {"rule"} | {"verdict"}
    claims = []
    for entry in source["claims"]:
        owner, verdict = entry.get("id", "?"), entry.get("verdict")
        if unknown := set(entry) - known:
            raise ParameterError(f"claim {owner} in claims.yaml has unknown fields: {', '.join(sorted(unknown))}.")
        plain = {key: value for key, value in entry.items() if key != "verdict"}
        try:
            claim = Claim(**plain, rule=parse_rule(verdict, plain.get("values", {}), owner) if verdict else None)
        except TypeError as error:
            raise ParameterError(f"claim {owner} in claims.yaml is malformed: {error}.") from error
        one_of(claim.paper, source["papers"], f"paper of claim {owner}")
        one_of(claim.question, QUESTIONS, f"question of claim {owner}")
        for mark in claim.confidence.split(", "):
            one_of(mark, source["confidence"], f"confidence mark of claim {owner}")
        claims.append(claim)
    if len({c.id for c in claims}) < len(claims):
        raise ParameterError("claims.yaml gives two claims the same id.")
    return tuple(claims)


def papers() -> dict[str, dict[str, str]]:
    """The papers by letter, each with its short name, citation and link."""
    return _source()["papers"]


def published(table: str) -> pd.DataFrame:
    """A published table by name, for instance "A-table5" or "C-pgd-transfer"; rates are shares in [0, 1].

    Raises:
        ParameterError: no table of that name.
    """
    tables = _source()["tables"]
    return pd.read_csv(io.StringIO(tables[one_of(table, tables, "published table")]))


def some(*ids: str) -> tuple[Claim, ...]:
    """The claims of these ids, in the ledger's order, for `evaluate`.

    Raises:
        ParameterError: no such claim.
    """
    known = {claim.id: claim for claim in load()}
    wanted = {one_of(id, known, "claim") for id in ids}
    return tuple(claim for id, claim in known.items() if id in wanted)


def evaluate(figures: str | Path, claims: tuple[Claim, ...] | None = None) -> pd.DataFrame:
    """One row per claim: what the paper says, what the tables in `figures` say, and the verdict of the claim's rule.

    The column "other_rate" is the verdict of the same rule under the other definition of the rate, because the papers
    do not always define theirs; it takes no controls.

    Raises:
        InputError: a results table is damaged or does not fit the rule.
    """
    return pd.DataFrame([_row(claim, Path(figures)) for claim in claims or load()])


def _row(claim: Claim, figures: Path) -> dict:
    row = {
        "id": claim.id, "paper": claim.paper, "question": claim.question, "statement": claim.statement,
        "published": claim.number, "setting": claim.setting, "place": claim.place, "source": claim.source,
        "confidence": claim.confidence, "note": claim.note,
        "measured": NOTHING, "ci": NOTHING, "n": NOTHING, "control": NOTHING,
        "verdict": NOT_MEASURED, "reason": "no rule has been written yet", "other_rate": NOTHING, "rule": NOTHING,
        "link": "",
    }
    rule = claim.rule
    if rule is None:
        return row
    results = outcomes(rule, figures)
    verdict, reason = judge(results)
    row |= {"verdict": verdict, "reason": reason, "rule": rule_in_words(rule)}
    if verdict != NOT_MEASURED:
        row |= measured_in_words(results, rule.unit)
        row |= {"other_rate": _other_rate(rule, figures), "link": rule.figure}
    return row


def _other_rate(rule: Rule, figures: Path) -> str:
    """"error_rate: holds", or a dash where the table has no other definition."""
    table = pd.read_csv(figures / rule.table, nrows=0)
    others = [rate for rate in RATES if rate != rule.rate and rate in table.columns]
    if rule.rate not in RATES or not others:
        return NOTHING
    return f"{others[0]}: {judge(outcomes(under_rate(rule, others[0]), figures))[0]}"


def conditions(figures: str | Path, claims: tuple[Claim, ...] | None = None) -> pd.DataFrame:
    """Every single condition behind the verdicts: one row per claim, condition and case, with value and interval."""
    columns = ["claim", "condition", "case", "column", "value", "low", "high", "n", "seeds", "op", "reference",
               "control", "outcome"]
    rows = []
    for claim in claims or load():
        for result in (outcomes(claim.rule, Path(figures)) or []) if claim.rule else []:
            estimate, nan = result.estimate, float("nan")
            rows.append({
                "claim": claim.id, "condition": result.condition.say, "column": result.condition.column,
                "case": ", ".join(str(value) for value in result.case.values()), "op": result.condition.op,
                **({key: getattr(estimate, key) for key in ("value", "low", "high", "n", "seeds")} if estimate else {}),
                "reference": result.reference.value if result.reference else nan,
                "control": nan if result.control is None else result.control, "outcome": result.status,
            })
    return pd.DataFrame(rows, columns=columns)
