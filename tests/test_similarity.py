"""Similarity of gradients and features beside chance: hand-computed cases, nulls, ties, soft versions."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from qpatch import maps, measure
from qpatch.errors import InputError, ParameterError
from qpatch.measure import Pair, Reading, similarity_controls

PAIRS = [Pair("joint", "32-4", "a", "b", "c"), Pair("apart", "32-2", "a", "c")]


def fields(n: int = 24, channels: int = 3, side: int = 16, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, channels, side, side, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def values():
    a = fields()
    return {"a": a, "b": a + 0.3 * fields(seed=1), "c": fields(seed=2)}


LABELS = torch.arange(24) % 4


class Tiny(nn.Module):
    """A convolution with known weights, a ReLU, and a linear layer: its gradients and features follow by hand."""

    def __init__(self, sign: float = 1.0):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 1, bias=False)
        self.relu = nn.ReLU()
        self.fc = nn.Linear(2, 2, bias=False)
        self.conv.weight.data = torch.tensor([1.0, -1.0]).view(2, 1, 1, 1)
        self.fc.weight.data = sign * torch.eye(2)
        self.eval()

    def forward(self, x):
        return self.fc(self.relu(self.conv(x)).mean(dim=(2, 3)))


# Readings -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["cosine", "edge_iou", "hog_cosine"])
def test_a_map_is_like_itself_at_any_scale(values, metric):
    reading = Reading(metric, cell=4)
    own, tiny = reading.describe(values["a"]), reading.describe(1e-9 * values["a"])
    assert torch.allclose(reading.compare(own, own), torch.ones(24), atol=1e-5)
    assert torch.allclose(reading.compare(own, tiny), torch.ones(24), atol=1e-4)
    assert (reading.compare(own, reading.describe(values["c"])) < 0.95).all()


def test_only_the_cosine_knows_the_sign(values):
    turned = {metric: Reading(metric) for metric in ("cosine", "edge_iou", "hog_cosine")}
    found = {m: r.compare(r.describe(values["a"]), r.describe(-values["a"])).mean().item() for m, r in turned.items()}
    assert found["cosine"] == pytest.approx(-1, abs=1e-5)
    assert found["edge_iou"] == pytest.approx(1) and found["hog_cosine"] == pytest.approx(1, abs=1e-5)


def test_readings_agree_with_the_maps_they_are_made_of(values):
    pictures = [maps.normalized(maps.to_maps(values[name])) for name in "ab"]
    iou, hog = Reading("edge_iou"), Reading("hog_cosine", cell=4, bins=6, block=2, norm="L2-Hys")
    described = {reading: [reading.describe(values[name]) for name in "ab"] for reading in (iou, hog)}
    assert torch.allclose(iou.compare(*described[iou]), maps.edge_iou(*pictures), atol=1e-6)
    expected = maps.cosine(*(maps.hog(picture, 4, 6, 2, "L2-Hys") for picture in pictures))
    assert torch.allclose(hog.compare(*described[hog]), expected, atol=1e-5)


def test_an_empty_map_is_like_nothing():
    nothing, some = torch.zeros(2, 3, 16, 16), fields(2)
    for metric in ("cosine", "edge_iou", "hog_cosine"):
        reading = Reading(metric)
        assert reading.compare(reading.describe(nothing), reading.describe(some)).abs().max() == 0


def test_unknown_readings_are_refused():
    for wrong in ({"metric": "ssim"}, {"metric": "cosine", "reduction": "max"}, {"metric": "hog_cosine", "norm": "L1"}):
        with pytest.raises(ParameterError):
            Reading(**wrong)


# Observing ----------------------------------------------------------------------------------------------------------


def test_observed_gradients_and_features_by_hand():
    images = torch.rand(3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 0])
    seen = measure.observe(Tiny(), images, labels, ["relu"], batch=2)
    assert torch.allclose(seen["relu"][:, 0], images[:, 0] / 2)  # channels max(x, 0) and max(−x, 0), their mean
    probability = torch.softmax(torch.stack([images.mean(dim=(1, 2, 3)), torch.zeros(3)], 1), 1)[:, 0]
    slope = (probability - (labels == 0).float()) / 16
    assert torch.allclose(seen["input"], slope.view(3, 1, 1, 1).expand_as(images), atol=1e-6)


def test_observing_leaves_the_network_as_it_was_and_names_missing_layers():
    net = Tiny()
    images, labels = torch.rand(2, 1, 4, 4), torch.tensor([0, 1])
    measure.observe(net, images, labels, ["relu"])
    assert not net.relu._forward_hooks and net.conv.weight.requires_grad and net.conv.weight.grad is None
    with pytest.raises(ParameterError, match="blocks.9"):
        measure.observe(net, images, labels, ["blocks.9"])
    with pytest.raises(InputError):
        measure.observe(net.train(), images, labels)


def test_shuffling_moves_whole_pixels_and_repeats():
    values = fields(5)
    first, again, other = (measure.shuffle_pixels(values, seed) for seed in (3, 3, 4))
    assert torch.equal(first, again) and not torch.equal(first, other)
    pixels = lambda x: x.flatten(2).transpose(1, 2)  # noqa: E731
    for before, after in zip(pixels(values), pixels(first)):
        assert {tuple(row) for row in before.tolist()} == {tuple(row) for row in after.tolist()}
    assert not torch.equal(values, first)


# Rows ---------------------------------------------------------------------------------------------------------------


def test_rows_hold_values_gaps_and_intervals(values):
    rows = measure.similarity_rows(values, PAIRS, [Reading("cosine"), Reading("hog_cosine", cell=4)], LABELS, draws=200)
    keyed = rows.set_index(["pair", "metric", "comparison"])
    expected = torch.nn.functional.cosine_similarity(values["a"].flatten(1), values["b"].flatten(1)).mean().item()
    same = keyed.loc[("32-4", "cosine", "same image")]
    assert same["value"] == pytest.approx(expected, abs=1e-5) and same["gap"] == 0 and same["n"] == 24
    assert (rows["low"] <= rows["value"]).all() and (rows["value"] <= rows["high"]).all()
    stranger = keyed.loc[("32-4", "cosine", "independent net")]
    assert stranger["gap"] == pytest.approx(expected - stranger["value"], abs=1e-6)
    assert stranger["gap_low"] > 0.8 and abs(keyed.loc[("32-4", "cosine", "different image"), "value"]) < 0.05
    assert ("32-2", "cosine", "independent net") not in keyed.index  # no stranger, no row
    assert set(keyed.loc["32-4"].index.get_level_values("comparison")) == set(measure.COMPARISONS)
    assert rows.query("metric == 'cosine'")["cell"].isna().all()
    assert rows.query("metric == 'hog_cosine'")["cell"].eq(4).all()


def test_fewer_comparisons_are_the_same_rows(values):
    whole = measure.similarity_rows(values, PAIRS, [Reading("edge_iou")], LABELS, draws=50)
    few = measure.similarity_rows(values, PAIRS, [Reading("edge_iou")], LABELS, comparisons=["different image"], draws=50)
    kept = whole[whole["comparison"].isin(["same image", "different image"])].reset_index(drop=True)
    pd.testing.assert_frame_equal(few, kept)


def test_rows_repeat_with_the_seed(values):
    first, again, other = (
        measure.similarity_rows(values, PAIRS, [Reading("edge_iou")], LABELS, draws=50, seed=seed) for seed in (1, 1, 2)
    )
    assert first.equals(again) and not first.equals(other)


def test_chance_of_hog_is_high_for_unrelated_maps_and_the_gap_shows_it(values):
    rows = measure.similarity_rows(values, PAIRS, [Reading("hog_cosine", cell=16)], LABELS)
    rows = rows.set_index(["pair", "comparison"])
    unrelated = rows.loc[("32-2", "same image")]
    assert unrelated["value"] > 0.8 and rows.loc[("32-2", "different image"), "gap_high"] < 0.05


def test_pooled_rows_average_over_pairs(values):
    reading = Reading("cosine")
    pooled = measure.pooled_rows(values, PAIRS, {"direction": reading}, LABELS, draws=50).set_index("comparison")
    single = measure.similarity_rows(values, PAIRS, [reading], LABELS, draws=50)
    for comparison, own in single.groupby("comparison"):
        assert pooled.loc[comparison, "value"] == pytest.approx(own["value"].mean(), abs=1e-6)
    assert pooled["reading"].eq("direction").all() and pooled["bins"].eq(9).all()


def test_layers_are_read_with_cells_in_proportion(values):
    seen = {name: {"deep": own[:, :1, :4, :4].abs(), "early": own[:, :1].abs()} for name, own in values.items()}
    rows = measure.layer_rows({"clean": seen}, PAIRS, ["early", "deep"], LABELS, counts=(4, 2))
    hogs = rows[rows["metric"] == "hog_cosine"]
    assert set(zip(hogs["layer"], hogs["cells"], hogs["cell"])) == {("early", 4, 4), ("early", 2, 8), ("deep", 2, 2)}
    assert rows.query("metric == 'edge_iou'")["cells"].isna().all()


# Chance by theory ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell, bins", [(8, 9), (16, 9), (8, 6)])
def test_white_noise_follows_the_formula(cell, bins):
    rows = measure.random_rows({"x": Reading("hog_cosine", "mean", cell=cell, bins=bins)}, n=100, kinds=["white"])
    assert rows["value"].item() == pytest.approx(measure.expected_hog_cosine(cell, bins), abs=0.03)
    assert rows["low"].item() < rows["value"].item() < rows["high"].item()


def test_chance_of_edges():
    rows = measure.random_rows({"x": Reading("edge_iou", "mean")}, n=100).set_index("kind")["value"]
    assert rows["white"] == pytest.approx(0.15 / 1.85, abs=0.006) and rows["same envelope"] > 0.25
    with pytest.raises(ParameterError):
        similarity_controls.random_maps("pink", 1)


# Ties ---------------------------------------------------------------------------------------------------------------


class Dots(nn.Module):
    """Features that are zero but for one pixel, at a place that depends on the image."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Identity()
        self.eval()

    def forward(self, x):
        mark = torch.zeros(len(x), 1, 256)
        where = (x[:, 0, 0, 0] * 255).long()
        return self.layer(mark.scatter(2, where[:, None, None], 1.0).view(len(x), 1, 16, 16)).flatten(1)


def test_ties_make_different_images_overlap_perfectly():
    images = torch.rand(8, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(8) % 2
    rows = measure.tie_rows({"a": Dots(), "b": Dots()}, [Pair("x", "4-2", "a", "b")], images, labels, ["layer"])
    rows = rows.set_index(["maps", "threshold", "comparison"])
    loose = rows.loc[("each channel", "at or above it")]
    assert (loose["value"] == 1).all() and (loose["area"] == 1).all() and (loose["ties"] > 0.9).all()
    strict = rows.loc[("each channel", "above the percentile")]
    assert strict.loc["same image", "value"] == 1 and strict.loc["different image", "value"] < 0.3
    assert (strict["area"] < 0.1).all() and rows["zeros"].eq(255 / 256).all() and rows["empty"].eq(0).all()


def test_sparser_features_overlap_more_by_the_loose_rule():
    class Noise(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Identity()
            self.eval()

        def forward(self, x):
            return self.layer(x)

    images, labels = torch.rand(8, 2, 16, 16, generator=torch.Generator().manual_seed(1)), torch.arange(8) % 2
    rows = measure.sparsity_rows([Noise(), Noise()], images, labels, "layer", [0.5, 0.01])
    rows = rows.set_index(["active", "threshold", "comparison"])["value"]
    assert rows[0.5, "at or above it", "different image"] < 0.2
    assert rows[0.01, "at or above it", "different image"] == 1
    assert rows[0.01, "above the percentile", "different image"] < 0.2
    assert (rows.xs("same image", level="comparison") == 1).all()


# Soft versions, and partial correlations ------------------------------------------------------------------------------


def test_soft_measures_follow_the_hard_ones_where_images_differ_in_likeness():
    a = fields(40, side=16)
    mixed = a + torch.linspace(0.1, 3, 40).view(-1, 1, 1, 1) * fields(40, seed=5)
    rows = measure.soft_rows({"a": a, "b": mixed}, [Pair("x", "5-4", "a", "b")], torch.arange(40) % 4, cell=4)
    assert (rows["value"] > 0.8).all() and (rows["low"] < rows["value"]).all() and (rows["high"] <= 1).all()
    assert (rows["hard"] > rows["hard_different"]).all() and (rows["soft"] > rows["soft_different"]).all()
    with pytest.raises(ParameterError, match="five images"):
        measure.soft_rows({"a": a[:4], "b": mixed[:4]}, [Pair("x", "5-4", "a", "b")], torch.arange(4) % 2)


def test_what_a_fixed_measurement_explains_is_gone():
    names, rng = list("abcdefgh"), np.random.default_rng(0)
    square = lambda: pd.DataFrame(rng.normal(size=(8, 8)), names, names)  # noqa: E731
    cause, other = square(), square()
    echo = cause + 0.3 * square()
    ends = [(s, t) for s, t in itertools.permutations(names, 2)]
    success = [cause.loc[s, t] + other.loc[s, t] for s, t in ends]
    pairs = pd.DataFrame(ends, columns=["source", "target"]).assign(group="g", success=success, relative=success)
    tables = {"cause": cause, "echo": echo, "other": other}
    alone, given = (
        measure.explained_rows(pairs, tables, draws=50, given=fixed).set_index(["measurement", "outcome"])["value"]
        for fixed in (None, "cause")
    )
    assert alone["echo", "success"] > 0.5 and abs(given["echo", "success"]) < 0.3
    assert given["other", "success"] > alone["other", "success"] > 0.5 and math.isnan(given["cause", "success"])
    with pytest.raises(ParameterError, match="fixed measurement"):
        measure.explained_rows(pairs, tables, given="weather")
