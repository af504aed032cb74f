"""One set of pins: requirements.txt, environment.yml and the lock file agree, and the lock is complete."""

import re
import subprocess
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from workflow import environment

ROOT = Path(__file__).parents[1]


def requirements(name: str) -> list[Requirement]:
    lines = [line.split("#")[0].strip() for line in (ROOT / name).read_text().splitlines()]
    return [Requirement(line) for line in lines if line]


def pins(name: str) -> dict[str, str]:
    return {canonicalize_name(r.name): str(r.specifier) for r in requirements(name)}


def test_every_direct_dependency_is_pinned():
    assert all(re.fullmatch(r"==[\w.]+", pin) for pin in pins("requirements.txt").values())


def test_conda_environment_has_the_same_pins():
    content = yaml.safe_load((ROOT / "environment.yml").read_text())
    (pip,) = [entry["pip"] for entry in content["dependencies"] if isinstance(entry, dict)]
    lines = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if not line.startswith("#")]
    assert pip == lines


def test_lock_holds_the_pins_and_nothing_of_one_machine():
    lock = pins("requirements.lock.txt")
    direct = pins("requirements.txt")
    assert {name: lock.get(name) for name in direct} == direct
    text = (ROOT / "requirements.lock.txt").read_text()
    assert not re.search(r"\+cpu|://| @ |^-|/", text, re.MULTILINE)


def test_the_benchmarks_peers_are_pinned_and_replace_nothing():
    peers = pins("benchmarks/requirements.txt")
    assert all(re.fullmatch(r"==[\w.]+", pin) for pin in peers.values())
    assert not peers.keys() & pins("requirements.lock.txt").keys()


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
@pytest.mark.parametrize(("system", "platform"), [("Linux", "linux"), ("Darwin", "darwin")])
def test_lock_is_complete_on(system, platform, python):
    """Whatever a locked package needs on this platform is locked too; torch's CUDA packages are pinned by torch."""
    marks = default_environment() | {
        "platform_system": system, "sys_platform": platform, "python_version": python,
        "python_full_version": f"{python}.9", "extra": "",
    }
    applies = [r for r in requirements("requirements.lock.txt") if r.marker is None or r.marker.evaluate(marks)]
    locked = {canonicalize_name(r.name): r for r in applies}
    needed = {}
    for name in locked:
        try:
            needs = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue  # for another platform
        for need in map(Requirement, needs):
            if need.marker is None or need.marker.evaluate(marks):
                needed[canonicalize_name(need.name)] = (name, need)
    lacking = {name: who for name, (who, _) in needed.items() if name not in locked and who != "torch"}
    assert not lacking
    for name, (who, need) in needed.items():
        if name in locked:
            version = str(locked[name].specifier).removeprefix("==")
            assert need.specifier.contains(version, prereleases=True), f"{who} needs {need}, locked is {version}"


def test_missing_pins_are_found(tmp_path):
    file = tmp_path / "requirements.txt"
    elsewhere = 'not-here-either==1.0; sys_platform == "nowhere"'
    file.write_text(f"# pins\nnot-there==1.0\n{elsewhere}\npytest==0.1\npackaging=={metadata.version('packaging')}  # tests\n")
    assert environment.missing(file) == ["not-there==1.0", "pytest==0.1"]


def test_shell_answers_a_mistake_with_one_line_and_status_2():
    result = subprocess.run([ROOT / "run_all.sh", "--profile", "huge"], capture_output=True, text=True)
    assert result.returncode == 2
    assert "unknown profile 'huge'" in result.stderr and len(result.stderr.splitlines()) == 1


def test_shell_help_names_every_command():
    result = subprocess.run([ROOT / "run_all.sh", "--help"], capture_output=True, text=True)
    assert result.returncode == 0
    for word in ("--profile", "--only", "--list", "--dry-run", "--jobs", "--retrain", "--check", "test", "bench"):
        assert word in result.stdout
