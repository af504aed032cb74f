"""What explains transfer: gradients between networks, maps of places, and visibility."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from qpatch import measure
from qpatch.attacks import Patch, apply_patch
from qpatch.errors import InputError, ParameterError
from qpatch.measure import Look, alignment


def linear(*weights: float) -> nn.Module:
    """Two classes; the logits are (w·x, 0), so every gradient of the cross-entropy points along ±w."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(len(weights), 2, bias=False)).eval()
    net[1].weight.data = torch.tensor([weights, [0.0] * len(weights)])
    return net


def four_images(pixels: int = 2):
    return torch.rand(4, 1, 1, pixels, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 0, 1])


# Gradients ----------------------------------------------------------------------------------------------------------


def test_alignment_of_linear_networks_is_that_of_their_weights():
    views = {"a": linear(1, 0), "b": linear(1, 1), "c": linear(-2, 0)}
    rows, inputs = measure.pairwise_alignment(views, *four_images(), layers=["0"])
    rows = rows.set_index(["first", "second", "depth"])
    assert rows.loc[("a", "b", "input"), "value"] == pytest.approx(math.sqrt(0.5), abs=1e-6)
    assert rows.loc[("a", "c", "input"), "value"] == pytest.approx(-1, abs=1e-6)
    assert rows.loc[("a", "c", "magnitude"), "value"] == pytest.approx(1, abs=1e-6)  # direction is gone
    assert rows.loc[("a", "b", "input"), "sign"] == 1 and rows.loc[("a", "c", "input"), "sign"] == 0
    assert rows.loc[("a", "b", "0"), "value"] == pytest.approx(rows.loc[("a", "b", "input"), "value"], abs=1e-6)
    # another image of the same class has the same direction here, so chance is as high as the value
    assert rows.loc[("a", "b", "input"), "null"] == pytest.approx(math.sqrt(0.5), abs=1e-6)
    assert rows["n"].eq(4).all() and (rows["low"] <= rows["value"] + 1e-9).all() and inputs["a"].shape == (4, 1, 1, 2)
    assert torch.equal(inputs["a"][:, 0, 0, 0] < 0, torch.tensor([True, False, True, False]))  # in the images' order


def test_alignment_leaves_networks_as_they_were_and_refuses_single_images():
    net = linear(1, 2)
    images, labels = four_images()
    measure.layer_gradients(net, images, labels, ["1"])
    assert not net[1]._forward_hooks and net[1].weight.requires_grad and net[1].weight.grad is None
    with pytest.raises(InputError, match="single image"):
        measure.pairwise_alignment({"a": net, "b": net}, images, torch.tensor([0, 0, 0, 1]))
    with pytest.raises(ParameterError, match="no module blocks.7"):
        measure.layer_gradients(net, images, labels, ["blocks.7"])


def test_intervals_of_means_shrink_to_a_point_for_equal_values_and_cover_the_mean():
    low, high = alignment.mean_interval(torch.tensor([[0.3] * 50, [0.0, 1.0] * 25], dtype=torch.float64))
    assert low[0] == pytest.approx(0.3) and high[0] == pytest.approx(0.3)
    half = 1.96 * 0.5 / math.sqrt(50)
    assert low[1] == pytest.approx(0.5 - half, abs=0.03) and high[1] == pytest.approx(0.5 + half, abs=0.03)


def test_shared_direction_looks_under_the_patch_only():
    one = torch.zeros(2, 1, 3, 3)
    one[0, 0, 0, 0], one[1, 0, 1, 1] = 1.0, 1.0  # at each image's own place
    two = -one.clone()
    two[:, 0, 2, 2] = 100.0  # outside of both windows
    places = torch.tensor([[0, 0], [1, 1]])
    assert torch.equal(alignment.window(one, places, (1, 1)).flatten(), torch.ones(2))
    table = measure.shared_direction({"one": one, "two": two}, places, (1, 1))
    assert table.loc["one", "two"] == pytest.approx(-1) and table.loc["one", "one"] == pytest.approx(1)


# Places -------------------------------------------------------------------------------------------------------------


class Corner(nn.Module):
    """Class 1 where the top left pixel is bright."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x):
        bright = x[:, 0, 0, 0] * self.scale
        return torch.stack([0.5 - bright, bright - 0.5], dim=1)


def test_place_hits_finds_the_one_weak_place():
    grid = measure.place_grid(3, 4, 2)
    assert grid.tolist() == [[r, c] for r in (0, 1, 2) for c in (0, 1, 2)]
    images = torch.zeros(3, 1, 4, 4)
    white = torch.ones(1, 2, 2)
    hits = measure.place_hits(Corner().eval(), images, torch.tensor([0, 0, 1]), white, white, grid)
    assert hits[0, :2].tolist() == [1, 1] and not hits[1:, :2].any()
    assert hits[:, 2].isnan().all()  # wrong when clean
    assert measure.place_means(hits).tolist() == [[1, 0, 0], [0, 0, 0], [0, 0, 0]]
    with pytest.raises(ParameterError, match="at least 2 places"):
        measure.place_grid(1, 4, 2)


def test_place_map_needs_no_image_that_is_right():
    hits = measure.place_hits(Corner().eval(), torch.zeros(2, 1, 4, 4), torch.tensor([1, 1]), torch.ones(1, 2, 2),
                                torch.ones(1, 2, 2), measure.place_grid(2, 4, 2))  # fmt: skip
    assert hits.isnan().all() and hits.shape == (4, 2)


def test_saliency_is_the_share_of_the_gradient_under_the_patch():
    gradients = torch.zeros(1, 2, 4, 4)
    gradients[0, 0, 0, 0], gradients[0, 1, 3, 3] = -3.0, 1.0
    shares = measure.place_saliency(gradients, torch.tensor([[0, 0], [1, 1], [2, 2]]), (2, 2))
    assert shares[:, 0].tolist() == pytest.approx([0.75, 0, 0.25])


def test_map_agreement_knows_same_opposite_and_nothing():
    base = torch.arange(9.0)[:, None].repeat(1, 40)
    tables = {"same": base, "opposite": -base, "flat": torch.ones(9, 40), "known": torch.arange(9.0)[:, None]}
    rows = measure.map_agreement(tables, splits=10).set_index(["first", "second"])
    assert rows.loc[("same", "same"), "value"] == pytest.approx(1)
    assert rows.loc[("same", "opposite"), "value"] == pytest.approx(-1)
    assert rows.loc[("same", "flat"), "value"] == 0 and rows.loc[("same", "known"), "value"] == pytest.approx(1)
    assert rows["n"].eq(40).all() and rows["places"].eq(9).all()
    with pytest.raises(InputError, match="share their places"):
        measure.map_agreement({"a": base, "b": base[:4]})


def test_two_maps_do_not_agree_by_the_luck_of_shared_images():
    noise = torch.rand(25, 60, generator=torch.Generator().manual_seed(1)).round()  # no place differs from another
    row = measure.map_agreement({"one": noise, "two": noise.clone()}, splits=100).query("first != second").iloc[0]
    assert abs(row["value"]) < 0.35 and row["low"] < 0 < row["high"]  # the very same hits, and still no agreement


def test_the_middle_is_nearest_to_the_middle():
    near = measure.centrality(measure.place_grid(3, 6, 2))
    assert int(near.argmax()) == 4 and near[4] == 0 and near[0] == near[8] == pytest.approx(-math.sqrt(8))


# Visibility ---------------------------------------------------------------------------------------------------------


def test_looks_change_what_they_name():
    images, mask, places = torch.zeros(1, 3, 8, 8), torch.ones(1, 2, 2), torch.tensor([[3, 3]])
    white = torch.ones(3, 2, 2)
    assert torch.allclose(Look("contrast", 0).pixels(white), torch.full_like(white, 128 / 255))
    assert torch.equal(Look("opacity", 0).shown(images, white, mask, places), images)
    half = Look("opacity", 0.5).shown(images, white, mask, places)
    assert half[0, 0, 3, 3] == pytest.approx(128 / 255) and half.sum() == pytest.approx(12 * 128 / 255)
    assert torch.equal(Look("smoothness", 0).pixels(white), white)
    assert torch.allclose(Look("smoothness", 2).pixels(white), white)
    with pytest.raises(ParameterError, match="cannot be 1.5"):
        Look("opacity", 1.5)
    with pytest.raises(ParameterError, match="unknown knob"):
        Look("colour", 1)


def test_variation_of_a_checkerboard_is_one_and_blur_lowers_it():
    board = (torch.arange(6)[:, None] + torch.arange(6)) % 2 * torch.ones(3, 1, 1)
    assert measure.total_variation(board) == 1 and measure.total_variation(torch.full((3, 6, 6), 0.4)) == 0
    assert measure.total_variation(Look("smoothness", 1.0).pixels(board)) < 0.2


def test_visibility_of_nothing_is_nothing_and_of_black_on_white_is_a_hundred():
    white = torch.ones(2, 3, 16, 16)
    assert measure.visibility(white, white).abs().to_numpy().max() < 1e-9
    seen = measure.visibility(white, torch.zeros_like(white))
    assert seen["colour"].tolist() == pytest.approx([100, 100], abs=0.01)  # CIEDE2000 of white and black
    assert (seen["structure"] > 0.9).all()
    quarter = apply_patch(Patch(torch.zeros(3, 8, 8), torch.ones(1, 8, 8)), white, torch.zeros(2, 2, dtype=torch.int64))
    assert measure.visibility(white, quarter)["colour"].tolist() == pytest.approx([25, 25], abs=0.01)
    with pytest.raises(InputError, match="RGB"):
        measure.visibility(white[:, :1], white[:, :1])


class Bright(nn.Module):
    """Class 1 where some pixel is white."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x):
        top = x.flatten(1).amax(1) * self.scale
        return torch.stack([0.99 - top, top - 0.99], dim=1)


def test_visibility_rows_hold_each_look_pattern_and_view():
    patch = Patch(torch.ones(3, 2, 2), torch.ones(1, 2, 2))
    images, labels = torch.zeros(6, 3, 8, 8), torch.zeros(6, dtype=torch.int64)
    looks = [Look("size", 2), Look("contrast", 0.5)]
    rows = measure.visibility_rows({32: Bright().eval()}, {2: patch}, looks, images, labels,
                                   {2: torch.zeros(6, 2, dtype=torch.int64)}, plain_size=2, judged=2)  # fmt: skip
    assert len(rows) == 2 * 3 and rows["n"].eq(6).all()
    asr = rows.set_index(["knob", "pattern"])["asr"]
    assert asr["size", "patch"] == 1 and asr["contrast", "patch"] == 0 and asr["size", "grey"] == 0
    with pytest.raises(ParameterError, match="unknown patch size"):
        measure.visibility_rows({32: Bright().eval()}, {2: patch}, [Look("size", 4)], images, labels, {}, plain_size=2)
