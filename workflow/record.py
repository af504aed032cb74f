"""The record of a complete run: which parameters, how long, and the checksum of every file that it wrote.

It is written last, so a run that failed or was killed has none, and Snakemake runs the notebook again.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from qpatch.store import write_atomic
from workflow.notebooks import ROOT
from workflow.profiles import Profile


def write(profile: Profile, name: str, seconds: float, files: list[Path]) -> None:
    """Store the record of a run that has just ended; `files` lie in the notebook's figure folder."""
    content = {
        "notebook": name,
        "profile": profile.name,
        "parameters": profile.given[name],
        "seconds": round(seconds, 1),
        "wrote": {file.name: checksum(file) for file in files},
    }
    write_atomic(profile.record(name), json.dumps(content, indent=1) + "\n")


def read(profile: Profile, name: str) -> dict | None:
    """The record of the last complete run, or None."""
    try:
        return json.loads(profile.record(name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def problems(profile: Profile, name: str) -> list[str]:
    """What is wrong with the declared figures and tables of a notebook: one line per missing or stale file."""
    record = read(profile, name)
    if record is None:
        return [f"{name} has not run to its end"]
    found = []
    for file in profile.notebooks[name].figures:
        path = profile.figures / name / file
        if not path.exists():
            found.append(f"missing: {path.relative_to(ROOT)}, which {name} declares")
        elif record["wrote"].get(file) != checksum(path):
            found.append(f"stale: {path.relative_to(ROOT)} is not what {name} wrote in its last run")
    return found


def checksum(path: Path) -> str:
    """The sha256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()

