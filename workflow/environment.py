"""Does this interpreter have the pinned packages? Exit status 0 if so. Starts with the standard library alone."""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

UNFINISHED = ".installing"  # run_all.sh leaves this file in an environment until its installation is complete


def missing(requirements: Path) -> list[str]:
    """The pins of a requirements file that this interpreter does not fulfil; a local version (+cpu) is ignored.

    Pins whose environment marker leaves this platform out are not asked for.
    """
    try:
        from packaging.markers import Marker
    except ImportError:
        return ["packaging"]  # one of the pins; without it the others cannot be read
    lines = [line.split("#")[0].strip() for line in requirements.read_text().splitlines()]
    parts = [line.partition(";") for line in lines if line]
    pins = [pin.strip() for pin, _, marker in parts if not marker or Marker(marker.strip()).evaluate()]
    return [pin for pin in pins if _installed(pin.split("==")[0]) != pin.split("==")[1]]


def _installed(package: str) -> str | None:
    try:
        return version(package).split("+")[0]
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    if not (3, 11) <= sys.version_info[:2] <= (3, 13):
        sys.exit(f"Python {sys.version_info.major}.{sys.version_info.minor} is not 3.11, 3.12 or 3.13")
    if (Path(sys.prefix) / UNFINISHED).exists():
        sys.exit("its installation did not finish")
    lacking = missing(Path(__file__).parents[1] / "requirements.txt")
    sys.exit(f"not there: {' '.join(lacking)}" if lacking else 0)
