"""Saving figures and tables: png and svg, csv, tex and html, with one JSON sidecar per name.

The same result gives the same bytes: no file carries a date. The sidecar NAME.json has a section "figure", a section
"table", or both, each with its caption and the sha256 of its files; and once, where they come from: notebook, profile,
parameters, versions. Its key and bands say how far a new run may be from the stored table (`./run_all.sh --check`).
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

from qpatch.errors import InputError, ParameterError
from qpatch.report.tables import csv_text, html_page, html_table, latex_table
from qpatch.store import write_atomic

MAX_PNG_BYTES = 150_000
COMPARED = ("key", "bands")  # at the top level of a sidecar: what a check needs to compare two runs of a table
DPIS = (200, 160, 130, 110, 90, 75)


def save_figure(run, name: str, figure: Figure, *, caption: str, data: pd.DataFrame | None = None,
                bands: Mapping[str, float] | None = None, key: Sequence[str] | None = None,
                fingerprints: Mapping[str, str] | None = None) -> list[Path]:
    """Save a figure as NAME.png (at most 150 kB, at the highest resolution that fits) and NAME.svg, and close it.

    Args:
        run: the notebook's Run: name, profile, parameters, versions and figures (the folder) are read.
        name: file name without an ending: letters, digits, "-" and "_".
        caption: one sentence that says what is seen; it is also the pictures' description for screen readers.
        data: the numbers behind the figure; they are saved as NAME.csv, see `save_table` for `bands` and `key`.
        fingerprints: of the data sets and networks behind it, by name; they go into the sidecar.

    Returns:
        the paths of what was written, sidecar last.

    Raises:
        ParameterError: a name that is no file name.
        InputError: the picture cannot be brought under 150 kB, or malformed `data`.
        StoreError: the folder cannot be written or the disk is full.
    """
    _check_name(name)
    contents = {"png": _png(figure, name, caption), "svg": _svg(figure, name, caption)}
    plt.close(figure)
    written = _write(run, name, contents)
    _sidecar(run, name, "figure", {"caption": caption, "fingerprints": dict(fingerprints or {})}, contents)
    if data is not None:
        table, section = {"csv": csv_text(data).encode()}, _described(data, caption, bands, key, fingerprints)
        written += _write(run, name, table)
        _sidecar(run, name, "table", section, table)
    return [*written, run.figures / f"{name}.json"]


def save_table(run, name: str, frame: pd.DataFrame, *, caption: str, key: Sequence[str] | None = None,
               bands: Mapping[str, float] | None = None, show: Sequence[str] | None = None,
               fingerprints: Mapping[str, str] | None = None) -> list[Path]:
    """Save a table as NAME.csv, NAME.tex (booktabs) and NAME.html.

    Args:
        run: as for `save_figure`.
        name: as for `save_figure`; a figure of the same name shares the sidecar.
        frame: the table; its index is not saved.
        caption: one sentence that says what is in it.
        key: the columns that identify a row, by which a check pairs rows of two runs.
        bands: column → largest absolute difference between two runs that a check accepts in it; a table without any
            must repeat byte for byte.
        show: the columns of NAME.tex and NAME.html, by default all.
        fingerprints: as for `save_figure`.

    Returns:
        the paths of what was written, sidecar last.

    Raises:
        ParameterError: a name that is no file name.
        InputError: `key`, `bands` or `show` name columns that are not there, or `key` does not identify rows.
        StoreError: the folder cannot be written or the disk is full.
    """
    _check_name(name)
    section = _described(frame, caption, bands, key, fingerprints)
    _check_columns(frame, show or (), "show")
    shown = frame[list(show)] if show else frame
    contents = {
        "csv": csv_text(frame).encode(),
        "tex": latex_table(shown, caption, name).encode(),
        "html": html_page(caption, html_table(shown, caption)).encode(),
    }
    written = _write(run, name, contents)
    _sidecar(run, name, "table", section, contents)
    return [*written, run.figures / f"{name}.json"]


def _png(figure: Figure, name: str, caption: str) -> bytes:
    """The sharpest png under the limit; photographs that are too large at every resolution get a palette."""
    metadata = {"Software": None, "Description": caption}
    for dpi in DPIS:
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=dpi, metadata=metadata)
        if buffer.tell() <= MAX_PNG_BYTES:
            return buffer.getvalue()
    picture, buffer = Image.open(buffer).convert("RGB").quantize(256), io.BytesIO()
    picture.save(buffer, "png", optimize=True)
    if buffer.tell() > MAX_PNG_BYTES:
        raise InputError(f"figure {name!r} is {buffer.tell() // 1000} kB as a png and may have 150; show fewer images.")
    return buffer.getvalue()


def _svg(figure: Figure, name: str, caption: str) -> bytes:
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Description": caption})
    return buffer.getvalue()


def _described(frame: pd.DataFrame, caption: str, bands: Mapping[str, float] | None, key: Sequence[str] | None,
               fingerprints: Mapping[str, str] | None) -> dict:
    bands, key = dict(bands or {}), list(key or [])
    _check_columns(frame, bands, "bands")
    _check_columns(frame, key, "key")
    if key and frame.duplicated(key).any():
        raise InputError(f"the key {', '.join(key)} does not identify the rows of the table: some rows share it.")
    return {"caption": caption, "fingerprints": dict(fingerprints or {}), "rows": len(frame),
            "columns": list(map(str, frame.columns)), "key": key, "bands": bands}


def _check_columns(frame: pd.DataFrame, columns, what: str) -> None:
    if absent := [c for c in columns if c not in frame.columns]:
        raise InputError(f"{what} names columns that the table lacks: {', '.join(absent)}.")


def _check_name(name: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
        raise ParameterError(f"{name!r} cannot name a figure; use letters, digits, '-' and '_', and no ending.")


def _write(run, name: str, contents: dict[str, bytes]) -> list[Path]:
    paths = [Path(run.figures) / f"{name}.{kind}" for kind in contents]
    for path, content in zip(paths, contents.values()):
        write_atomic(path, content)
    return paths


def _sidecar(run, name: str, kind: str, section: dict, contents: dict[str, bytes]) -> None:
    """Write the section `kind` of the sidecar; the other section stays if it is from the same run and its files are."""
    path = Path(run.figures) / f"{name}.json"
    origin = json.loads(json.dumps({"name": name, "notebook": run.name, "profile": run.profile,
                                    "parameters": run.parameters, "versions": run.versions}, default=_plain))
    sections = {other: _kept(path, origin, other) for other in ("figure", "table")}
    hashes = {ending: hashlib.sha256(content).hexdigest() for ending, content in contents.items()}
    sections[kind] = {**section, "files": hashes}
    table = sections["table"] or {}
    compared = {field: table.pop(field) for field in COMPARED if field in table}
    text = json.dumps({**origin, **compared, **{k: v for k, v in sections.items() if v}}, indent=1, ensure_ascii=False,
                      default=_plain)
    write_atomic(path, text + "\n")


def _kept(path: Path, origin: dict, kind: str) -> dict | None:
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        section = stored[kind] | ({field: stored[field] for field in COMPARED} if kind == "table" else {})
        files = {e: hashlib.sha256(path.with_suffix(f".{e}").read_bytes()).hexdigest() for e in section["files"]}
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return section if files == section["files"] and all(stored.get(k) == v for k, v in origin.items()) else None


def _plain(value):
    """A path, numpy number or tuple-like as JSON has it."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Path):
        return value.name
    raise TypeError(f"{type(value).__name__} cannot be stored in a sidecar")
