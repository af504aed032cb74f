"""Tables as text: CSV with a fixed float format, LaTeX with booktabs rules, and a self-contained HTML page."""

from __future__ import annotations

import html
import numbers

import pandas as pd

from qpatch.report.text import NOTHING

FLOAT_FORMAT = "%.6g"

LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"$<$", ">": r"$>$", "≥": r"$\ge$", "≤": r"$\le$",
    "→": r"$\to$", "×": r"$\times$", "−": r"$-$", "–": "--", "ε": r"$\varepsilon$", "λ": r"$\lambda$", "±": r"$\pm$",
    "²": r"$^2$", "°": r"$^\circ$", "·": r"$\cdot$", "“": "``", "”": "''", "’": "'",
}

CSS = """
:root { color-scheme: light dark; --ink: #1c1c22; --soft: #6b6b76; --line: #d9d9e0; --paper: #fff; --band: #f6f6f9; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e8ee; --soft: #a0a0ac; --line: #3a3a44; --paper: #17171c; --band: #1f1f26; } }
body { margin: 2rem auto; max-width: 100rem; padding: 0 1.5rem; color: var(--ink); background: var(--paper);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
table { border-collapse: collapse; width: 100%; }
caption { text-align: left; padding-bottom: .6rem; color: var(--soft); }
th { text-align: left; border-bottom: 2px solid var(--ink); } th, td { padding: .35rem .6rem; vertical-align: top; }
td { border-bottom: 1px solid var(--line); } tbody tr:nth-child(even) { background: var(--band); }
td.number { text-align: right; font-variant-numeric: tabular-nums; } .soft { color: var(--soft); font-size: .87em; }
"""


def csv_text(frame: pd.DataFrame) -> str:
    """The table as CSV: floats with six significant digits, lines end in \\n, so equal tables give equal bytes."""
    return frame.to_csv(index=False, float_format=FLOAT_FORMAT, lineterminator="\n")


def cell_text(value) -> str:
    """A cell as a reader sees it: floats with four significant digits, a dash where there is no value."""
    if isinstance(value, numbers.Real) and not isinstance(value, (bool, numbers.Integral)):
        return NOTHING if pd.isna(value) else f"{value:.4g}"
    return NOTHING if value is None or value is pd.NA else str(value)


def pick(frame: pd.DataFrame, **where) -> pd.DataFrame:
    """The rows with these values: pick(rows, attack="GAP", target_bits=[32, 2]); a list allows several."""
    for column, value in where.items():
        frame = frame[frame[column].isin(value if isinstance(value, (list, tuple)) else [value])]
    return frame


def escape_latex(text: str) -> str:
    """Text with LaTeX's special characters escaped, and the symbols that pdfLaTeX does not know as commands."""
    return "".join(LATEX.get(character, character) for character in text)


def latex_table(frame: pd.DataFrame, caption: str, label: str) -> str:
    """A floating table with booktabs rules: numbers right-aligned, caption above, ready for \\input."""
    align = "".join("r" if pd.api.types.is_numeric_dtype(frame[c]) else "l" for c in frame.columns)
    rows = [" & ".join(escape_latex(cell_text(v)) for v in row) + r" \\" for row in frame.itertuples(index=False)]
    return "\n".join([
        "% needs \\usepackage{booktabs}", r"\begin{table}", r"\centering", rf"\caption{{{escape_latex(caption)}}}",
        rf"\label{{tab:{label}}}", rf"\begin{{tabular}}{{{align}}}", r"\toprule",
        " & ".join(escape_latex(str(c)) for c in frame.columns) + r" \\", r"\midrule", *rows, r"\bottomrule",
        r"\end{tabular}", r"\end{table}", "",
    ])


def html_table(frame: pd.DataFrame, caption: str = "") -> str:
    """An HTML table, without the page around it."""
    numeric = [pd.api.types.is_numeric_dtype(frame[c]) for c in frame.columns]
    head = "".join(f'<th scope="col">{html.escape(str(c))}</th>' for c in frame.columns)
    body = "\n".join(
        "<tr>" + "".join(f'<td{" class=number" if right else ""}>{html.escape(cell_text(value))}</td>'
                         for value, right in zip(row, numeric)) + "</tr>"
        for row in frame.itertuples(index=False))
    title = f"<caption>{html.escape(caption)}</caption>\n" if caption else ""
    return f"<table>\n{title}<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>\n"


def html_page(title: str, body: str, css: str = "") -> str:
    """A page that stands alone: no script, no font and no style sheet from elsewhere."""
    return (f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{html.escape(title)}</title>\n<style>{CSS}{css}</style>\n</head>\n<body>\n{body}</body>\n</html>\n")
