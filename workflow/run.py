"""Run the notebooks through Snakemake and tell what happened: `python -m workflow.run`, which run_all.sh calls."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from argparse import Namespace

import filelock
import psutil

from qpatch.errors import ParameterError, QpatchError
from workflow import cli, profiles, record
from workflow.notebooks import ROOT
from workflow.profiles import Profile
from workflow.say import duration, say


def main(arguments: list[str] | None = None) -> int:
    """The whole command; returns the exit status."""
    options = cli.parse(arguments)
    started = time.monotonic()
    try:
        profile = profiles.load(options.profile, options.retrain)
        names = profile.with_upstream(options.only) if options.only else list(profile.notebooks)
        if not names:
            raise ParameterError("notebooks/ holds no notebook")
        if options.list:
            return list_notebooks(profile, names)
        for name in names:
            profile.notebooks[name].check_sources()  # tells now, in one line, of something that a notebook reads in vain
        if options.check:
            check_tables().require_reference(profile)
        if options.dry_run:
            return dry_run(profile, names, options)
        return run(profile, names, options, started)
    except QpatchError as error:
        print(f"run_all.sh: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        say("\ninterrupted; the same command goes on from here")
        return 130


def run(profile: Profile, names: list[str], options: Namespace, started: float) -> int:
    """Run what is not up to date, then report every figure and table, and every problem."""
    log = profile.build / "snakemake.log"
    try:
        profile.build.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(ROOT / "build" / "run.lock", timeout=0):  # the system frees it when we are killed
            before = {name: _written_at(profile, name) for name in names}
            with open(log, "w") as errors:
                status = _snakemake(snakemake(profile, names, options), errors)
    except filelock.Timeout:
        say("another ./run_all.sh works in this folder; wait for it, or end it")
        return 1
    except OSError as error:
        say(f"cannot write {os.path.relpath(error.filename or log, ROOT)}: {error.strerror}; "
            "make the folder writable, or free some space")
        return 1
    problems = report(profile, names, before)
    if status and not problems:
        said = _last_line(log.read_text(errors="replace"))
        problems.append(f"Snakemake failed: {said} (all of it: {log.relative_to(ROOT)})")
    if options.check and not problems:
        problems += check_tables().compare(profile, names)
    for problem in problems:
        say(f"PROBLEM  {problem}")
    say(f"{'FAILED' if problems else 'complete'} after {duration(time.monotonic() - started)} (profile {profile.name})")
    return 1 if problems else 0


def snakemake(profile: Profile, names: list[str], options: Namespace) -> list[str]:
    """The Snakemake command that brings these notebooks up to date."""
    stale = [name for name in names if profile.record(name).exists() and record.problems(profile, name)]
    jobs = options.jobs or max(1, (os.cpu_count() or 1) // profile.threads)
    return [
        sys.executable, "-m", "snakemake", *(str(profile.record(name).relative_to(ROOT)) for name in names),
        "--snakefile", str(ROOT / "workflow" / "Snakefile"), "--cores", str(jobs * profile.threads),
        "--config", f"profile={profile.name}", f"retrain={options.retrain}",
        # its own lock outlives a kill; ours does not
        "--nolock", "--rerun-incomplete", "--keep-going",
        *(["--forcerun", *(f"run_{name}" for name in stale)] if stale else []),
    ]


def _snakemake(command: list[str], errors) -> int:
    """Run Snakemake to its end. Interrupted or terminated, wait for its jobs to stop: no kernel is left behind."""

    def stop(*_) -> None:
        for child in psutil.Process().children(recursive=True):
            child.send_signal(signal.SIGINT)
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    process = subprocess.Popen(command, cwd=ROOT, stderr=errors)
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.wait()
        raise


def dry_run(profile: Profile, names: list[str], options: Namespace) -> int:
    """Say which notebooks would run, and why."""
    command = [*snakemake(profile, names, options), "--dry-run"]
    result = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if result.returncode:
        say(f"Snakemake failed: {_last_line(result.stdout)}")
        return 1
    planned = dict(re.findall(r"^rule run_(\w+):.*?^ +reason: (.*?)$", result.stdout, re.MULTILINE | re.DOTALL))
    width = max(map(len, names))
    for name in names:
        if name in planned and profile.record(name).exists():
            planned[name] = "; ".join(record.problems(profile, name)) or planned[name]
        say(f"{name:<{width}}  {'would run: ' + _shortened(planned[name]) if name in planned else 'up to date'}")
    return 0


def _shortened(reason: str, shown: int = 3) -> str:
    """The reason with the first few of a long list of files."""
    first, *rest = reason.split(", ")
    return ", ".join([first, *rest[: shown - 1], *([f"and {len(rest) + 1 - shown} more"] if len(rest) >= shown else [])])


def list_notebooks(profile: Profile, names: list[str]) -> int:
    """Print every notebook with its title, parameters in this profile, and what it writes."""
    for name in names:
        notebook = profile.notebooks[name]
        say(f"{name}  {notebook.title}")
        given = ", ".join(f"{key}={value!r}" for key, value in profile.given[name].items())
        say(f"    {profile.name}: {given or 'the defaults stored in the notebook'}")
        for line in _by_stem(notebook.figures):
            say(f"    writes {(profile.figures / name).relative_to(ROOT)}/{line}")
    return 0


def report(profile: Profile, names: list[str], before: dict[str, int]) -> list[str]:
    """Print the table of notebooks and of what they wrote; return the problems."""
    problems = []
    width = max(map(len, names))
    say("")
    for name in names:
        stored, failure = record.read(profile, name), profile.build / f"{name}.failed"
        if stored is None:
            say(f"{name:<{width}}  {'FAILED' if failure.exists() else 'did not run'}")
            first = failure.read_text(encoding="utf-8").strip().splitlines() if failure.exists() else []
            error = [line.strip() for line in first if not line.startswith(("    |", "    all that"))]
            problems.append(f"{name}: {' '.join(error) or 'did not run to its end'}")
            continue
        ran = _written_at(profile, name) != before[name]
        waits = [other for other in profile.notebooks[name].upstream() if record.read(profile, other) is None]
        idle = f"did not run again, for want of {', '.join(waits)}" if waits else "unchanged"
        say(f"{name:<{width}}  {'ran in ' + duration(stored['seconds']) if ran else idle}")
        for line in _by_stem(stored["wrote"]):
            say(f"    {(profile.figures / name).relative_to(ROOT)}/{line}")
        problems += record.problems(profile, name)
        for path in sorted((profile.figures / name).glob("[!.]*")):
            if path.name not in stored["wrote"]:
                say(f"    note: {path.relative_to(ROOT)} is left over from an earlier version")
    say("")
    return problems


def check_tables():
    """The module workflow.check, imported late because pandas takes a while and most runs do not need it."""
    from workflow import check

    return check


def _by_stem(files) -> list[str]:
    """File names with the same stem on one line: `matrix  csv json png`."""
    kinds: dict[str, list[str]] = {}
    for file in files:
        stem, _, kind = file.partition(".")
        kinds.setdefault(stem, []).append(kind)
    return [f"{stem}  {' '.join(sorted(found))}" for stem, found in sorted(kinds.items())]


def _written_at(profile: Profile, name: str) -> int:
    path = profile.record(name)
    return path.stat().st_mtime_ns if path.exists() else 0


def _last_line(output: str) -> str:
    """The last line that is no part of a traceback."""
    lines = [line.strip() for line in output.splitlines() if line.strip() and not line.startswith("  File ")]
    return lines[-1] if lines else "it said nothing"


if __name__ == "__main__":
    sys.exit(main())
