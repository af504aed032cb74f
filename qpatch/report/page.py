"""The ledger as a page: the same rows as CSV, Markdown, HTML and LaTeX, written under the figures folder."""

from __future__ import annotations

import html
from pathlib import Path

import pandas as pd

from qpatch.report.tables import csv_text, escape_latex, html_page
from qpatch.report.text import NOTHING
from qpatch.report.verdict import DOES_NOT, HOLDS, IN_PART, NOT_DECIDABLE, NOT_MEASURED, VERDICTS
from qpatch.store import write_atomic

TITLE = "What the papers claim, and what we measured"
INTRO = ("Each claim has a rule, written before the numbers. A verdict follows from the rule alone. "
         "Rates are attack success rates unless said otherwise; intervals are 95 %.")

SIGNS = {HOLDS: "✔", IN_PART: "◐", DOES_NOT: "✘", NOT_DECIDABLE: "?", NOT_MEASURED: "○"}
"""A sign for each verdict, so that it can be told without colour."""

COLORS = {HOLDS: "#0072b2", IN_PART: "#e69f00", DOES_NOT: "#d55e00", NOT_DECIDABLE: "#8a8a94", NOT_MEASURED: "#c9c9d1"}
"""A colour for each verdict, from Okabe and Ito's colour-blind-safe set."""

CSS = """
.chip { display: inline-block; white-space: nowrap; padding: .05rem .55rem; border-radius: 1rem; border: 2px solid; }
.tally span { margin-right: .8rem; } td:first-child { font-weight: 600; white-space: nowrap; }
td.verdict { min-width: 11rem; } td.claim { min-width: 18rem; } summary { cursor: pointer; color: var(--soft); }
""" + "".join(f'.chip[data-verdict="{verdict}"] {{ border-color: {color}; }}\n' for verdict, color in COLORS.items())


def write(frame: pd.DataFrame, folder: str | Path) -> list[Path]:
    """Write claims.csv, claims.md, claims.html and claims.tex into `folder`, each whole or not at all.

    Args:
        frame: what `claims.evaluate` returned.
        folder: the figures folder; links to figures in the page are relative to it.

    Returns:
        the paths written.

    Raises:
        StoreError: the folder cannot be written or the disk is full.
    """
    texts = {"csv": csv_text(frame), "md": markdown(frame), "html": page(frame), "tex": latex(frame)}
    paths = [Path(folder) / f"claims.{kind}" for kind in texts]
    for path, text in zip(paths, texts.values()):
        write_atomic(path, text)
    return paths


def tally(frame: pd.DataFrame) -> pd.DataFrame:
    """Number of claims by paper (rows) and verdict (columns, all five)."""
    counts = pd.crosstab(frame["paper"], frame["verdict"])
    return counts.reindex(columns=list(VERDICTS), fill_value=0).rename_axis(columns=None)


def _tally_words(frame: pd.DataFrame) -> list[str]:
    counts = tally(frame).sum()
    return [f"{SIGNS[verdict]} {verdict}: {counts[verdict]}" for verdict in VERDICTS]


def markdown(frame: pd.DataFrame) -> str:
    """The ledger as Markdown: one table per paper, rules below."""
    parts = [f"# {TITLE}", INTRO, " · ".join(_tally_words(frame))]
    for paper, rows in frame.groupby("paper"):
        head = ["id", "claim", "paper says", "we measured", "control", "verdict"]
        lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
        for row in rows.itertuples():
            link = f" ([figure]({row.link}))" if row.link else ""
            cells = [row.id, row.statement, row.published, f"{_measured(row)}{link}", row.control,
                     f"{SIGNS[row.verdict]} {row.verdict}"]
            lines.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
        parts += [f"## Paper {paper}", "\n".join(lines)]
    rules = [f"* **{row.id}** {row.rule} *{row.reason}.*" for row in frame.itertuples() if row.rule != NOTHING]
    return "\n\n".join([*parts, "## Rules", "\n".join(rules)]) + "\n"


def _measured(row) -> str:
    if row.measured == NOTHING:
        return NOTHING
    return f"{row.measured} (95 %: {row.ci}; n ≥ {row.n})"


def page(frame: pd.DataFrame) -> str:
    """The ledger as an HTML page; every claim has its id as anchor."""
    parts = [f"<h1>{TITLE}</h1>\n<p>{INTRO}</p>\n<p class=tally>"]
    parts += [f"<span>{html.escape(words)}</span>" for words in _tally_words(frame)]
    parts.append("</p>\n")
    for paper, rows in frame.groupby("paper"):
        heads = "".join(f'<th scope="col">{h}</th>' for h in ("", "claim", "paper says", "we measured", "verdict"))
        body = "\n".join(_html_row(row) for row in rows.itertuples())
        table = f"<table>\n<thead><tr>{heads}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>\n"
        parts.append(f"<h2>Paper {paper}</h2>\n{table}")
    return html_page(TITLE, "".join(parts), CSS)


def _html_row(row) -> str:
    text = {key: html.escape(str(value)) for key, value in row._asdict().items()}
    note = f'<div class=soft>{text["note"]}</div>' if row.note else ""
    link = f'<div><a href="{text["link"]}">figure</a></div>' if row.link else ""
    control = f'<div class=soft>control {text["control"]}</div>' if row.control != NOTHING else ""
    details = "" if row.rule == NOTHING else (f'<details><summary>rule</summary><div class=soft>{text["rule"]}</div>'
                                              f'<div class=soft>{text["other_rate"]}</div></details>')
    chip = f'<span class=chip data-verdict="{text["verdict"]}">{SIGNS[row.verdict]} {text["verdict"]}</span>'
    return (f'<tr id="{text["id"]}"><td>{text["id"]}</td>'
            f'<td class=claim>{text["statement"]}<div class=soft>{text["setting"]} · {text["place"]} · '
            f'{text["confidence"]}</div>{note}</td><td>{text["published"]}</td>'
            f'<td>{html.escape(_measured(row))}{control}{link}</td>'
            f'<td class=verdict>{chip}<div class=soft>{text["reason"]}</div>{details}</td></tr>')


def latex(frame: pd.DataFrame) -> str:
    """The ledger as a LaTeX longtable, ready for \\input."""
    head = r"id & claim & paper says & we measured & verdict \\"
    lines = ["% needs \\usepackage{booktabs,longtable}", r"\begin{longtable}{lp{.36\textwidth}p{.17\textwidth}"
             r"p{.20\textwidth}p{.12\textwidth}}", rf"\caption{{{TITLE}}}\label{{tab:claims}}\\", r"\toprule", head,
             r"\midrule", r"\endfirsthead", r"\toprule", head, r"\midrule", r"\endhead"]
    for row in frame.itertuples():
        cells = [row.id, row.statement, row.published, _measured(row), row.verdict]
        lines.append(" & ".join(escape_latex(cell) for cell in cells) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{longtable}", ""])
