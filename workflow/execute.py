"""Execute one notebook with papermill: `python -m workflow.execute 20_patch_transfer --profile laptop`.

The executed copy goes to build/PROFILE/NN_slug.ipynb, whole also when a cell fails. The record of the run is written
last, after every declared figure and table was found, and written anew by this run.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

import papermill
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient.exceptions import DeadKernelError

from qpatch.errors import QpatchError
from workflow import profiles, record
from workflow.notebooks import ROOT
from workflow.profiles import Profile
from workflow.say import duration, say

HEARTBEAT = 10.0  # seconds between the lines that say which cell runs


class Kernel(AsyncKernelManager):
    """A kernel of the interpreter that runs this file, whatever kernels the user has installed.

    It inherits the terminal (see `environment`), so that `Run.progress` can write a line past the notebook.
    """

    @property
    def kernel_spec(self) -> KernelSpec:
        command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        return KernelSpec(argv=command, display_name="Python 3", language="python")

    async def start_kernel(self, **options) -> None:
        await super().start_kernel(pass_fds=(int(os.environ["QPATCH_PROGRESS"]),), **options)


def main(arguments: list[str] | None = None) -> int:
    """Execute the notebook and say how it went; the exit status is 0 only if it is complete."""
    parser = argparse.ArgumentParser(prog="python -m workflow.execute", description=__doc__.split("\n")[0])
    parser.add_argument("notebook", help="its name, NN_slug")
    parser.add_argument("--profile", default="laptop")
    parser.add_argument("--retrain", action="store_true")
    options = parser.parse_args(arguments)
    started = time.monotonic()
    try:
        profile = profiles.load(options.profile, options.retrain)
        name = profiles.select(profile.notebooks, options.notebook)
        failure = profile.build / f"{name}.failed"
    except QpatchError as error:
        say(f"error: {error}")
        return 2
    try:
        say(f"{name}  started")
        wrote = execute(profile, name)
    except KeyboardInterrupt:
        say(f"{name}  interrupted")
        return 130
    except Exception as error:  # whatever stops a notebook is told in a few lines, not as our own traceback
        message = describe(error, profile, name)
        say(f"{name}  FAILED after {duration(time.monotonic() - started)}: {message}")
        try:
            record.write_atomic(failure, message)
        except QpatchError:
            pass  # the disk that made the notebook fail takes no message either; it is on the screen
        return 1
    say(f"{name}  done in {duration(time.monotonic() - started)}, wrote {len(wrote)} files to {_short(profile, name)}")
    return 0


def execute(profile: Profile, name: str) -> list[Path]:
    """Run a notebook with the profile's parameters, check what it wrote, and store the record.

    Returns:
        the files that it wrote to its figure folder.

    Raises:
        RuntimeError: a declared figure or table is missing or stale.
        OSError: a folder that cannot be written.
    """
    notebook = profile.notebooks[name]
    figures = profile.figures / name
    executed = profile.build / f"{name}.ipynb"
    partial = profile.build / f".{name}.partial.ipynb"
    marker = profile.build / f".{name}.started"  # the file system's own clock tells which files are newer than the run
    for folder in (figures, profile.build):
        folder.mkdir(parents=True, exist_ok=True)
    (profile.build / f"{name}.failed").unlink(missing_ok=True)
    started = time.monotonic()
    marker.write_text(name)
    environment(profile)
    try:
        papermill.execute_notebook(
            notebook.path, partial, parameters=profile.given[name], cwd=notebook.path.parent, kernel_name="python3",
            language="python", progress_bar=False, kernel_manager_class=Kernel,
            on_cell_start=Heartbeat(name, len(notebook.content["cells"])), stderr_file=Messages(name),
        )
        newest = marker.stat().st_mtime_ns
        wrote = sorted(p for p in figures.iterdir() if p.name[0] != "." and p.stat().st_mtime_ns >= newest)
    finally:
        marker.unlink(missing_ok=True)
        if partial.exists():
            os.replace(partial, executed)
    check_declared(profile, name, wrote)
    record.write(profile, name, time.monotonic() - started, wrote)
    return wrote


def environment(profile: Profile) -> None:
    """Set what the kernel inherits: the profile, threads, folders, and the terminal for progress lines."""
    threads = str(profile.threads)
    terminal = os.dup(sys.stdout.fileno())
    os.environ.update(
        {name: threads for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "QPATCH_THREADS")},
        QPATCH_PROFILE=profile.name,
        QPATCH_FIGURES=str(profile.figures),
        QPATCH_PROGRESS=str(terminal),
        PYTHONHASHSEED="0",
        PYTHONPATH=os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        IPYTHONDIR=str(ROOT / "build" / "ipython"),  # a user's own start-up files must not change a result
        PYDEVD_DISABLE_FILE_VALIDATION="1",
    )


def check_declared(profile: Profile, name: str, wrote: list[Path]) -> None:
    """Check that every declared figure and table is among the files that this run wrote.

    Raises:
        RuntimeError: one is missing, or stale: there, but from an earlier run.
    """
    written = {path.name for path in wrote}
    lacking = [file for file in profile.notebooks[name].figures if file not in written]
    if lacking:
        folder = profile.figures / name
        states = [f"{'stale' if (folder / file).exists() else 'missing'}: {file}" for file in lacking]
        raise RuntimeError(f"declared, but not written by this run: {'; '.join(states)} (in {_short(profile, name)})")


def describe(error: Exception, profile: Profile, name: str) -> str:
    """What stopped a notebook, in a few lines: the failing cell and the last line of its error."""
    computed = f"\n    all that it computed: {(profile.build / name).relative_to(ROOT)}.ipynb"
    if isinstance(error, papermill.PapermillExecutionError):
        cell = "\n".join(f"    | {line}" for line in error.source.splitlines()[:12])
        return f"in code cell {error.exec_count}\n{cell}\n    {error.ename}: {error.evalue.strip()}{computed}"
    if isinstance(error, DeadKernelError):
        return f"its kernel died; often the memory was full: try fewer --jobs{computed}"
    if isinstance(error, OSError):
        place = f" ({os.path.relpath(error.filename, ROOT)})" if error.filename else ""
        return f"{error.strerror or error}{place}: make the folder writable, or free some space, and start again"
    if isinstance(error, (QpatchError, RuntimeError)):
        return str(error)
    return f"{type(error).__name__}: {error}{computed}"


class Messages:
    """Passes on what qpatch tells a user on the error stream of a notebook, such as that a download has begun."""

    def __init__(self, name: str):
        self.name = name

    def write(self, text: str) -> None:
        for line in text.splitlines():
            if line.startswith("qpatch: "):
                say(f"{self.name}  {line.removeprefix('qpatch: ')}")

    def flush(self) -> None:
        """Every line is out already."""


class Heartbeat:
    """Says from time to time which cell runs, so that a long run is seen to live."""

    def __init__(self, name: str, cells: int):
        self.name, self.cells, self.last = name, cells, time.monotonic()

    def __call__(self, cell, cell_index: int) -> None:
        now = time.monotonic()
        if now - self.last > HEARTBEAT:
            self.last = now
            say(f"{self.name}  cell {cell_index + 1} of {self.cells}")


def _short(profile: Profile, name: str) -> str:
    return str((profile.figures / name).relative_to(ROOT))


if __name__ == "__main__":
    sys.exit(main())
