"""A notebook's parameters: read from its `parameters` cell, and checked strictly (papermill itself only warns)."""

from __future__ import annotations

import ast
import difflib
import json
from pathlib import Path

from qpatch.errors import ParameterError


def declared(path: Path | str) -> dict[str, object]:
    """The names and default values in the cell of a stored notebook that is tagged `parameters`, in order.

    Raises:
        ParameterError: no such notebook, not exactly one such cell, or a default that is not a plain literal.
    """
    path = Path(path)
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    except (OSError, ValueError, KeyError) as error:
        raise ParameterError(f"{path.name} cannot be read as a notebook: {error}.") from None
    found = [c for c in cells if c["cell_type"] == "code" and "parameters" in c["metadata"].get("tags", [])]
    if len(found) != 1:
        raise ParameterError(f"{path.name} must have exactly one code cell tagged 'parameters'; it has {len(found)}.")
    return literals("".join(found[0]["source"]), path.stem)


def literals(source: str, where: str) -> dict[str, object]:
    """The assignments `name = literal` of a piece of source.

    Raises:
        ParameterError: anything but assignments of literals to names.
    """
    values: dict[str, object] = {}
    for statement in ast.parse(source).body:
        targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
        try:
            if isinstance(statement, ast.AugAssign) or len(targets) != 1:
                raise ValueError
            values[targets[0].id] = ast.literal_eval(statement.value)
        except (AttributeError, ValueError, TypeError):
            line = ast.unparse(statement)
            raise ParameterError(f"{where}: parameters must be plain `name = literal` lines, got `{line}`.") from None
    return values


def check(defaults: dict[str, object], given: dict[str, object], where: str) -> None:
    """Check that every given parameter exists, and that its value has the type of its default.

    An int fits where the default is a float; a default of None takes anything; the items of a list must fit one
    of the items of the default.

    Raises:
        ParameterError: an unknown name (with the nearest known one), or an ill-typed value.
    """
    for name, value in given.items():
        if name not in defaults:
            near = difflib.get_close_matches(name, defaults, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else f" It has: {', '.join(defaults) or 'none'}."
            raise ParameterError(f"{where}: unknown parameter {name!r}.{hint}")
        if not _fits(value, defaults[name]):
            raise ParameterError(
                f"{where}: parameter {name!r} must be {_kind(defaults[name])} like {defaults[name]!r}, "
                f"got {_kind(value)} {value!r}."
            )


def _fits(value: object, default: object) -> bool:
    if default is None:
        return True
    if isinstance(default, (list, tuple)):
        return isinstance(value, (list, tuple)) and (
            not default or all(any(_fits(item, known) for known in default) for item in value)
        )
    if type(default) is float:
        return type(value) in (float, int)
    return type(value) is type(default)  # exact, because True is an int to isinstance


def _kind(value: object) -> str:
    return "a list" if isinstance(value, (list, tuple)) else type(value).__name__
