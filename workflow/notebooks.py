"""The notebooks as the graph sees them: what each one reads, and what it must write.

A notebook declares both in its metadata, under `qpatch`:

    {"figures": ["transfer_matrix.csv", "transfer_matrix.png"],      files that it must write, under figures/NN_slug/
     "reads": ["zoo/joint", "zoo", "20_patch_transfer"]}             checkpoints and patches, other notebooks' results

The modules of qpatch that it imports are found in its source.
"""

from __future__ import annotations

import ast
import json
import re
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

from qpatch.errors import ParameterError, one_of

ROOT = Path(__file__).parents[1]
DATA = {".yaml", ".json", ".csv", ".txt"}  # files beside a module that it may read


@dataclass(frozen=True)
class Notebook:
    """One notebook of notebooks/, known by its name `NN_slug`."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def number(self) -> str:
        return self.name[:2]

    @cached_property
    def content(self) -> dict:
        return json.loads(self.path.read_text(encoding="utf-8"))

    @property
    def figures(self) -> tuple[str, ...]:
        return tuple(self.content["metadata"].get("qpatch", {}).get("figures", []))

    @property
    def reads(self) -> tuple[str, ...]:
        return tuple(self.content["metadata"].get("qpatch", {}).get("reads", []))

    @property
    def title(self) -> str:
        text = "".join(self.content["cells"][0]["source"]) if self.content["cells"] else ""
        heading = re.search(r"^#+\s*(.+)$", text, re.MULTILINE)
        return heading.group(1) if heading else ""

    @property
    def code(self) -> str:
        """The source of all code cells; magics and shell lines are left out."""
        cells = ["".join(c["source"]) for c in self.content["cells"] if c["cell_type"] == "code"]
        return "\n".join(re.sub(r"^\s*[%!].*$", "", source, flags=re.MULTILINE) for source in cells)

    def upstream(self) -> list[str]:
        """The names of the notebooks whose results this one reads."""
        return [entry.split("/")[0] for entry in self.reads if entry.split("/")[0] != "zoo"]

    def sources(self) -> list[Path]:
        """The files that, when edited, make this notebook run again; without the results of other notebooks.

        What it declares to read from the zoo is among them also if it is not there, so that Snakemake misses it.
        """
        files = {self.path, *_closure(self.code), ROOT / "requirements.txt"}
        zoo = ROOT / "qpatch" / "zoo"
        for entry in self.reads:
            if entry.split("/")[0] == "zoo":
                pattern = f"{entry[4:]}.*" if "/" in entry else "*"
                found = [p for p in zoo.rglob(pattern) if p.is_file() and "__pycache__" not in p.parts]
                files.update(found or [zoo / entry[4:]])
        return sorted(files)

    def check_sources(self) -> None:
        """Check that all it reads is there.

        Raises:
            ParameterError: it declares to read something from the zoo that is not there.
        """
        for path in self.sources():
            if not path.exists():
                raise ParameterError(f"{self.name} declares that it reads zoo/{path.name}, which qpatch/ does not hold.")


def discover() -> dict[str, Notebook]:
    """All notebooks by name, in reading order.

    Raises:
        ParameterError: one of them reads the results of a notebook that does not exist.
    """
    found = {path.stem: Notebook(path) for path in sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))}
    for notebook in found.values():
        for name in notebook.upstream():
            one_of(name, found, f"notebook read by {notebook.name}")
    return found


def _closure(code: str) -> set[Path]:
    """All files of qpatch that this source reaches through imports, and the data files that lie beside them."""
    seen: set[Path] = set()
    waiting = [module for name in _imports(ast.parse(code), []) for module in _files(name)]
    while waiting:
        path = waiting.pop()
        if path not in seen:
            seen.add(path)
            waiting += _imported_by(path)
    beside = {p for path in seen for p in path.parent.iterdir() if p.suffix in DATA and path.parent.name != "zoo"}
    return seen | beside


@lru_cache(maxsize=None)
def _imported_by(path: Path) -> list[Path]:
    package = list(path.relative_to(ROOT).parts[:-1])
    names = _imports(ast.parse(path.read_text(encoding="utf-8")), package)
    return [file for name in names for file in _files(name)]


def _imports(tree: ast.AST, package: list[str]) -> set[str]:
    """Dotted names that a module may import, `from a import b` counting as both `a` and `a.b`."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            start = ".".join([*base, *([node.module] if node.module else [])])
            names.update([start, *(f"{start}.{alias.name}" for alias in node.names)])
    return names


def _files(name: str) -> list[Path]:
    """The files that importing this dotted name runs: every package on the way, and the module itself."""
    parts = name.split(".")
    if parts[0] != "qpatch":
        return []
    steps = [ROOT.joinpath(*parts[: n + 1]) for n in range(len(parts))]
    return [file for step in steps for file in (step / "__init__.py", step.with_suffix(".py")) if file.exists()]
