"""The whole laptop run in a fresh clone with an empty cache: cold, again, and after an edit of one notebook.

It takes as long as that run, so it runs only when it is named. The environment is there already, and CIFAR-10 comes from
QPATCH_DATA if that is set; neither is measured.

    ./run_all.sh bench laptop_run
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks._harness import AT_MOST, ROOT, main, versions
from qpatch.errors import StoreError

COLD, WARM = 25 * 60, 20  # seconds
NOTEBOOK = "notebooks/00_start_here.ipynb"


def measure(smoke: bool) -> list[dict]:
    options = ["--dry-run"] if smoke else []
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "qpatch"
        subprocess.run(["git", "clone", "--quiet", "--depth", "1", ROOT.as_uri(), clone], check=True)
        place = os.environ | {"QPATCH_CACHE": str(Path(folder) / "cache"), "VIRTUAL_ENV": sys.prefix, "PYTHONPATH": str(clone)}
        rows = [_row("cold", COLD, _run(clone, place, options)), _row("warm", WARM, _run(clone, place, options))]
        touch(clone / NOTEBOOK)
        return [*rows, _row("one notebook touched", None, _run(clone, place, options))]


def touch(notebook: Path) -> None:
    """Edit a notebook: its first code cell after the parameters gets one more line, a comment."""
    content = json.loads(notebook.read_text(encoding="utf-8"))
    cell = [cell for cell in content["cells"] if cell["cell_type"] == "code"][1]
    cell["source"] = [*"".join(cell["source"]).splitlines(keepends=True), "\n# touched"]
    notebook.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _run(clone: Path, place: dict[str, str], options: list[str]) -> float:
    started = time.perf_counter()
    done = subprocess.run([clone / "run_all.sh", *options], cwd=clone, env=place, capture_output=True, text=True)
    if done.returncode:
        raise StoreError(f"the laptop run failed: {(done.stderr or done.stdout).strip().splitlines()[-1]}")
    return time.perf_counter() - started


def _row(case: str, limit: float | None, seconds: float) -> dict:
    """The ratio is the time over its limit; without a limit only the seconds count."""
    found = {"case": f"laptop run, {case}", "rule": AT_MOST, "n": 1, "seconds": seconds, "versions": versions(),
             "note": f"{seconds:.0f} s"}  # fmt: skip
    if limit is None:
        return found | {"against": "no limit"}
    return found | {"against": f"{limit:,} s", "bound": 1.0, "ratio": seconds / limit}


if __name__ == "__main__":
    raise SystemExit(main("laptop_run", __doc__, measure))
