"""Stored runs under attackers who know the network: what is made on what, honest maxima, checks, and resuming."""

from dataclasses import replace

import pytest
import torch

from qpatch import data, store
from qpatch.attacks import LaVAN
from qpatch.attacks.sparse_rs import SparseRS
from qpatch.defenses import NoisyActivations
from qpatch.errors import DataError, ParameterError
from qpatch.measure.success import predict
from qpatch.quant import WIDTHS
from qpatch.zoo import adaptive, adaptive_cells, adaptive_rows, networks, scenarios
from qpatch.zoo import families as families_module
from qpatch.zoo.adaptive import Adaptive
from qpatch.zoo.adaptive_cells import (
    BEYOND, FEW, IN_PLACE, LARGER, LONG, MOST, RESTART, SEARCH, TRANSFER, WHITE, WHOLE, WITHIN, Budget, Cell,
)  # fmt: skip
from qpatch.zoo.attackers import PAPERS, RANDOM
from qpatch.zoo.scenarios import SURROGATE
from untrained import untrained

SMALL = Budget(images=8, few=1, steps=2, more=3, most=4, together=1, restarts=1, queries=2, universal=2, draws=1, repeats=2)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setenv("QPATCH_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setitem(adaptive_cells.BUDGETS, "shapes", SMALL)
    nets = {SURROGATE: untrained(0), "patch-one": untrained(1)}
    for module in (scenarios, networks, families_module):
        monkeypatch.setattr(module, "load", lambda name, *_, **__: nets.get(name, nets["patch-one"]))
    lines = []
    runs, missing = adaptive.load_runs(["patch-one"], "shapes", progress=lines.append)
    yield nets, runs, missing, lines
    monkeypatch.undo()


def judged_images():
    test = data.load("shapes", "test")
    return test.take(adaptive.evaluation_subset(test)[:8])


def test_every_attack_is_there_at_every_costly_width(made):
    _, runs, missing, lines = made
    cells = set(runs["patch-one"].hits)
    assert missing == [] and list(runs) == [SURROGATE, "patch-one"]
    expected = set(WITHIN) - {adaptive_cells.LOTS, adaptive_cells.THROUGH, RESTART} | set(BEYOND)
    assert {cell.attack for cell in cells if cell.attack != RESTART} == expected
    for attack in (TRANSFER, WHITE, LONG, SEARCH, LARGER):
        assert {cell.source for cell in cells if cell.attack == attack} == {"32", "4", "2"}
    assert all(hits.shape == (1, len(WIDTHS), 8) for hits in runs["patch-one"].hits.values())
    assert len(lines) >= len(cells)


@pytest.mark.parametrize("attack, steps, size", [(WHITE, 2, 6), (FEW, 1, 6), (LARGER, 2, 10)])
def test_hits_equal_a_direct_attack(made, attack, steps, size):
    nets, runs, *_ = made
    images, labels = judged_images()
    stop = {"stop_at": 0.9} if attack == LARGER else {}
    patched = LaVAN(nets["patch-one"].at(4), size, place="away", lr=0.1, steps=steps, **stop)(images, labels)
    wrong = torch.stack([predict(nets["patch-one"].at(width), patched) != labels for width in WIDTHS])
    assert torch.equal(runs["patch-one"].hits[Cell(attack, "4")][0], wrong)


def test_transfer_comes_from_the_undefended_network_and_search_asks_the_network_itself(made):
    nets, runs, *_ = made
    run, (images, labels) = runs["patch-one"], judged_images()
    patched = LaVAN(nets[SURROGATE].at(2), 6, place="away", lr=0.1, steps=2)(images, labels)
    assert torch.equal(run.hits[Cell(TRANSFER, "2")][0, 1], predict(nets["patch-one"].at(8), patched) != labels)
    found = SparseRS(nets["patch-one"].at(2), 6, place="away", queries=2).run(images, labels)
    assert torch.equal(run.extras[Cell(SEARCH, "2")]["first"], found.first.float())
    assert torch.equal(run.hits[Cell(SEARCH, "2")][0, WIDTHS.index(2)], found.success)


def test_a_second_call_reads_the_store_and_a_cell_can_be_made_again(made, monkeypatch):
    _, runs, *_ = made
    again = adaptive.remade(runs["patch-one"], Cell(WHITE, "4"), 8, "shapes")
    assert torch.equal(again, runs["patch-one"].hits[Cell(WHITE, "4")])
    monkeypatch.setattr(adaptive_cells.Bench, "patched", lambda *_: pytest.fail("attacked anew"))
    monkeypatch.setattr(adaptive, "_code", lambda code=adaptive._code(): code)
    assert adaptive.load_adaptive("patch-one", "shapes").hits.keys() == runs["patch-one"].hits.keys()


def test_a_saved_run_comes_back_whole(made, tmp_path):
    _, runs, *_ = made
    tensors, card = adaptive._make(adaptive_cells.Bench("patch-one", "shapes"), None)
    store.save_tensors(tmp_path / "run.safetensors", tensors, card)
    back = adaptive._adaptive(*store.load_tensors(tmp_path / "run.safetensors"))
    assert all(torch.equal(hits, runs["patch-one"].hits[cell]) for cell, hits in back.hits.items())


def hand_made(hits: dict[Cell, list], right: list, draws: int = 1) -> Adaptive:
    """A run of a few images whose hits are the same at every width; each entry is a list over images, or over draws of it."""
    wide = {}
    for cell, rows in hits.items():
        table = torch.tensor(rows, dtype=torch.bool).view(draws, 1, -1)
        wide[cell] = table.expand(-1, len(WIDTHS), -1)
    return Adaptive("patch-one", torch.tensor([right], dtype=torch.bool).expand(len(WIDTHS), -1), wide, {}, {})


def test_the_worst_case_is_the_union_on_images_that_were_right():
    hits = {Cell(WHITE, "4"): [1, 0, 0, 1], Cell(LONG, "4"): [0, 1, 0, 0], Cell(LARGER, "4"): [0, 0, 1, 0]}
    run = hand_made(hits, [1, 1, 1, 0])
    worst = adaptive_rows.met(run, adaptive_rows.WORST, 4)
    assert worst.n == 3 and worst.rate == pytest.approx(2 / 3)  # the third image falls to a larger patch alone
    assert adaptive_rows.met(run, WHITE, 4).rate == pytest.approx(1 / 3)
    assert adaptive_rows.met(run, adaptive_rows.WORST, RANDOM).rate == pytest.approx(2 / 3)


def test_at_a_drawn_width_one_patch_must_do_for_all():
    """Two patches that fool different widths do not add up: the mean over the widths counts, patch by patch."""
    run = hand_made({Cell(WHITE, "32"): [1], Cell(WHITE, "2"): [1]}, [1])
    at = {cell: hits.clone() for cell, hits in run.hits.items()}
    at[Cell(WHITE, "32")][0, 3:], at[Cell(WHITE, "2")][0, :4] = False, False  # three widths, and one
    run = Adaptive("patch-one", run.right, at, {}, {})
    assert adaptive_rows.met(run, adaptive_rows.WORST, RANDOM).rate == pytest.approx(3 / 5)


def test_lots_are_not_mistaken_for_success():
    """Thirty useless patches on a network that errs by itself in half of its answers: the union stays near a half."""
    generator = torch.Generator().manual_seed(0)
    noise = {Cell(WHITE, "4", seed): torch.rand(10, 400, generator=generator).lt(0.5).tolist() for seed in range(30)}
    run = hand_made(noise, [1] * 400, draws=10)
    made = adaptive_rows.union(run, run.hits, 4)
    assert abs(made.rate - 0.5) < 0.03
    first = torch.stack([hits[:, 0].double().mean(0) for hits in run.hits.values()]).amax(0)
    assert float(first.mean()) > 0.75  # what a plain maximum would have said


def test_tables_of_a_whole_run(made):
    # untrained networks are right about hardly any image: here all of them count
    runs = {name: replace(run, right=torch.ones_like(run.right)) for name, run in made[1].items()}
    asr = adaptive_rows.asr_rows(runs, "shapes")
    assert not asr.duplicated(["defense", "training_seed", "attack", "target_bits"]).any()
    for (_, width), part in asr.groupby(["defense", "target_bits"]):
        within, worst = part[part.scope == "within"], part[part.scope == "worst case"]["asr"].item()
        assert within["strongest"].sum() == 1 and worst >= within["asr"].max() - 1e-12
    direct = runs["patch-one"].hits[Cell(TRANSFER, "32")][0, -1]
    row = asr.query("defense == 'patch-one' and attack == @PAPERS and target_bits == 2")
    assert row["asr"].item() == pytest.approx(float(direct.float().mean()))
    head = adaptive_rows.headline_rows(runs, "shapes").query("defense == 'patch-one' and target_bits == 4")
    head = head.set_index("reading")["value"]
    assert head["hidden"] == pytest.approx(head["worst case"] - head[PAPERS])
    assert {"steps", "starts", "queries"} == set(adaptive_rows.curve_rows(runs, "shapes")["curve"])
    assert set(adaptive_rows.source_rows(runs, "shapes")["source"]) == {"32", "4", "2", "mean"}


def test_checks_pass_fail_or_stay_open():
    n = 100
    good = {Cell(LONG, "4"): [1] * 60 + [0] * 40, Cell(WHITE, "4"): [1] * 50 + [0] * 50, Cell(FEW, "4"): [1] * 20 + [0] * 80,
            Cell(TRANSFER, "4"): [0] * 40 + [1] * 60, Cell(IN_PLACE, "4"): [0] * 90 + [1] * 10,
            Cell(LARGER, "4"): [0] * 60 + [1] * 40,
            Cell(WHOLE, "4"): [1] * 100}  # fmt: skip
    good |= {replace(cell, source="2"): hits for cell, hits in good.items()} | {Cell(MOST, "2"): [1] * 80 + [0] * 20}
    run = hand_made(good, [1] * n)
    for width in ("4", "2"):
        run.extras[Cell(WHITE, width)] = {"start": torch.linspace(1, 2, n), "end": torch.linspace(0, 1, n)}
    # only the views at 4 and 2 bits get anything right, so only they are checked
    run = Adaptive("patch-one", run.right & (torch.tensor(WIDTHS) <= 4)[:, None], run.hits, run.extras, {})
    rows = adaptive_rows.checks_rows({"patch-one": run})
    assert set(rows["target_bits"]) == {4, 2}
    still = rows[rows["check"] == "steps are used up"].set_index("target_bits")
    assert list(still.index) == [2] and still.loc[2, "outcome"] == "fail"  # 80 against 60
    rows = rows[rows["target_bits"] == 4].set_index("check")
    assert rows.loc["usual steps at least few", "outcome"] == "pass" and rows.loc["whole image always", "outcome"] == "pass"
    assert rows.loc["white-box at least transfer", "outcome"] == "pass"  # 60 and 60
    assert rows.loc["larger patch at least small", "outcome"] == "undecided"  # 40 against 50
    assert rows.loc["fooled without gradients only", "value"] == pytest.approx(0.1)
    assert rows.loc["fooled without gradients only", "outcome"] == "fail"
    assert rows.loc["loss falls", "value"] == pytest.approx(1.0) and rows.loc["loss falls", "outcome"] == "pass"


def test_a_network_that_draws_lots_is_judged_several_times(made, monkeypatch):
    nets = made[0]
    noisy = lambda *_, **__: {width: NoisyActivations(nets["patch-one"].at(width), seed=width) for width in WIDTHS}  # noqa: E731
    monkeypatch.setattr(scenarios, "deployed_views", noisy)
    bench = adaptive_cells.Bench("patch-one", "shapes")
    images, labels = judged_images()
    hits = bench.judged(images, labels)
    assert bench.random and hits.shape == (2, len(WIDTHS), 8)
    assert torch.equal(hits, bench.judged(images, labels))  # the same lots at every call
    assert any(cell.attack == adaptive_cells.LOTS for cell in adaptive_cells.cells("patch-one", True))


def test_wrong_names_and_missing_runs_are_refused():
    with pytest.raises(ParameterError, match="unknown"):
        Cell("magic", "4")
    with pytest.raises(ParameterError, match="unknown"):
        adaptive.load_adaptive("nowhere", "shapes")
    absent = next((name for name in adaptive.NETWORKS if name.startswith("triqdef") and name not in networks.shipped()), None)
    if absent is not None:
        with pytest.raises(DataError, match="train it first"):
            adaptive.ship(absent)
