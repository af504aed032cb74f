"""How a notebook starts: parameters checked against the stored file, seeds, threads, the figure folder, progress."""

import os

import numpy as np
import pytest
import torch
from workflow_project import write_notebook

from qpatch import notebook, parameters
from qpatch.errors import ParameterError

DEFAULTS = "seed = 3  # of the run\nrate = 0.5\nbits = [32, 8]\nname: str = 'a'\nhint = None"


@pytest.fixture
def stored(tmp_path, monkeypatch):
    """A stored notebook in the working folder, figures under it, and torch's settings as they were afterwards."""
    write_notebook(tmp_path / "07_test.ipynb", DEFAULTS, ["1"])
    monkeypatch.chdir(tmp_path)
    for name in ("QPATCH_PROFILE", "QPATCH_PROGRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("QPATCH_FIGURES", str(tmp_path / "figures"))
    monkeypatch.setenv("QPATCH_THREADS", "1")
    threads = torch.get_num_threads()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    yield tmp_path
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = fill


def values(**changed) -> dict:
    return {"seed": 3, "rate": 0.5, "bits": [32, 8], "name": "a", "hint": None, "other": object()} | changed


def test_start(stored, capsys):
    run = notebook.start("07_test", values(seed=5))
    first = torch.rand(2), np.random.rand(2)
    assert run.profile == "smoke" and run.seed == 5 and run.threads == torch.get_num_threads() == 1
    assert run.parameters == {"seed": 5, "rate": 0.5, "bits": [32, 8], "name": "a", "hint": None}
    assert run.figures == stored / "figures" / "07_test" and run.figures.is_dir()
    assert run.versions["torch"] == torch.__version__.split("+")[0] or run.versions["torch"] == torch.__version__
    assert torch.are_deterministic_algorithms_enabled()
    stamp = capsys.readouterr().out
    assert stamp.count("\n") == 1 and stamp.startswith("07_test · profile smoke · seed 5 · 1 threads")
    notebook.start("07_test", values(seed=5))
    assert torch.equal(torch.rand(2), first[0]) and (np.random.rand(2) == first[1]).all()
    assert torch.equal(torch.rand(3, generator=run.generator()), torch.rand(3, generator=run.generator()))


def test_figures_of_the_stored_defaults_stay_away_from_the_reference(stored, monkeypatch):
    monkeypatch.delenv("QPATCH_FIGURES")
    monkeypatch.setattr(notebook, "ROOT", stored)
    assert notebook.start("07_test", values()).figures == stored / "build" / "smoke" / "figures" / "07_test"


@pytest.mark.parametrize(
    ("namespace", "message"),
    [(values(rate="high"), "parameter 'rate' must be float like 0.5, got str 'high'"),
     (values(seed=True), "parameter 'seed' must be int"),
     (values(bits=[4, 2.5]), "parameter 'bits' must be a list"),
     (values(name=None), "parameter 'name' must be str"),
     (values(In=["", "seed = 1", "# Parameters\nsede = 1\n"]), "unknown parameter 'sede'. Did you mean 'seed'?"),
     ({"seed": 1}, "rate, bits, name, hint not defined; run the parameters cell first")],
)
def test_wrong_parameters(stored, namespace, message):
    with pytest.raises(ParameterError, match=message.replace("?", r"\?")):
        notebook.start("07_test", namespace)


def test_fitting_parameters(stored):
    run = notebook.start("07_test", values(rate=1, bits=(4, 2), hint="any", In=["# Parameters\nrate = 1\n"]))
    assert run.parameters["rate"] == 1 and run.parameters["bits"] == (4, 2)


def test_wrong_name(stored):
    with pytest.raises(ParameterError, match="no notebook 08_gone.ipynb"):
        notebook.start("08_gone", {})


@pytest.mark.parametrize("source", ["a = 1 + x", "a = b = 1", "a += 1", "print(1)", "a, b = 1, 2"])
def test_parameters_cell_holds_literals_only(source):
    with pytest.raises(ParameterError, match="plain `name = literal` lines"):
        parameters.literals(source, "07_test")


def test_exactly_one_parameters_cell(tmp_path):
    path = tmp_path / "07_test.ipynb"
    write_notebook(path, "seed = 1", ["1"])
    assert parameters.declared(path) == {"seed": 1}
    path.write_text(path.read_text().replace('"parameters"', '"other"'))
    with pytest.raises(ParameterError, match="it has 0"):
        parameters.declared(path)
    path.write_text("{")
    with pytest.raises(ParameterError, match="cannot be read as a notebook"):
        parameters.declared(path)


def test_progress_is_silent_in_tests(stored, monkeypatch, capfd):
    monkeypatch.setenv("QPATCH_PROGRESS", "off")
    run = notebook.start("07_test", values())
    capfd.readouterr()
    assert list(run.progress(range(3), "patches")) == [0, 1, 2]
    assert capfd.readouterr() == ("", "")


def test_progress_writes_lines_past_the_notebook(stored, monkeypatch):
    read, write = os.pipe()
    monkeypatch.setenv("QPATCH_PROGRESS", str(write))
    run = notebook.start("07_test", values())
    clock = iter([0.0, 2.0, 6.0, 8.0])  # the start, and before each of three items
    monkeypatch.setattr(notebook.time, "monotonic", lambda: next(clock))
    assert list(run.progress(iter("abc"), "patches")) == ["a", "b", "c"]
    os.close(write)
    with os.fdopen(read) as lines:
        assert lines.read() == "07_test  patches 1 of 3, about 12 s left\n"
