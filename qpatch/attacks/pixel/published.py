"""Paper C's attack parameters: the one table, in published.yaml, that the attacks read and the notebooks print."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

import pandas as pd
import yaml

from qpatch.errors import one_of

TASKS = ("cifar10", "vww", "coffee")


@cache
def _source() -> dict[str, dict[str, dict]]:
    return yaml.safe_load(files("qpatch.attacks.pixel").joinpath("published.yaml").read_text(encoding="utf-8"))


def published(attack: str, task: str = "cifar10", **overrides) -> dict[str, object]:
    """The parameters with which paper C ran an attack on a task.

    Args:
        attack: one of the twelve names of `qpatch.attacks.pixel.ATTACKS`.
        task: "cifar10", "vww" or "coffee".
        overrides: values to take instead of the published ones.

    Raises:
        ParameterError: no such attack, task or parameter; the message has the nearest name.
    """
    one_of(task, TASKS, "task")
    known = _source()[one_of(attack, _source(), "attack")]
    for name in overrides:
        one_of(name, known, f"parameter of {attack}")
    return {name: _of_task(entry["value"], task) for name, entry in known.items()} | overrides


def published_table() -> pd.DataFrame:
    """All parameters of all attacks: one row each, with a column per task, where the value stands, and a note."""
    return pd.DataFrame([
        {"attack": attack, "parameter": name, **{task: _of_task(entry["value"], task) for task in TASKS},
         "set_by": entry["set_by"], "note": entry.get("note", "")}
        for attack, parameters in _source().items() for name, entry in parameters.items()
    ])  # fmt: skip


def _of_task(value: object, task: str) -> object:
    return value[task] if isinstance(value, dict) else value
