"""A profile: the parameters with which each notebook runs, where its figures go, and how many threads it gets.

    threads: 2                      # torch threads of each notebook; results are reproducible for a given number
    figures: figures                # folder, relative to the repository
    all: {seed: 0}                  # parameters for every notebook that declares them
    notebooks: {"20": {n: 1000}}    # parameters for one notebook, by its number or name
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml

from qpatch import parameters
from qpatch.errors import ParameterError, one_of
from workflow.notebooks import ROOT, Notebook, discover

FOLDER = Path(__file__).parent / "profiles"
KEYS = ("threads", "figures", "all", "notebooks")


@dataclass(frozen=True)
class Profile:
    """A loaded profile; `given` holds the checked parameters of each notebook by name."""

    name: str
    threads: int
    figures: Path
    given: dict[str, dict[str, object]]
    notebooks: dict[str, Notebook]

    @property
    def build(self) -> Path:
        """Folder of the executed copies and of the records of what ran."""
        return ROOT / "build" / self.name

    def record(self, name: str) -> Path:
        """The record of the last complete run of a notebook; Snakemake's one output per notebook."""
        return self.build / f"{name}.json"

    def with_upstream(self, names: list[str]) -> list[str]:
        """These notebooks and all whose results they need, in reading order."""
        needed = list(names)
        for name in needed:
            needed += [other for other in self.notebooks[name].upstream() if other not in needed]
        return [name for name in self.notebooks if name in needed]


def load(name: str, retrain: bool = False) -> Profile:
    """Read workflow/profiles/NAME.yaml and check every parameter in it against the notebooks.

    Args:
        name: smoke, laptop or paper.
        retrain: give `retrain=True` to every notebook that declares this parameter.

    Raises:
        ParameterError: unknown profile, notebook, key or parameter; an ill-typed value.
    """
    one_of(name, sorted(path.stem for path in FOLDER.glob("*.yaml")), "profile")
    where = f"profile {name}"
    try:
        content = yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise ParameterError(f"{where} is not valid YAML: {' '.join(str(error).split())}.") from None
    for key in content:
        one_of(key, KEYS, f"key of {where}")
    threads = content.get("threads", 2)
    if type(threads) is not int or threads < 1:
        raise ParameterError(f"{where}: threads must be a whole number above 0, got {threads!r}.")
    notebooks = discover()
    defaults = {notebook.name: parameters.declared(notebook.path) for notebook in notebooks.values()}
    common = content.get("all") or {}
    known = {key: value for values in defaults.values() for key, value in values.items()}
    parameters.check(known, common, f"{where}, all")
    given = {n: {k: v for k, v in common.items() if k in values} for n, values in defaults.items()}
    for key, values in (content.get("notebooks") or {}).items():
        given[select(notebooks, key)].update(values or {})
    for notebook, values in given.items():
        if retrain and "retrain" in defaults[notebook]:
            values["retrain"] = True
        parameters.check(defaults[notebook], values, f"{where}, notebook {notebook}")
    figures = ROOT / content.get("figures", f"build/{name}/figures")
    return Profile(name, threads, figures, given, notebooks)


def select(notebooks: dict[str, Notebook], key: object) -> str:
    """The name of the notebook that a number ("20", 20) or a name ("20_patch_transfer") stands for.

    Raises:
        ParameterError: there is no such notebook.
    """
    text = f"{key:02d}" if isinstance(key, int) else str(key)
    numbers = {notebook.number: name for name, notebook in notebooks.items()}
    return numbers[text] if text in numbers else one_of(text, notebooks, "notebook")
