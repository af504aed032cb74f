"""Regenerated tables against the committed reference, within the bands that each table declares.

The JSON file beside a table says what may differ: {"key": ["attack", "source_bits"], "bands": {"asr": 0.03}}.
Rows are matched by the key columns; a column with a band may move by that much (0.03 is three points of a rate).
A table without bands must be the same, byte for byte. The reference is the one in the last commit.
"""

from __future__ import annotations

import io
import json
import subprocess

import pandas as pd

from qpatch.errors import ParameterError
from workflow.notebooks import ROOT
from workflow.profiles import Profile
from workflow.say import say


def require_reference(profile: Profile) -> None:
    """Check that there is something to compare with.

    Raises:
        ParameterError: the profile does not write to figures/, or the folder is not a git checkout with a commit.
    """
    if profile.figures != ROOT / "figures":
        raise ParameterError(f"--check is for the profile that renews figures/; {profile.name} writes elsewhere.")
    if _git("rev-parse", "--verify", "HEAD") is None:
        raise ParameterError("--check compares with the last commit, and this folder is not a git checkout with one.")


def compare(profile: Profile, names: list[str]) -> list[str]:
    """Compare every table that these notebooks declare; prints one line per table, returns the problems."""
    problems = []
    for name in names:
        for file in profile.notebooks[name].figures:
            if file.endswith(".csv"):
                found = compare_table((profile.figures / name / file).relative_to(ROOT).as_posix())
                say(f"check  {name}/{file}: {found[0] if found else 'within its bands'}")
                problems += [f"{name}/{file}: {problem}" for problem in found]
    return problems


def compare_table(path: str) -> list[str]:
    """What differs between a table and its committed reference, beyond its bands.

    Args:
        path: of the CSV, relative to the repository.
    """
    reference = _git("show", f"HEAD:{path}")
    if reference is None:
        return ["no committed reference; commit the table first"]
    now = (ROOT / path).read_bytes()
    sidecar = _git("show", f"HEAD:{path.removesuffix('.csv')}.json")
    declared = json.loads(sidecar) if sidecar else {}
    bands, key = declared.get("bands") or {}, declared.get("key") or []
    if not bands:
        return [] if now == reference else ["differs from the reference, and declares no bands"]
    return differences(pd.read_csv(io.BytesIO(reference)), pd.read_csv(io.BytesIO(now)), key, bands)


def differences(old: pd.DataFrame, new: pd.DataFrame, key: list[str], bands: dict[str, float]) -> list[str]:
    """What differs between two tables: columns, rows, and for each banded column its worst row out of band."""
    lacking = [c for c in [*key, *bands] if c not in old.columns or c not in new.columns]
    if lacking:
        return [f"column {column!r}, of its key or bands, is not in both tables" for column in lacking]
    if not key:
        old, new, key = old.assign(row=range(len(old))), new.assign(row=range(len(new))), ["row"]
    old, new = old.set_index(key).sort_index(), new.set_index(key).sort_index()
    if not old.index.is_unique or not new.index.is_unique:
        return [f"its key {key} does not tell its rows apart"]
    if not old.index.equals(new.index):
        gone, come = len(old.index.difference(new.index)), len(new.index.difference(old.index))
        return [f"its rows differ: {gone} of the reference are gone, {come} are new"]
    found = []
    for column, band in bands.items():
        moved = (new[column] - old[column]).abs()
        moved[old[column].isna() != new[column].isna()] = float("inf")
        out = moved[moved > band + 1e-12]
        if len(out):
            worst = out.idxmax()
            found.append(
                f"{column} is out of its band of {band} in {len(out)} of {len(old)} rows; "
                f"worst at {dict(zip(key, worst if isinstance(worst, tuple) else (worst,)))}: "
                f"{old.loc[worst, column]:.4g} became {new.loc[worst, column]:.4g}"
            )
    return found


def _git(*arguments: str) -> bytes | None:
    """The output of a git command in the repository, or None if it fails."""
    try:
        result = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True)
    except OSError:
        return None
    return result.stdout if result.returncode == 0 else None
