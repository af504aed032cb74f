"""The runner, on a small project: what runs when, what it says, and how it ends. The tests share one build folder."""

import os
import signal
import subprocess
from pathlib import Path

import filelock
import pandas as pd
import pytest
from workflow_project import REPOSITORY, Project, write_notebook

from qpatch.errors import ParameterError
from workflow import check, cli, notebooks


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Project:
    return Project(tmp_path_factory.mktemp("project"))


def wait_for(process: subprocess.Popen, line: str) -> str:
    """Read what a process prints until a line starts like this one."""
    read = ""
    for text in process.stdout:
        read += text
        if text.startswith(line):
            return read
    raise AssertionError(f"{line!r} never came:\n{read}")


def test_list_and_dry_run_before_anything_ran(project):
    status, output = project.run("--list", "--retrain")
    assert status == 0
    assert "01_make  The title" in output
    assert "laptop: retrain=True" in output
    assert "writes figures/01_make/made  csv tex" in output

    status, output = project.run("--dry-run", "--only", "02")
    assert status == 0, output
    assert "01_make  would run" in output  # because 02 reads its results
    assert "02_read  would run" in output
    assert not (project.root / "figures").exists()


def test_killed_run_resumes(project):
    hold = project.root / "hold"
    hold.touch()  # keeps notebook 02 waiting
    process = project.popen(start_new_session=True)
    wait_for(process, "02_read  started")
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    hold.unlink()
    assert project.record("01_make")["wrote"].keys() == {"made.csv", "made.tex"}
    assert not (project.root / "build" / "laptop" / "02_read.json").exists()

    status, output = project.run()
    assert status == 0, output
    assert "01_make  unchanged" in output
    assert "02_read  ran in" in output
    assert (project.root / "figures" / "01_make" / "made.csv").read_text() == "kind,rate\na,0.0\n"
    assert (project.root / "figures" / "02_read" / "read.csv").read_text() == "KIND,RATE\nA,0.0\n"
    assert (project.root / "build" / "laptop" / "02_read.ipynb").exists()


def test_unchanged_run_does_nothing(project):
    table = project.root / "figures" / "02_read" / "read.csv"
    before = table.stat().st_mtime_ns
    status, output = project.run()
    assert status == 0, output
    assert "01_make  unchanged" in output and "02_read  unchanged" in output
    assert "figures/01_make/made  csv tex" in output
    assert table.stat().st_mtime_ns == before


def test_only_what_depends_on_an_edit_runs_again(project):
    (project.root / "qpatch" / "unused.py").write_text("x = 2\n")
    path = project.root / "notebooks" / "02_read.ipynb"
    path.write_text(path.read_text().replace("The title", "A better title"))
    _, output = project.run("--dry-run")
    assert "01_make  up to date" in output and "02_read  would run: Updated input files" in output

    tool = project.root / "qpatch" / "tool.py"
    tool.write_text(tool.read_text() + "# edited\n")
    _, output = project.run("--dry-run")
    assert "01_make  would run: Updated input files" in output


def test_missing_and_stale_files_make_a_notebook_run_again(project):
    (project.root / "figures" / "01_make" / "made.csv").write_text("kind,rate\na,0.9\n")
    (project.root / "figures" / "01_make" / "made.tex").unlink()
    _, output = project.run("--dry-run")
    assert "stale: figures/01_make/made.csv" in output
    assert "missing: figures/01_make/made.tex" in output


def test_failing_notebook(project):
    project.profile(fail=True)
    status, output = project.run()
    assert status == 1
    assert "|     raise tool.ToolError('as the parameter says')" in output  # the failing cell
    assert "PROBLEM  01_make: in code cell 5 ToolError: as the parameter says" in output
    assert "02_read  did not run again, for want of 01_make" in output
    assert "Traceback" not in output
    assert "ToolError" in (project.root / "build" / "laptop" / "01_make.ipynb").read_text()
    assert (project.root / "figures" / "01_make" / "made.csv").exists()  # what was there is kept


def test_declared_but_not_written_is_an_error(project):
    project.profile(both=False)
    (project.root / "figures" / "01_make" / "made.tex").write_text("from an earlier run")
    path = project.root / "notebooks" / "01_make.ipynb"
    path.write_text(path.read_text().replace('"made.csv",', '"made.csv", "never.png",'))
    status, output = project.run("01_make", module="workflow.execute")
    assert status == 1
    assert "missing: never.png; stale: made.tex" in output


def test_unwritable_figures_folder_is_one_line(project):
    (project.root / "figures").rename(project.root / "elsewhere")
    (project.root / "figures").write_text("a file where the folder should be")
    status, output = project.run("01_make", module="workflow.execute")
    (project.root / "figures").unlink()
    (project.root / "elsewhere").rename(project.root / "figures")
    assert status == 1
    assert "figures" in output and "make the folder writable" in output and "Traceback" not in output


@pytest.mark.parametrize(
    ("parameters", "message"),
    [({"sed": 1}, "unknown parameter 'sed'. Did you mean 'seed'?"),
     ({"seed": "1"}, "parameter 'seed' must be int like 0, got str '1'")],
)
def test_wrong_parameter_is_one_line_and_status_2(project, parameters, message):
    project.profile(**parameters)
    status, output = project.run()
    project.profile()
    assert status == 2
    assert message in output and len(output.splitlines()) == 1


def test_second_run_at_the_same_time_is_refused(project):
    with filelock.FileLock(project.root / "build" / "run.lock"):
        status, output = project.run()
    assert status == 1
    assert "another ./run_all.sh works in this folder" in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--profile", "laptob"], "unknown profile 'laptob', choose from laptop, paper, smoke; did you mean 'laptop'?"),
     (["--only", "77"], "unknown notebook '77'"),
     (["--jobs", "0"], "must be a whole number above 0, got '0'"),
     (["--retrian"], "unrecognized arguments: --retrian")],
)
def test_wrong_command_line_is_one_line_and_status_2(arguments, message, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.parse(arguments)
    error = capsys.readouterr().err
    assert ended.value.code == 2
    assert message in error and len(error.splitlines()) == 1


def test_imports_are_followed_and_data_beside_them_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(notebooks, "ROOT", tmp_path)
    for name, source in {
        "__init__.py": "", "deep/__init__.py": "from . import leaf", "deep/leaf.py": "def f():\n    import qpatch.late",
        "late.py": "import numpy", "deep/claims.yaml": "", "other.py": "", "zoo/joint.json": "{}", "zoo/float.json": "",
    }.items():
        path = tmp_path / "qpatch" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    path = tmp_path / "notebooks" / "05_deep.ipynb"
    write_notebook(path, "seed = 0", ["%matplotlib inline\nimport qpatch.deep as d"], reads=["zoo/joint"])
    found = {str(source.relative_to(tmp_path)) for source in notebooks.Notebook(path).sources()}
    assert found == {"notebooks/05_deep.ipynb", "qpatch/__init__.py", "qpatch/deep/__init__.py", "qpatch/deep/leaf.py",
                     "qpatch/late.py", "qpatch/deep/claims.yaml", "qpatch/zoo/joint.json", "requirements.txt"}

    write_notebook(path, "seed = 0", ["1"], reads=["zoo/jiont"])
    with pytest.raises(ParameterError, match="zoo/jiont"):
        notebooks.Notebook(path).check_sources()
    write_notebook(path, "seed = 0", ["1"], reads=["04_gone"])
    with pytest.raises(ParameterError, match="unknown notebook read by 05_deep"):
        notebooks.discover()


def test_bands_of_a_table():
    old = pd.DataFrame({"attack": ["LaVAN", "GAP"], "bits": [2, 8], "asr": [0.70, 0.50], "seconds": [1.0, 2.0]})
    within = old.assign(asr=[0.73, 0.47], seconds=[9.0, 9.0])
    assert check.differences(old, within.iloc[::-1], ["attack", "bits"], {"asr": 0.03}) == []
    (problem,) = check.differences(old, old.assign(asr=[0.74, 0.50]), ["attack", "bits"], {"asr": 0.03})
    assert "asr is out of its band of 0.03 in 1 of 2 rows" in problem and "0.7 became 0.74" in problem
    (problem,) = check.differences(old, old.assign(asr=[float("nan"), 0.50]), ["attack", "bits"], {"asr": 0.03})
    assert "became nan" in problem
    (problem,) = check.differences(old, old.iloc[:1], ["attack"], {"asr": 0.03})
    assert "1 of the reference are gone, 0 are new" in problem
    (problem,) = check.differences(old, old, ["attack"], {"error_rate": 0.03})
    assert "'error_rate'" in problem


def test_reference_is_the_last_commit(tmp_path, monkeypatch):
    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=Reader", "-c", "user.email=reader@example.org"]
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True)

    monkeypatch.setattr(check, "ROOT", tmp_path)
    (tmp_path / "a.csv").write_text("bits,asr\n2,0.7\n")
    (tmp_path / "a.json").write_text('{"key": ["bits"], "bands": {"asr": 0.03}}')
    (tmp_path / "b.csv").write_text("bits,asr\n2,0.7\n")
    git("init")
    git("add", ".")
    git("commit", "-m", "reference")
    for name in ("a.csv", "b.csv", "c.csv"):
        Path(tmp_path / name).write_text("bits,asr\n2,0.71\n")
    (tmp_path / "a.json").write_text("{}")  # the bands of the reference count, not the new ones
    assert check.compare_table("a.csv") == []
    assert check.compare_table("b.csv") == ["differs from the reference, and declares no bands"]
    assert check.compare_table("c.csv") == ["no committed reference; commit the table first"]


def test_every_profile_of_the_repository_is_valid():
    from workflow import profiles

    for path in (REPOSITORY / "workflow" / "profiles").glob("*.yaml"):
        loaded = profiles.load(path.stem)
        assert (loaded.figures == REPOSITORY / "figures") == (path.stem == "laptop")  # only laptop renews the reference
