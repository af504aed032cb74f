"""The benchmarks run and report rightly. Nothing here depends on how fast the machine is."""

import json
from importlib import import_module
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch

from benchmarks import _harness, _peers, _summary, growth, laptop_run
from benchmarks._harness import AT_LEAST, AT_MOST, Limit, Peer
from benchmarks._steps import float_network, images_and_labels
from qpatch.parameters import declared

matplotlib.use("agg")
SCRIPTS = sorted(path.stem for path in Path(_harness.__file__).parent.glob("[!_]*.py"))


class Clock:
    """Time that passes only when a call says so."""

    def __init__(self):
        self.now, self.order = 0.0, []

    def call(self, name: str, *durations: float):
        durations = list(durations)

        def run():
            self.order.append(name)
            self.now += durations.pop(0) if len(durations) > 1 else durations[0]

        return run


@pytest.fixture
def clock(monkeypatch):
    found = Clock()
    monkeypatch.setattr(_harness.time, "perf_counter", lambda: found.now)
    return found


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_calls_take_turns_and_the_order_alternates(clock):
    spent = _harness.by_turns({"a": clock.call("a", 9.0, 1.0), "b": clock.call("b", 2.0)}, seconds=0)
    assert clock.order == list("ab" "ab" "ba" "ab" "ba" "ab")  # the first round took long enough to warm up
    assert spent == {"a": [1.0] * 5, "b": [2.0] * 5}


def test_rounds_go_on_until_the_time_is_over(clock):
    assert len(_harness.by_turns({"a": clock.call("a", 1.0)}, seconds=8)["a"]) == 8


def test_ratios_are_taken_within_a_round(clock):
    ours, limit, peer = clock.call("ours", 2.0), clock.call("limit", 1.0), clock.call("peer", 3.0, 3.0, 4.0, 5.0, 6.0, 7.0)
    low, slow = _harness.compare("x", ours, Limit("bare", limit, 0.5, times=5), Peer("tool", peer, 3.0), seconds=0)
    assert (low["rule"], low["ratio"], low["low"], low["high"], low["n"]) == (AT_MOST, 0.4, 0.4, 0.4, 5)
    assert (slow["rule"], slow["ratio"], slow["low"], slow["high"]) == (AT_LEAST, 2.5, 2.0, 3.0)
    assert (slow["seconds"], slow["seconds_against"]) == (2.0, 5.0)
    assert list(_harness.held(_harness.table("t", [low, slow]))) == ["yes", "no"]


def test_a_missing_peer_gets_a_row_that_says_so(clock):
    ours, limit = clock.call("ours", 1.0), Limit("bare", clock.call("limit", 1.0))
    bare, gone = _harness.compare("x", ours, limit, Peer("tool", None, 2.0, package="not-there"))
    frame = _harness.table("t", [bare, gone])
    assert list(frame["note"].fillna("")) == ["", "peer not installed"] and frame["ratio"].notna().tolist() == [True, False]
    assert list(_harness.held(frame)) == ["", ""] and "peer not installed" in _harness.text(frame)


def test_the_table_says_on_what_it_was_measured():
    frame = _harness.table("t", [{"case": "x", "ratio": 1.0, "rule": AT_MOST, "versions": _harness.versions("seaborn")}])
    assert list(frame.columns) == list(_harness.COLUMNS)
    assert f"torch {torch.__version__}" in frame["versions"][0] and "seaborn 0." in frame["versions"][0]
    assert frame["machine"][0] and frame["threads"][0] == torch.get_num_threads()


def test_the_exponent_of_a_power_is_its_exponent():
    sizes = [250, 500, 1000, 4000]
    assert growth.exponent(sizes, [3e-4 * size**1.2 for size in sizes]) == pytest.approx(1.2)


def rows():
    shared = {"against": "bare", "n": 5, "versions": "torch"}
    cases = [(AT_MOST, 1.2, 1.1), (AT_LEAST, 3.0, 2.0), (AT_MOST, np.nan, 7.0)]
    found = [{"case": f"net {number}", "rule": rule, "bound": bound, "ratio": ratio, "low": ratio - 0.1, "high": ratio + 0.1} | shared
             for number, (rule, bound, ratio) in enumerate(cases)]  # fmt: skip
    return [*found, {"case": "net 3", "rule": AT_LEAST, "bound": 2.0, "note": "peer not installed"} | shared]


def test_one_table_and_one_picture_of_all(tmp_path, monkeypatch, capsys, threads):
    for module in (_harness, _summary):
        monkeypatch.setattr(module, "FOLDER", tmp_path / "figures" / "benchmarks")
    assert _harness.main("patch_step", "Doc.", lambda smoke: rows(), ["--threads", "1"]) == 0
    assert _harness.main("qat_step", "Doc.", lambda smoke: rows()[:1], ["--threads", "1"]) == 0
    assert _summary.main() == 1  # a bound is missed
    assert "1 of 4 bounds missed" in capsys.readouterr().out
    table = pd.read_csv(_summary.FOLDER / "ratios.csv")
    assert list(table["benchmark"]) == ["patch_step"] * 4 + ["qat_step"] and list(table["threads"].unique()) == [1]
    assert (_summary.FOLDER / "ratios.png").stat().st_size < 150_000
    figure = _summary.ratios(table)
    left, right = figure.axes
    assert [tick.get_text() for tick in left.get_yticklabels()] == ["net 0 · bare", "net 2 · bare", "net 0 · bare"]
    assert [tick.get_text() for tick in right.get_yticklabels()] == ["net 1 · bare"]


@pytest.mark.parametrize("name", [name for name in SCRIPTS if name != "laptop_run"])
def test_every_script_runs(name, tmp_path, monkeypatch, capsys, threads):
    monkeypatch.setattr(_harness, "FOLDER", tmp_path)
    script, seen = import_module(f"benchmarks.{name}"), []

    def measure(smoke):
        seen.extend(script.measure(smoke))
        return seen

    assert _harness.main(name, script.__doc__, measure, ["--profile", "smoke", "--threads", "1"]) == 0
    assert f"python -m benchmarks.{name}" in script.__doc__ and not list(tmp_path.iterdir())
    assert all(row["case"] in capsys.readouterr().out for row in seen[:1])
    for row in seen:
        there = row.get("note") != "peer not installed"
        assert not there or (np.isfinite(row["ratio"]) and row["ratio"] >= 0 and row["n"] >= 1), row
    assert len({(row["case"], row["against"]) for row in seen}) == len(seen)


@pytest.mark.parametrize("package", ["brevitas", "torchao"])
def test_peers_compute_the_same_network(package):
    pytest.importorskip(package)
    model, (images, _) = float_network("qpatch_resnet8"), images_and_labels(16, 32)
    net = {"brevitas": _peers.brevitas_network, "torchao": _peers.torchao_network}[package](model, images, 8)
    with torch.no_grad():
        got, wanted = net(images), model(images)
    assert 0 < (got - wanted).abs().max() < 0.1 * wanted.std()


def test_the_laptop_run_edits_one_notebook(tmp_path):
    source = _harness.ROOT / laptop_run.NOTEBOOK
    copy = tmp_path / source.name
    copy.write_bytes(source.read_bytes())
    laptop_run.touch(copy)
    before, after = (json.loads(path.read_text())["cells"] for path in (source, copy))
    changed = [index for index, (old, new) in enumerate(zip(before, after)) if old != new]
    assert len(changed) == 1 and "".join(after[changed[0]]["source"]).endswith("\n# touched")
    assert declared(copy) == declared(source)
