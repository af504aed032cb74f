"""The command line of run_all.sh. Needs the standard library alone: it is asked before anything is installed."""

from __future__ import annotations

import argparse
import difflib
import sys
from pathlib import Path

HERE = Path(__file__).parent
EXAMPLES = """commands:
  ./run_all.sh                      environment, data, all notebooks, all figures and tables
  ./run_all.sh --only 20 21         two notebooks, and those whose results they read
  ./run_all.sh test [pytest args]   unit tests and notebook tests
  ./run_all.sh bench [NAME ...]     the speed comparisons in benchmarks/: those named, or all but laptop_run

A run that was interrupted goes on where it stopped; an unchanged one finishes in seconds; after an edit only what
depends on it runs again. Exit status: 0 all is well, 1 a notebook failed or a figure or table is missing, stale or
out of its band, 2 the command or a parameter is wrong."""


class Parser(argparse.ArgumentParser):
    """Answers a mistake with one line."""

    def error(self, message: str) -> None:
        print(f"run_all.sh: {message} (./run_all.sh --help shows all options)", file=sys.stderr)
        raise SystemExit(2)


def chosen(value: str, allowed: list[str], what: str) -> str:
    """`value`, if it is one of `allowed`; otherwise an error that lists them."""
    if value in allowed:
        return value
    near = difflib.get_close_matches(value, allowed, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise argparse.ArgumentTypeError(f"unknown {what} {value!r}, choose from {', '.join(allowed) or 'none'}{hint}")


def profile(value: str) -> str:
    return chosen(value, sorted(path.stem for path in (HERE / "profiles").glob("*.yaml")), "profile")


def notebook(value: str) -> str:
    names = sorted(path.stem for path in (HERE.parent / "notebooks").glob("[0-9][0-9]_*.ipynb"))
    by_number = {name[:2]: name for name in names}
    return by_number.get(value) or chosen(value, names, "notebook")


def positive(value: str) -> int:
    if not value.isdecimal() or int(value) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number above 0, got {value!r}")
    return int(value)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse and check a command line; ends the process with status 2 and one line if it is wrong."""
    parser = Parser(
        prog="run_all.sh", description="Run the notebooks, and make all figures and tables.", epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
    )
    parser.add_argument("--profile", type=profile, default="laptop", help="smoke, laptop (default) or paper")
    parser.add_argument("--only", type=notebook, nargs="+", metavar="NN", default=[], help="only these notebooks")
    parser.add_argument("--list", action="store_true", help="list the notebooks and what they write, run nothing")
    parser.add_argument("--dry-run", action="store_true", help="say what would run, and why")
    parser.add_argument("--jobs", type=positive, metavar="N", help="notebooks at a time (default: cores / threads)")
    parser.add_argument("--retrain", action="store_true", help="make networks and patches again, not from the zoo")
    parser.add_argument("--check", action="store_true", help="compare the tables with the committed reference")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    parse()
