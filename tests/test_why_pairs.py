"""What explains transfer: correlations over pairs of networks, the zoo's graph, and the pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import spearmanr

from qpatch import measure, zoo
from qpatch.errors import InputError
from qpatch.measure import pairs
from qpatch.report import claims, why
from qpatch.zoo import pairs as zoo_pairs

NODES = ["a", "b", "c", "d", "e"]


def matrix(value, clean: float = 0.9) -> pd.DataFrame:
    return pd.DataFrame({"group": "g", "source": s, "target": t, "seed": 0, "asr": value(s, t), "clean_accuracy": clean,
                         "control": 0.1} for s in NODES for t in NODES)  # fmt: skip


def test_transfer_pairs_take_off_controls_and_divide_by_the_targets_own_patch():
    rows = matrix(lambda s, t: {"a": 0.5, "b": 0.9}.get(t, 0.3) - 0.1 * (s != t))
    rows.loc[rows["target"] == "e", "clean_accuracy"] = 0.2  # too weak: leaves as source and as target
    found = measure.transfer_pairs(rows, ["control"]).set_index(["source", "target"])
    assert len(found) == 4 * 3
    assert found.loc[("b", "a"), "success"] == pytest.approx(0.3) and found.loc[("b", "a"), "own"] == pytest.approx(0.4)
    assert found.loc[("b", "a"), "relative"] == pytest.approx(0.75)
    assert found.loc[("b", "a"), "home"] == pytest.approx(0.8)
    with pytest.raises(InputError, match="no patch of its own"):
        measure.transfer_pairs(rows[rows["source"] != "a"], ["control"])
    with pytest.raises(InputError, match="no pair"):
        measure.transfer_pairs(rows.assign(clean_accuracy=0.1), ["control"])


@pytest.fixture(scope="module")
def explained():
    rng = np.random.default_rng(0)
    success = pd.DataFrame(rng.uniform(0.2, 0.9, (5, 5)), NODES, NODES)
    found = measure.transfer_pairs(matrix(lambda s, t: success.loc[s, t]), ["control"])
    tables = {"itself": success, "reversed": -success, "source": measure.of_end(dict(zip(NODES, range(5))), "source"),
              "target": measure.of_end(dict(zip(NODES, range(5))), "target")}  # fmt: skip
    return found, measure.explained_rows(found, tables, draws=50).set_index(["measurement", "outcome"])


def test_success_explains_itself(explained):
    _, rows = explained
    assert rows.loc[("itself", "success"), "value"] == pytest.approx(1)
    assert rows.loc[("reversed", "success"), "value"] == pytest.approx(-1)
    assert rows.loc[("itself", "fixed ends"), "value"] == pytest.approx(1)
    assert rows.loc[("itself", "success"), "margin_low"] > 0 > rows.loc[("reversed", "success"), "margin_high"]
    assert rows["n"].eq(20).all() and rows["networks"].eq(5).all()


def test_one_end_alone_says_nothing_once_the_ends_are_fixed(explained):
    _, rows = explained
    for end in ("source", "target"):
        assert rows.loc[(end, "fixed ends")].drop(["n", "networks"]).isna().all()
        row = rows.loc[(end, "success")]
        assert row["low"] <= row["value"] <= row["high"] and row["chance_low"] < 0 < row["chance_high"]


def test_spearman_is_scipys(explained):
    found, rows = explained
    for outcome in ("success", "relative"):
        expected = spearmanr(found["target"].map(dict(zip(NODES, range(5)))), found[outcome]).statistic
        assert rows.loc[("target", outcome), "value"] == pytest.approx(expected)


def test_fixed_ends_leave_the_pair_itself():
    """success = source + target + pair, with a pair effect that no end knows: ranks of an additive table."""
    effect = pd.DataFrame([[(i - j) % 5 in (1, 2) for j in range(5)] for i in range(5)], NODES, NODES).astype(float)
    success = lambda s, t: 0.2 + 0.1 * NODES.index(s) + 0.01 * NODES.index(t) + 0.003 * effect.loc[s, t]  # noqa: E731
    found = measure.transfer_pairs(matrix(success), ["control"])
    rows = measure.explained_rows(found, {"pair": effect}, draws=20).set_index("outcome")
    assert rows.loc["fixed ends", "value"] > rows.loc["success", "value"] + 0.2


def test_jackknife_of_equal_values_is_a_point():
    low, high = pairs._jackknife(np.array(0.5), np.full(6, 0.5))
    assert low == pytest.approx(0.5) and high == pytest.approx(0.5)
    wide = pairs._jackknife(np.array(0.5), np.array([0.2, 0.8, 0.4, 0.6]))
    assert -1 < wide[0] < 0.5 < wide[1] < 1


def test_explain_wants_every_network(explained):
    found, _ = explained
    with pytest.raises(InputError, match="lacks e"):
        measure.explained_rows(found, {"small": pd.DataFrame(1.0, NODES[:4], NODES[:4])})
    with pytest.raises(InputError, match="not known for all pairs"):
        measure.explained_rows(found, {"empty": pd.DataFrame(np.nan, NODES, NODES)})
    some = pd.DataFrame(np.arange(25.0).reshape(5, 5), NODES, NODES)
    both = measure.explain(found.assign(kind="k"), "Q", {"k": {"m": some}}, draws=5)
    assert both["attack"].eq("k").all() and both["question"].eq("Q").all() and len(both) == 3


# The zoo's graph ------------------------------------------------------------------------------------------------------


def test_families_that_start_from_one_float_network_share_its_node():
    assert zoo.node("ptq", 32) == zoo.node("qat-independent", 32) == "float" != zoo.node("joint", 32)
    names = zoo_pairs.origins(zoo.FAMILIES, (32, 4), floats=2)
    assert names["joint float"] == ("joint", 32) and names["qat-finetuned 4-bit"] == ("qat-4", 4)
    assert names["float-s2"] == ("float-s2", 32) and len(names) == 1 + 1 + 4 + 2


def test_stored_rows_are_taken_where_they_are_complete(tmp_path):
    class Wanted:
        dataset, bits, seeds = "cifar10", (32, 4), 2

        def universal(self, training, attack):
            raise AssertionError("measured although the table is there")

    kinds = (*zoo.KINDS.values(), ("PGD", "image-specific"))
    rows = [{"dataset": "cifar10", "training": "ptq", "attack": attack, "scope": scope, "source_bits": s,
             "target_bits": t, "seed": seed, "asr": 0.5}
            for attack, scope in kinds for s in (32, 4, 2) for t in (32, 4, 2)
            for seed in range(3 if scope == "universal" else 1)]  # fmt: skip
    path = tmp_path / "transfer_matrix.csv"
    pd.DataFrame(rows).to_csv(path, index=False)
    found = zoo.family_rows(Wanted(), ["ptq"], path)
    assert len(found) == 4 * (2 + 2 + 1) and set(found["source"]) == {"float", "ptq 4-bit"}
    assert set(found["kind"]) == set(zoo.KINDS)
    with pytest.raises(AssertionError, match="measured"):
        zoo.family_rows(Wanted(), ["ptq", "joint"], path)
    with pytest.raises(AssertionError, match="measured"):
        zoo.family_rows(Wanted(), ["ptq"], tmp_path / "none.csv")


def test_a_balanced_part_has_each_class_alike():
    class Fake:
        labels = torch.tensor([0, 0, 0, 1, 2, 1, 0, 2, 1, 2])

    chosen = zoo.balanced_part(Fake, 6)
    assert Fake.labels[chosen].bincount().tolist() == [2, 2, 2] and torch.equal(chosen, chosen.sort().values)


# Pictures -----------------------------------------------------------------------------------------------------------


def test_every_picture_has_its_panels_and_refuses_nothing(explained):
    estimate = {"value": 0.5, "low": 0.4, "high": 0.6, "null": 0.1}
    gradient = pd.DataFrame(
        {"family": f, "points": p, "bits": b, "depth": d, **estimate}
        for f in ("ptq", "joint") for p in ("clean", "patched") for b in (8, 2) for d in ("input", "relu")
    )  # fmt: skip
    floats = gradient[["points", "depth", "value"]]
    rate = {"asr": 0.5, "ci_low": 0.4, "ci_high": 0.6}
    look = pd.DataFrame(
        {"knob": k, "amount": a, "pattern": p, "target_bits": b, "colour": a + 1, **rate}
        for k in ("size", "contrast") for a in (0.5, 1.0) for p in ("patch", "noise", "grey") for b in (32, 2)
    )  # fmt: skip
    _, rows = explained
    cloud = pd.DataFrame({"x": [0.1, 0.2], "y": [0.3, 0.4], "kind": ["k", "l"], "group": "g"})
    figures = {
        4: why.depth_curves(gradient, floats, {"input": "image", "relu": "stem"}),
        2: why.knob_curves(look, {"size": "side", "contrast": "contrast"}),
        3: why.explanations(rows.reset_index().assign(question="Q", attack="A"), dict.fromkeys(measure.OUTCOMES, "")),
    }
    for panels, figure in figures.items():
        assert len(figure.axes) == panels
    assert len(why.visibility_curves(look, "colour", xlabel="ΔE").axes) == 2
    assert len(why.pair_clouds(cloud, "x", "y", panel="kind", group="group", xlabel="x", ylabel="y").axes) == 2
    maps = {"patch": {32: np.eye(3), 2: np.eye(3)}, "saliency": {32: np.ones((3, 3))}}
    assert len(why.place_pictures(maps, relative=["saliency"]).axes) == 4 + 2
    for draw in (lambda: why.place_pictures({}), lambda: why.knob_curves(look.iloc[:0], {"size": "side"})):
        with pytest.raises(InputError, match="there are no"):
            draw()


def test_the_notebook_and_the_rule_name_the_same_measurements():
    rule = {claim.id: claim for claim in claims.load()}["B8"].rule
    text = (Path(__file__).parents[1] / "notebooks" / "21_why_patches_transfer.ipynb").read_text(encoding="utf-8")
    for name in rule.conditions[0].each["measurement"]:
        assert name in text
    assert rule.conditions[0].each["attack"] == list(zoo.KINDS)
