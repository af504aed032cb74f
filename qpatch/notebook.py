"""The one call with which every notebook starts: checked parameters, seeds, threads, and where figures go."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import random
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

import qpatch
from qpatch import parameters
from qpatch.allocator import keep_freed_memory
from qpatch.errors import ParameterError

ROOT = Path(qpatch.__file__).parents[1]
INJECTED = "# Parameters"  # the first line of the cell that papermill adds after the parameters cell
PACKAGES = ("torch", "timm", "numpy", "pandas")


@dataclass(frozen=True)
class Run:
    """What a notebook knows of its own run.

    Attributes:
        name: of the notebook, NN_slug.
        profile: smoke (the stored defaults), laptop or paper.
        parameters: the values in force, by name.
        seed: its parameter `seed`, or 0.
        threads: that torch uses; results are reproducible for a given number.
        figures: folder of this notebook's figures and tables.
        versions: of Python and of the packages that make the numbers.
    """

    name: str
    profile: str
    parameters: dict[str, Any]
    seed: int
    threads: int
    figures: Path
    versions: dict[str, str]

    def generator(self, offset: int = 0) -> torch.Generator:
        """A fresh generator, seeded with the run's seed plus `offset`."""
        return torch.Generator().manual_seed(self.seed + offset)

    def progress(self, items: Iterable, label: str = "") -> Iterator:
        """Go through `items` and show how far: a bar in Jupyter, lines in run_all.sh, nothing in tests."""
        mode = os.environ.get("QPATCH_PROGRESS", "bar")
        if mode == "bar":
            return iter(tqdm(items, desc=label, leave=False))
        return iter(items) if mode == "off" else _lines(items, f"{self.name}  {label}", int(mode))

    def save_table(self, name: str, frame, **options):
        """Save a table to this notebook's figure folder, see `qpatch.report.figures.save_table`."""
        from qpatch.report import figures  # loads matplotlib, which not every notebook needs at its start

        return figures.save_table(self, name, frame, **options)

    def save_figure(self, name: str, figure, **options):
        """Save a figure to this notebook's figure folder, see `qpatch.report.figures.save_figure`."""
        from qpatch.report import figures

        return figures.save_figure(self, name, figure, **options)


def start(name: str, namespace: dict[str, Any]) -> Run:
    """Check the parameters of a notebook, seed everything, and print one line that says what runs.

    The environment, which run_all.sh sets, chooses the profile; without it this is the smoke profile, and figures go
    to build/smoke/figures, away from the reference set.

    Args:
        name: of the notebook file, without `.ipynb`.
        namespace: the notebook's `globals()`, after its parameters cell.

    Raises:
        ParameterError: unknown or ill-typed parameters, or no stored notebook of this name to check them against.
    """
    defaults = parameters.declared(_stored(name))
    for source in namespace.get("In", []):
        if source.startswith(INJECTED):
            parameters.check(defaults, parameters.literals(source, name), name)
    undefined = [parameter for parameter in defaults if parameter not in namespace]
    if undefined:
        raise ParameterError(f"{name}: {', '.join(undefined)} not defined; run the parameters cell first.")
    values = {parameter: namespace[parameter] for parameter in defaults}
    parameters.check(defaults, values, name)

    profile = os.environ.get("QPATCH_PROFILE", "smoke")
    folder = Path(os.environ.get("QPATCH_FIGURES", ROOT / "build" / "smoke" / "figures")) / name
    folder.mkdir(parents=True, exist_ok=True)
    threads = int(os.environ.get("QPATCH_THREADS", 2))
    seed = values.get("seed", 0)
    make_deterministic(seed, threads)
    keep_freed_memory()
    versions = {"python": platform.python_version(), "qpatch": qpatch.__version__}
    versions |= {package: importlib.metadata.version(package) for package in PACKAGES}
    run = Run(name, profile, values, seed, threads, folder, versions)
    print(f"{name} · profile {profile} · seed {seed} · {threads} threads · "
          + " · ".join(f"{package} {version}" for package, version in versions.items()))
    return run


def make_deterministic(seed: int, threads: int) -> None:
    """Seed every generator, fix the number of threads, and let torch choose deterministic algorithms.

    Where torch has none (some backward passes on a GPU) it warns.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS needs to be deterministic
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # a debugging aid that costs time
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def _stored(name: str) -> Path:
    for folder in (Path.cwd(), ROOT / "notebooks"):
        if (folder / f"{name}.ipynb").exists():
            return folder / f"{name}.ipynb"
    raise ParameterError(f"no notebook {name}.ipynb here or in notebooks/; start() takes the name without .ipynb.")


def _lines(items: Iterable, label: str, terminal: int, every: float = 5.0) -> Iterator:
    """Yield the items and write a line to the file descriptor `terminal` every few seconds."""
    items = items if hasattr(items, "__len__") else list(items)
    total = len(items)
    started = last = time.monotonic()
    for done, item in enumerate(items):
        now = time.monotonic()
        if now - last >= every:
            last = now
            left = (now - started) * (total - done) / max(done, 1)
            os.write(terminal, f"{label} {done} of {total}, about {left:.0f} s left\n".encode())
        yield item
