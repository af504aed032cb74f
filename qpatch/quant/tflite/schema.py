"""TFLite's flatbuffer schema, from whichever interpreter package is installed."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from types import ModuleType

from qpatch.errors import DataError

_HOMES = ("ai_edge_litert.schema_py_generated", "tflite_micro.tensorflow.lite.micro.python.schema_py_generated")


@cache
def schema() -> ModuleType:
    """The generated module with one class per table of the schema.

    Raises:
        DataError: neither package that carries it is installed.
    """
    for home in _HOMES:
        try:
            return import_module(home)
        except ImportError:
            continue
    raise DataError("reading and writing .tflite needs the package ai-edge-litert (or tflite-micro); pip install one.")


@cache
def names(enumeration: str) -> dict[int, str]:
    """Number to name, for an enumeration of the schema such as "BuiltinOperator"."""
    members = vars(getattr(schema(), enumeration))
    return {value: name for name, value in members.items() if not name.startswith("_")}


@cache
def numbers(enumeration: str) -> dict[str, int]:
    """Name to number, for an enumeration of the schema."""
    return {name: value for value, name in names(enumeration).items()}
