"""Rows of the policy comparison: what they receive, what their controls share with them, and how runs become tables."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from qpatch.attacks.patch import round_to_bytes
from qpatch.errors import ParameterError
from qpatch.quant import Policy, post_training_quantize
from qpatch.quant.multibit import QuantizedLayer
from qpatch.quant.widen import widened
from qpatch.zoo import policy_runs
from qpatch.zoo.policies import POLICIES, Behind, InSteps, contender
from qpatch.zoo.recipes import ENTRIES

KINDS = ("symmetric", "asymmetric", "dorefa", "pact", "lsq")


@pytest.fixture(scope="module")
def images():
    return torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(96, 4)
    return nn.Sequential(*layers).eval()


def quantized(model, images, kind, bits=3):
    policy = Policy(kind, learned=kind in ("lsq", "pact"), range="max" if kind == "asymmetric" else "mse")
    return post_training_quantize(model, images, (bits,), policy).at(bits)


def layers(view):
    return [module for module in view.modules() if isinstance(module, QuantizedLayer)]


# ------------------------------------------------------------------------------------------------ widened


@pytest.mark.parametrize("kind", KINDS)
def test_widening_takes_the_rounding_away_and_nothing_else(model, images, kind):
    view = quantized(model, images, kind)
    with torch.no_grad():
        for coarse, wide in zip(layers(view), layers(widened(view))):
            weight = coarse._parameters["weight"]
            rough, smooth = coarse.weight_quantizer(weight), wide.weight_quantizer(weight)
            step = max(float(channel.unique().diff().min()) for channel in rough)
            assert 0 < (rough - smooth).abs().max() <= 0.55 * step, "within half a coarse step"
            assert (smooth.amax() - rough.amax()).abs() <= 0.55 * step, "the same range"
    first, inner = (layer.input_quantizer for layer in layers(widened(view))[:2])
    assert (first.bits, inner.bits) == (8, 16)
    old = layers(view)[1].input_quantizer
    top = [float(((one.limits[1] - one.zero) * one.scale).detach()) for one in (old, inner)]
    assert top[0] == pytest.approx(top[1], rel=0.001)


def test_widening_leaves_the_view_alone_and_shares_nothing(model, images):
    view = quantized(model, images, "lsq")
    with torch.no_grad():
        before = view(images)
        fine = widened(view)
        fine[0]._parameters["weight"].add_(1)
        assert torch.equal(view(images), before)
    assert not fine.training


def test_widened_asymmetric_keeps_an_exact_zero(model, images):
    inner = layers(widened(quantized(model, images, "asymmetric")))[1].weight_quantizer
    assert not inner(torch.zeros(6, 6, 3, 3)).any()


def test_what_cannot_be_widened_is_refused(model, images):
    with pytest.raises(ParameterError, match="signs"):
        widened(post_training_quantize(model, images, (1,), Policy("binaryconnect", first_last=None)).at(1))
    with pytest.raises(ParameterError, match="coarser"):
        widened(quantized(model, images, "symmetric", bits=4), bits=2)


# ------------------------------------------------------------------------------------------------ rows


def test_every_row_has_a_network_and_every_control_is_a_row():
    for row in POLICIES.values():
        assert row.control == "" or row.control in POLICIES
        if row.training == "fine-tuned":
            stored = "tiny-" + row.name.removesuffix("-wide").removeprefix("tuned-")
            assert stored in ENTRIES or stored == "tiny-binaryconnect-1" and "tiny-binaryconnect" in ENTRIES
    assert len({row.label for row in POLICIES.values() if row.training == "fine-tuned"}) == sum(
        row.training == "fine-tuned" for row in POLICIES.values())  # fmt: skip
    assert not POLICIES["tuned-binaryconnect-1"].control
    with pytest.raises(ParameterError, match="Did you mean 'tflite-int8'"):
        contender("tflite-int9")


def test_behind_receives_rounded_images_and_lets_gradients_through(model, images):
    behind = Behind(model, round_to_bytes)
    assert not behind.training
    torch.testing.assert_close(behind.received(images) * 255, (images * 255).round())
    torch.testing.assert_close(behind(images), model(round_to_bytes(images)))
    shown = images.clone().requires_grad_()
    through = torch.autograd.grad(behind(shown).sum(), shown)[0]
    rounded = round_to_bytes(images).requires_grad_()
    torch.testing.assert_close(through, torch.autograd.grad(model(rounded).sum(), rounded)[0])


def test_scores_in_steps(model, images):
    fine = InSteps(model, step=1e-6)(images)
    assert torch.equal(fine * 256, (fine * 256).round()) and fine.max() <= 255 / 256
    assert (fine - model(images).softmax(1)).abs().max() <= 0.5 / 256 + 1e-6
    logits = (model(images) / 0.25).round() * 0.25
    assert (InSteps(model, step=0.25)(images) - logits.softmax(1)).abs().max() <= 0.5 / 256 + 1e-6


# ------------------------------------------------------------------------------------------------ tables


def fake(clean, attacked, distances):
    run = {"clean": torch.tensor(clean), "PGD 1": torch.tensor(attacked)}
    return run | {key: torch.tensor(distances) * (2 if "received" in key else 1) for key in policy_runs.DISTANCES}


RUNS = {
    "float": fake([True, True, True, False], [False, False, True, False], [1.0, 2.0, 4.0, math.nan]),
    "float-rounded": fake([True, True, True, False], [False, True, True, False], [2.0, 4.0, 8.0, math.nan]),
    "tflite-int8": fake([True, True, False, True], [True, True, False, False], [1.0, 6.0, math.nan, math.inf]),
}


def test_accuracy_rows_count():
    table = policy_runs.accuracy_rows(RUNS).set_index(["name", "attack"])
    assert table.loc[("float", "PGD"), ["size", "n", "accuracy", "clean"]].tolist() == [1, 4, 0.25, 0.75]
    assert table.loc[("float", "clean"), "size"] == 0
    assert (table["low"] < table["accuracy"]).all() and (table["high"] > table["accuracy"]).all()


def test_gaps_are_paired_by_image():
    (row,) = policy_runs.gap_rows(RUNS, [("tflite-int8", "float")], ["PGD 1"]).to_dict("records")
    assert row["gap"] == 0.25 and row["n"] == 4 and row["low"] < 0.25 < row["high"]


def test_distances_are_set_against_float_and_control():
    table = policy_runs.distance_rows(RUNS).set_index(["name", "against", "directions", "measured"])
    own = table.loc[("tflite-int8", "float", "nearest", "handed in")]
    assert own["ratio"] == pytest.approx((1.0 + 3.0) / 2) and own["n"] == 2
    assert own["never"] == pytest.approx(1 / 3) and own["clean"] == 0.75
    control = table.loc[("tflite-int8", "control", "nearest", "received")]
    assert control["versus"] == "float-rounded" and control["ratio"] == pytest.approx((0.5 + 1.5) / 2)
    assert ("float-rounded", "float", "random", "handed in") in table.index
    assert not any(name == "float" for name, *_ in table.index)


def test_shipped_runs_are_whole():
    shipped = [name for name in POLICIES if policy_runs._path(name).exists()]
    if not shipped:
        pytest.skip("no policy runs ship yet; python -m qpatch.zoo policies makes them")
    plan = policy_runs.SHIPPED
    for name in shipped:
        run = policy_runs.load_policy_run(name)
        assert len(run["clean"]) == plan.images and run["clean"].dtype == torch.bool
        assert all(len(run[key]) == plan.distance_images for key in policy_runs.DISTANCES)
        for size in plan.sizes:
            assert len(run[f"PGD {size}"]) == len(run[f"PGD from float {size}"]) == plan.images >= 500
        if not name.endswith("-wide"):
            assert len(run[f"Square {plan.query_size}"]) == len(run["DeepFool"]) == plan.query_images >= 100
        assert torch.equal(run["nearest"].isnan(), run["random"].isnan())
        found = run["nearest"].isfinite()
        assert (run["nearest"][found] <= run["made on float"][found]).all()
        assert (run["nearest"][found] <= run["nearest, received"][found] * 1.02).all() or name.startswith("tuned")
