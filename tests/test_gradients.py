"""Gradients by differences and analytically, zero shares, alignment, and the published procedure, on cases by hand."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from qpatch import measure
from qpatch.errors import InputError, ParameterError
from qpatch.measure import gradient_rows as r
from qpatch.measure import gradients as g
from qpatch.measure import published_gradients as published
from qpatch.quant import Policy, post_training_quantize


class Linear(nn.Module):
    """Logits w·x and −w·x for a vector w: every gradient is known."""

    def __init__(self, weights):
        super().__init__()
        self.weights = nn.Parameter(weights)
        self.eval()

    def forward(self, x):
        score = (x.flatten(1) * self.weights).sum(1)
        return torch.stack([score, -score], dim=1)


def small(seed=0):
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(3 * 4 * 4, generator=generator)
    images = torch.randint(20, 236, (6, 3, 4, 4), generator=generator) / 255
    return Linear(weights), images, torch.tensor([0, 1, 0, 1, 0, 1])


def cnn():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
                             nn.Linear(32, 10)).eval()  # fmt: skip


# Differences ------------------------------------------------------------------------------------------------------


def test_differences_and_analytic_gradients_of_a_linear_network_equal_the_formula():
    net, images, labels = small()
    at = g.sample_values(images, 5, torch.Generator().manual_seed(1))
    score = net(images)[:, 0].double().detach()
    side = torch.where(labels == 0, 1.0, -1.0)
    slope = -2 * side * torch.sigmoid(-2 * side * score)  # of log(1 + exp(∓2s))
    expected = slope[:, None] * net.weights.detach().double()[at]
    analytic = g.input_gradients(net, images, labels).flatten(1).gather(1, at)
    assert torch.allclose(analytic.double(), expected, atol=1e-5)
    measured = g.central_differences(net, images, labels, at, 1 / 255)
    assert torch.allclose(measured, expected, atol=1e-3)


def test_directional_differences_are_products_with_the_gradient():
    net, images, labels = small()
    found = g.directional_differences(net, images, labels, 1e-3, 7, seed=3)
    signs = torch.randint(0, 2, (6, 7, 3, 4, 4), generator=torch.Generator().manual_seed(3), dtype=torch.int8) * 2 - 1
    gradient = g.input_gradients(net, images, labels)
    assert torch.allclose(found, (signs * gradient[:, None]).sum((2, 3, 4)).double(), atol=2e-3)
    assert torch.equal(found, g.directional_differences(net, images, labels, 1e-3, 7, seed=3, batch=20))


def test_values_are_drawn_without_repetition_and_the_border_is_one_sided():
    images = torch.zeros(3, 3, 4, 4)
    at = g.sample_values(images, 48, torch.Generator().manual_seed(0))
    assert torch.equal(at.sort(dim=1).values, torch.arange(48).expand(3, 48))
    seen = []

    class Spy(nn.Module):
        def forward(self, x):
            seen.append(x.flatten(1).sum(1))
            return torch.stack([x.flatten(1).sum(1), torch.zeros(len(x))], dim=1)

    quotient = g.central_differences(Spy().eval(), images, torch.zeros(3).long(), at[:, :1], 0.1)
    assert torch.allclose(torch.cat(seen).unique(), torch.tensor([0.0, 0.1]))  # nothing below zero
    expected = (math.log1p(math.exp(-0.1)) - math.log(2)) / 0.1
    assert quotient.flatten().tolist() == pytest.approx([expected] * 3, abs=1e-6)
    with pytest.raises(ParameterError, match="between 1 and 48"):
        g.sample_values(images, 49, torch.Generator())
    with pytest.raises(ParameterError, match="positive"):
        g.central_differences(Spy().eval(), images, torch.zeros(3).long(), at, 0)


def test_below_half_an_input_step_differences_are_zero_or_huge():
    """On the grid nothing moves; between grid points one of 1/(2h) differences is 1/(2h) times too large."""
    net, _, _ = small()
    images = torch.randint(20, 236, (400, 3, 4, 4), generator=torch.Generator().manual_seed(5)) / 255
    labels = torch.zeros(400).long()
    at = g.sample_values(images, 8, torch.Generator().manual_seed(0))
    coarse = published.Gridded(net, "int8", outputs=False).eval()
    step = 0.05 / 255
    assert r.zero_share(g.central_differences(coarse, images, labels, at, step)).value == 1
    assert r.zero_share(g.central_differences(coarse, images, labels, at, 1 / 255)).value == 0
    between = g.off_grid(images, torch.Generator().manual_seed(1))
    assert float((between - images).abs().max()) <= 0.5 / 255 + 1e-6
    quotients = g.central_differences(coarse, between, labels, at, step)
    assert r.zero_share(quotients).value == pytest.approx(1 - 0.1, abs=0.02)
    true = g.input_gradients(net, images, labels).flatten(1).gather(1, at)
    ratio = (quotients.abs() / true.abs())[quotients != 0]
    assert float(ratio.median()) == pytest.approx(10, rel=0.1)


def test_skipping_points_that_are_received_alike_changes_nothing():
    net, images, labels = small()
    at = g.sample_values(images, 6, torch.Generator().manual_seed(0))
    coarse = published.Gridded(net, "int8").eval()
    between = g.off_grid(images, torch.Generator().manual_seed(2))

    class Hidden(nn.Module):  # the same network, which does not say what it receives
        logits, codes, forward = coarse.logits, coarse.codes, coarse.forward

    for score in ("cross-entropy", "cross-entropy of probabilities", "margin", "raw margin"):
        skipped = g.central_differences(coarse, between, labels, at, 0.2 / 255, score)
        assert torch.equal(skipped, g.central_differences(Hidden().eval(), between, labels, at, 0.2 / 255, score))
    assert 0.3 < r.zero_share(skipped).value < 1


def test_raw_codes_multiply_the_difference_by_the_output_scale():
    net, images, labels = small()
    at = g.sample_values(images, 6, torch.Generator().manual_seed(0))
    for precision, factor in (("int8", 256), ("int16", 32768)):
        deployed = published.Gridded(net, precision).eval()
        plain, raw = (g.central_differences(deployed, images, labels, at, 2 / 255, s) for s in ("margin", "raw margin"))
        assert torch.allclose(raw, factor * plain, rtol=1e-4) and float(raw.abs().max()) > 0
    with pytest.raises(InputError, match="raw output codes"):
        g.central_differences(net, images, labels, at, 0.1, "raw margin")


def test_straight_through_gradients_leave_the_network_as_it_was():
    images, labels = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(4)
    net = post_training_quantize(cnn(), images, (8, 2), Policy())
    flags = [w.requires_grad for w in net.parameters()]
    gradient = g.input_gradients(net.at(2), images, labels, batch=3)
    assert gradient.shape == images.shape and float(gradient.abs().max()) > 0
    assert [w.requires_grad for w in net.parameters()] == flags
    assert torch.allclose(gradient[:1], g.input_gradients(net.at(2), images[:1], labels[:1]), atol=1e-7)
    with pytest.raises(InputError, match="no gradient"):
        g.input_gradients(published.Gridded(cnn()).eval(), images, labels, "raw margin")
    with pytest.raises(InputError, match="train mode"):
        g.input_gradients(cnn().train(), images, labels)


def test_an_edge_lies_within_the_tolerance_and_probes_tell_its_two_sides():
    net, images, _ = small()
    home = net(images).argmax(1)
    others = images[[int((home != own).nonzero()[0]) for own in home]]
    points, classes = g.edges(net, images, others, 1e-4)
    assert torch.equal(classes, home) and (net(points).argmax(1) != home).all()
    back = images + (points - images) * (1 - 2e-4 / (points - images).flatten(1).norm(dim=1).view(-1, 1, 1, 1))
    assert torch.equal(net(back).argmax(1), home)
    found = g.probes(net, points, classes, 0.01, 200)
    assert not found["same"].any() and float(found["back"].double().mean()) == pytest.approx(0.5, abs=0.1)
    coarse = published.Gridded(net, "int8").eval()
    on_grid = coarse.received(points)
    found = g.probes(coarse, on_grid, coarse(on_grid).argmax(1), 2e-4, 20)  # a twentieth of a step
    assert found["same"].all() and found["back"].all()
    with pytest.raises(InputError, match="same class"):
        g.edges(net, images, images, 1e-4)


# Shares and alignment ---------------------------------------------------------------------------------------------


def test_the_interval_of_a_share_counts_images_that_agree_with_themselves_once():
    alike = torch.zeros(50, 20)
    alike[:25] = 1.0  # half of the images have only zeros, the others none
    clustered = r.zero_share(alike)
    assert (clustered.value, clustered.n) == (0.5, 50)
    low, high = measure.wilson(24.5, 49)
    assert (clustered.low, clustered.high) == pytest.approx((low, high))
    noisy = (torch.rand(50, 20, generator=torch.Generator().manual_seed(0)) > 0.5).double()
    width = r.zero_share(noisy).high - r.zero_share(noisy).low
    assert width == pytest.approx(np.subtract(*measure.wilson(500, 1000)[::-1]), rel=0.25)
    none = r.zero_share(torch.ones(100, 10))
    assert (none.value, none.low) == (0, 0) and none.high == pytest.approx(measure.wilson(0, 100)[1])


def test_cosines_and_sign_agreement_by_hand():
    a, b = torch.tensor([[1.0, 0, 0], [3, 4, 0], [1, 1, 1]]), torch.tensor([[0, 2.0, 0], [4, 3, 0], [0, 0, 0]])
    assert r.cosines(a, b).tolist() == pytest.approx([0, 24 / 25, 0])
    assert r.cosines(1e-25 * a.double(), b)[1] == pytest.approx(24 / 25)  # tiny gradients still have a direction
    signs = r.sign_agreement(torch.tensor([[1.0, -1, 2, 0]]), torch.tensor([[2.0, 1, 5, 7]]))
    assert signs.tolist() == pytest.approx([2 / 3])


def test_step_rows_put_zeros_sizes_and_signs_together():
    net, images, labels = small()
    at = g.sample_values(images, 6, torch.Generator().manual_seed(0))
    true = g.input_gradients(net, images, labels).flatten(1).gather(1, at)
    coarse = published.Gridded(net, "int8", outputs=False).eval()
    rows = measure.step_rows(coarse, images, labels, at, {"small": 1e-4, "whole": 1 / 255}, true)
    assert rows["value"].tolist() == [1, 0] and (rows["n"] == 6).all()
    assert math.isnan(rows["ratio"][0]) and rows["ratio"][1] == pytest.approx(1, abs=0.02)
    assert rows["sign"][1] == 1 and rows["ratio_low"][1] <= rows["ratio"][1] <= rows["ratio_high"][1]
    half = measure.summarize(torch.tensor([[0.0, 2, -3], [0, 0, 6]]), torch.tensor([[1.0, 1, 1], [5, 5, 3]]))
    assert (half["value"], half["ratio"], half["sign"], half["n"]) == pytest.approx((0.5, 2, 2 / 3, 2))


def test_alignment_finds_a_known_angle_and_its_nulls_are_near_zero():
    generator = torch.Generator().manual_seed(0)
    reference, noise = (torch.randn(60, 3000, generator=generator) for _ in range(2))
    labels = torch.arange(60) % 3
    others = {"same": reference, "turned": reference + noise, "opposite": -reference}
    rows = measure.alignment_rows(reference, others, labels).set_index("network")
    assert rows.loc["same", ["value", "low", "high", "sign"]].tolist() == pytest.approx([1, 1, 1, 1])
    assert rows.loc["turned", "value"] == pytest.approx(math.sqrt(0.5), abs=0.01)
    assert rows.loc["turned", "low"] < rows.loc["turned", "value"] < rows.loc["turned", "high"]
    assert rows.loc["turned", "sign"] == pytest.approx(0.75, abs=0.01)  # 1 − 45°/180°
    assert rows.loc["opposite", ["value", "sign"]].tolist() == pytest.approx([-1, 0])
    assert rows[["null_class", "null_other"]].abs().max().max() < 0.02 and (rows["n"] == 60).all()
    with pytest.raises(InputError, match="shape"):
        measure.alignment_rows(reference, {"short": reference[:, :5]}, labels)


def test_partners_are_never_the_image_itself():
    labels = torch.tensor([0, 0, 1, 1, 1, 2, 2])
    same, other = r.partners(labels, True), r.partners(labels, False)
    assert (labels[same] == labels).all() and (same != torch.arange(7)).all() and (labels[other] != labels).all()
    with pytest.raises(InputError, match="single image"):
        r.partners(torch.tensor([0, 0, 1]), True)


# The published procedure ------------------------------------------------------------------------------------------


def test_adding_in_place_to_integers_cuts_towards_zero_as_numpy_does():
    codes = torch.tensor([5.0, -5, 0, 127, -128]).view(5, 1, 1, 1)
    for sign in (1, -1):
        array = codes.numpy().astype(np.int8)
        for index in range(5):
            array[index, 0, 0, 0] += sign * published.STEP
        ours = g.moved(codes, torch.zeros(5, 1).long(), lambda v: (v + sign * published.STEP).trunc())
        assert ours.flatten().tolist() == array.flatten().tolist()
    assert array.flatten().tolist() == [4, -5, 0, 126, -128]


def test_keras_cross_entropy_of_raw_codes_is_wrong_way_round_and_constant_above_one_half():
    shares = torch.full((5, 10), 0.0)
    shares[:, 0] = torch.tensor([0.25, 0.375, 0.45, 0.75, 0.99])
    shares[:, 1:] = (1 - shares[:, :1]) / 9
    losses = published.keras_cross_entropy(256 * shares - 128, torch.zeros(5).long())
    assert losses[:3].tolist() == pytest.approx([-math.log(0.125 - 0.25 * p) for p in (0.25, 0.375, 0.45)], rel=1e-4)
    assert losses[0] < losses[1] < losses[2], "the loss rises with the probability of the true class"
    assert losses[3:].tolist() == pytest.approx([-math.log(1e-7)] * 2, rel=1e-6)
    assert published.keras_cross_entropy(shares, torch.zeros(5).long())[1] == pytest.approx(-math.log(0.375), rel=1e-5)
    two = published.keras_cross_entropy(torch.tensor([[100.0, -100], [-60, 60], [0, 0]]), torch.tensor([1, 1, 1]))
    assert two[:2].tolist() == pytest.approx([-math.log(1e-7), 1.19e-7], rel=0.01) and two[2].isnan()  # ±∞ and 0/0


def test_the_script_steps_one_input_step_to_one_side_and_divides_by_its_own():
    net, images, labels = small()
    deployed = published.Gridded(net, "int8", outputs=False).eval()
    at = torch.full((6, 1), 7)
    images.flatten(1)[:, 7] = torch.tensor([128, 133, 123, 129, 0, 255]) / 255  # codes 0, 5, −5, 1, −128, 127
    found = published.script_differences(deployed, images, labels, at, loss="dequantized")
    slope = g.input_gradients(net, images, labels).flatten(1)[:, 7]
    ratio = (found[:, 0] / slope)[1:]
    assert found[0, 0] == 0
    assert ratio.tolist() == pytest.approx([1 / 255 / 2e-5] * 5, rel=0.03)  # 196 times too large
    proper = published.script_differences(deployed, images, labels, at, step=1 / 255, loss="dequantized")
    assert (proper[1:4, 0] / slope[1:4]).tolist() == pytest.approx([1] * 3, rel=0.02)


def test_averaging_over_many_images_erases_small_differences_in_float32():
    net, images, labels = small()
    many = torch.rand(999, 3, 4, 4, generator=torch.Generator().manual_seed(0)), torch.arange(999) % 2
    at = g.sample_values(images, 8, torch.Generator().manual_seed(0))
    alone = published.script_differences(net, images, labels, at)
    averaged = published.script_differences(net, images, labels, at, mean=many)
    assert r.zero_share(averaged).value > r.zero_share(alone).value + 0.3
    coarse = published.script_differences(net, images, labels, at, step=0.1, mean=many) * 1000
    assert torch.allclose(coarse, published.script_differences(net, images, labels, at, step=0.1), atol=0.02)


def test_another_input_grid_than_the_papers_is_refused():
    net, images, labels = small()
    deployed = published.Gridded(net, "int8").eval()
    deployed.received = lambda x: x.clamp(0.2, 0.8)
    with pytest.raises(InputError, match="input grid"):
        published.script_differences(deployed, images, labels, torch.zeros(6, 1).long())


def test_the_control_network_rounds_what_it_is_told_to():
    net, images, _ = small()
    off = g.off_grid(images, torch.Generator().manual_seed(0))
    both = published.Gridded(net, "int8").eval()
    assert torch.allclose(both.received(off), images, atol=1e-6)
    assert torch.equal(both(off) * 256, (both(off) * 256).round()) and both.codes(off).dtype == torch.int64
    assert torch.equal(published.Gridded(net, "int8", inputs=False).eval().logits(off), net(off))
    steps = published.Gridded(net, logit_step=0.5).eval().logits(off) / 0.5
    assert torch.equal(steps, steps.round())
    fine = published.Gridded(net, "int16", outputs=False).eval()
    assert torch.allclose(fine(images), net(images).softmax(1), atol=1e-3)
