"""Every notebook keeps the form that readers can rely on: order, sizes, tags, stored outputs, no hidden tricks."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path
from statistics import median

import nbformat
import pytest

FOLDER = Path(__file__).parents[1] / "notebooks"
NAMES = [path.stem for path in sorted(FOLDER.glob("*.ipynb"))]
CHECK, PARAMETERS, SAVE = "nbval-check-output", "parameters", "save"

every_notebook = pytest.mark.parametrize("name", NAMES)


@cache
def notebook(name: str):
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def code_cells(name: str, tag: str | None = None) -> list:
    cells = [c for c in notebook(name).cells if c.cell_type == "code"]
    return [c for c in cells if tag in c.metadata.get("tags", [])] if tag else cells


def markdown(name: str) -> list[str]:
    return [c.source for c in notebook(name).cells if c.cell_type == "markdown"]


def length(cell) -> int:
    return sum(bool(line.strip()) for line in cell.source.splitlines())


def trees(name: str) -> list[ast.Module]:
    return [ast.parse(c.source) for c in code_cells(name)]


def test_there_are_notebooks_to_check():
    assert NAMES and all(re.fullmatch(r"\d\d_[a-z0-9_]+", name) for name in NAMES)


@every_notebook
def test_is_valid_and_names_the_standard_kernel(name):
    content = notebook(name)
    nbformat.validate(content)
    assert content.metadata["kernelspec"]["name"] == "python3"
    ids = [cell.get("id") for cell in content.cells]
    assert all(ids) and len(set(ids)) == len(ids)


@every_notebook
def test_sizes(name):
    cells, code = notebook(name).cells, code_cells(name)
    assert 25 <= len(cells) <= 45
    assert len(code) <= len(cells) - len(code), "more code than markdown cells"
    assert median(length(c) for c in code) <= 8
    assert max(length(c) for c in code) <= 25
    body = [c for c in code if not c.metadata.get("tags")]
    assert max(length(c) for c in body) <= 12, "a cell of the body is longer than 12 lines"
    assert all(length(c) for c in code), "an empty cell"


@every_notebook
def test_parameters_cell_comes_first_and_explains_itself(name):
    (cell,) = code_cells(name, PARAMETERS)
    assert cell is code_cells(name)[0]
    tree = ast.parse(cell.source)
    assert tree.body and all(isinstance(node, (ast.Assign, ast.AnnAssign)) for node in tree.body)
    lines = cell.source.splitlines()
    for node in tree.body:
        ast.literal_eval(node.value)
        assert re.search(r"#\s*\w", lines[node.end_lineno - 1]), f"no help comment: {lines[node.end_lineno - 1]}"


@every_notebook
def test_one_start_call_right_after_the_parameters(name):
    calls = [isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) == "start"
             for tree in trees(name) for node in ast.walk(tree)]
    assert sum(calls) == 1
    assert f'start("{name}", globals())' in code_cells(name)[1].source


@every_notebook
def test_title_cell_says_what_a_reader_needs(name):
    title, *_ = notebook(name).cells
    assert title.cell_type == "markdown" and title.source.startswith("# ")
    for word in ("Reads", "Writes", "smoke", "laptop", "paper"):
        assert word in title.source, f"the title cell does not mention {word!r}"


@every_notebook
def test_ends_with_deviations_exercises_and_what_to_read_next(name):
    headings = [line for source in markdown(name) for line in source.splitlines() if line.startswith("## ")]
    wanted = ("Deviations", "Exercises", "What to read next")
    assert [h for h in headings if any(w in h for w in wanted)] == headings[-3:]
    assert all(word in heading for word, heading in zip(wanted, headings[-3:]))
    exercises = "".join(source for source in markdown(name) if "## Exercises" in source)
    assert "<details>" in exercises and "</details>" in exercises, "exercises need hidden solutions"
    assert exercises.count("<details>") == exercises.count("</details>")


@every_notebook
def test_no_code_cell_stands_without_text_beside_it(name):
    cells = notebook(name).cells
    start = cells.index(code_cells(name)[1])
    for before, cell, after in zip(cells[start:], cells[start + 1:], cells[start + 2:]):
        if CHECK not in cell.metadata.get("tags", []):
            kinds = {before.cell_type, cell.cell_type, after.cell_type}
            assert kinds != {"code"}, f"neither expected before nor read after:\n{cell.source}"


@every_notebook
def test_check_cells_hold_stable_words_and_nothing_else_is_stored(name):
    checks = code_cells(name, CHECK)
    assert checks, "a notebook without a check cell proves nothing"
    for cell in checks:
        assert cell.outputs, f"a check cell without stored output is never compared:\n{cell.source}"
        for output in cell.outputs:
            assert output.output_type == "stream" and output.name == "stdout", "check cells only print"
            assert not re.search(r"\d[.,]\d", output.text), f"a raw number in a check cell: {output.text}"
    for cell in code_cells(name):
        if cell not in checks:
            assert not cell.outputs and cell.execution_count is None, f"stored output of:\n{cell.source}"


@every_notebook
def test_the_science_lives_in_the_library(name):
    nodes = [node for tree in trees(name) for node in ast.walk(tree)]
    assert not [n for n in nodes if isinstance(n, ast.ClassDef)], "a class in a notebook"
    functions = [n for n in nodes if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]
    assert len(functions) <= 2
    assert all(n.end_lineno - n.lineno < 12 for n in functions)


@every_notebook
def test_nothing_is_hidden_installed_or_tied_to_one_machine(name):
    for cell in code_cells(name):
        for line in cell.source.splitlines():
            assert not re.match(r"\s*[!%]", line), f"a magic or shell line: {line}"
        assert not re.search(r"\b(pip|conda|mamba)\b.{0,12}install", cell.source)
    for tree in trees(name):
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute):
                assert node.attr not in ("filterwarnings", "simplefilter"), "warnings are silenced"
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert not re.match(r"(/\w|~|[A-Za-z]:\\)", node.value), f"an absolute path: {node.value}"


@every_notebook
def test_declares_what_it_writes(name):
    declared = notebook(name).metadata["qpatch"]
    assert declared["figures"] and all(Path(file).name == file for file in declared["figures"])
    saved = {argument.value for tree in trees(name) for node in ast.walk(tree)
             if isinstance(node, ast.Call) and getattr(node.func, "attr", "") in ("save_figure", "save_table")
             for argument in node.args[:1] if isinstance(argument, ast.Constant)}
    assert {Path(file).stem for file in declared["figures"]} <= saved
