"""What a notebook displays besides figures: pieces of the library's source, and sentences with measured numbers."""

from __future__ import annotations

import ast
import inspect
import string
import textwrap

from IPython.display import Markdown, display

from qpatch.errors import ParameterError
from qpatch.report.text import count, interval, listing, number, percent, points, rate, span

__all__ = ["count", "interval", "listing", "number", "percent", "points", "rate", "say", "show_source",
           "source_of", "span"]


def show_source(obj, part: str | None = None, *, docstring: bool = False) -> None:
    """Display the source of a function or class as highlighted code, with its dotted name above.

    Args:
        obj: a function, class or module of qpatch.
        part: a method of a class or a function of a module, by name; or, for a function, a piece of text: the block
            between blank lines that contains it is shown.
        docstring: keep the docstring; it is left out otherwise, because the text around the cell says it.

    Raises:
        ParameterError: no source, or no such part.
    """
    name, code = source_of(obj, part, docstring=docstring)
    display(Markdown(f"`{name}`\n\n```python\n{code}\n```"))


def source_of(obj, part: str | None = None, *, docstring: bool = False) -> tuple[str, str]:
    """The dotted name and the source that `show_source` displays."""
    block = None
    if part is not None and (inspect.isclass(obj) or inspect.ismodule(obj)):
        if not hasattr(obj, part):
            raise ParameterError(f"{obj.__name__} has no part {part!r}.")
        obj = getattr(obj, part)
    else:
        block = part
    if isinstance(obj, property):
        obj = obj.fget
    obj = inspect.unwrap(obj) if callable(obj) else obj
    try:
        code = textwrap.dedent(inspect.getsource(obj)).rstrip()
    except (OSError, TypeError) as error:
        raise ParameterError(f"{obj!r} has no source to show; pass a function, class or module.") from error
    if not docstring:
        code = _without_docstring(code)
    if block is not None:
        code = _block(code, block)
    name = obj.__name__ if inspect.ismodule(obj) else f"{obj.__module__}.{obj.__qualname__}"
    return name, code


def _without_docstring(code: str) -> str:
    """The code without the docstrings of its outermost definition and of the methods in it."""
    lines, drop = code.split("\n"), set()
    for node in ast.walk(ast.parse(code)):
        documented = isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
        if documented and ast.get_docstring(node):
            first = node.body[0]
            if len(node.body) > 1:
                drop.update(range(first.lineno - 1, first.end_lineno))
                if first.end_lineno < len(lines) and not lines[first.end_lineno].strip():
                    drop.add(first.end_lineno)
    return "\n".join(line for number, line in enumerate(lines) if number not in drop)


def _block(code: str, text: str) -> str:
    blocks = [block for block in code.split("\n\n") if text in block]
    if not blocks:
        raise ParameterError(f"no block of the source contains {text!r}.")
    return textwrap.dedent("\n\n".join(blocks))


def say(template: str, **values) -> None:
    """Display a sentence of Markdown whose numbers come from results: say("It fools {share}.", share=percent(x)).

    Raises:
        ParameterError: the template names a value that is not given, or a given one is not in the template.
    """
    named = {field.split(".")[0].split("[")[0] for _, field, _, _ in string.Formatter().parse(template) if field}
    if named != set(values):
        wrong = ", ".join(sorted(named ^ set(values)))
        raise ParameterError(f"the sentence and its values do not match: {wrong}.")
    display(Markdown(template.format(**values)))
