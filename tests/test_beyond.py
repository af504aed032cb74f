"""Attacks beyond images: how much of a noise's effect arrives, Square on every feature, and files that are TFLite Micro's."""

import numpy as np
import pytest
import torch
from torch import nn

from qpatch.attacks import pixel
from qpatch.attacks.pixel import small
from qpatch.errors import DataError, InputError, ParameterError
from qpatch.measure.arrival import arrival, margins
from qpatch.quant import tflite
from qpatch.zoo import beyond

TASKS = ("tumours", "speech")


@pytest.fixture(scope="module", params=TASKS)
def bench(request):
    try:
        return beyond.bench(request.param, 24)
    except DataError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def table():
    return beyond.bench("tumours", 60)


class Linear(nn.Module):
    """Two classes; the score of the first is the weighted sum of the features."""

    def __init__(self, weight: torch.Tensor):
        super().__init__()
        self.weight = weight
        self.eval()

    def forward(self, x):
        score = (x * self.weight).sum((1, 2, 3))
        return torch.stack([score, torch.zeros_like(score)], 1)


# How much arrives -----------------------------------------------------------------------------------------------------


def test_margins_are_the_true_score_minus_the_best_other():
    images, labels = torch.rand(5, 1, 3, 10), torch.tensor([0, 1, 0, 1, 1])
    net = Linear(torch.ones(1, 3, 10))
    expected = images.sum((1, 2, 3)) * torch.tensor([1.0, -1, 1, -1, -1])
    assert torch.allclose(margins(net, images, labels), expected)


def test_arrival_is_the_ratio_of_what_is_lost():
    reference = torch.rand(400, generator=torch.Generator().manual_seed(0)) + 0.5
    value, low, high = arrival(0.3 * reference, reference)
    assert (value, low, high) == pytest.approx((0.3, 0.3, 0.3), abs=1e-6)
    noisy = 0.3 * reference + 0.5 * torch.randn(400, generator=torch.Generator().manual_seed(1))
    value, low, high = arrival(noisy, reference)
    assert low < 0.3 < high and high - low == pytest.approx(2 * 1.96 * 0.5 / 20, rel=0.2)  # of the mean of 400, about 1
    assert arrival(noisy, reference) == (value, low, high)
    assert np.isnan(arrival(noisy, -reference)).all()
    with pytest.raises(InputError, match="alike"):
        arrival(noisy, reference[:3])


def test_noise_arrives_as_rounding_predicts(table):
    """The prediction of notebook 17, on inputs that it does not show first: off the lattice all, on it whole steps."""
    for kind, expected in (("as measured", (1.0, 1.0)), ("as bytes", (0.0, 1 / 0.55))):
        rows = beyond.noise_rows(table, (0.45, 0.55), kind)
        rounded = rows[rows["view"] == beyond.ROUNDED]["arrives"]
        assert rounded.tolist() == pytest.approx(expected, abs=0.1 if kind == "as measured" else 0.02)
        assert rows[rows["view"] == "int8"]["arrives"].tolist() == pytest.approx(expected, abs=0.25)
        assert (rows[rows["view"] == "float"]["arrives"] == 1).all()


# Square ---------------------------------------------------------------------------------------------------------------


def test_square_reaches_every_feature_of_a_table(table):
    """Against a linear network the best noise has the sign of the weights everywhere; without a border it cannot."""
    weight = torch.where(torch.arange(30) % 2 == 0, 1.0, -1.0).view(1, 3, 10) * torch.tensor([1.0, -1.0, 1.0]).view(1, 3, 1)
    net, images = pixel.Probabilities(Linear(weight * 0.02)), torch.full((4, 1, 3, 10), 0.5)
    images = images + 0.3 * weight  # far on the side of the first class, so that no square ends the attack
    labels = torch.zeros(4, dtype=torch.int64)
    made = small.square(net, images, labels, eps=0.1, queries=600)
    assert torch.equal((made - images).sign(), -weight.sign().expand_as(images))
    plain = pixel.attack("Square-Linf", net, images, labels, eps=0.1, steps=600)
    assert not torch.equal((plain - images).sign(), -weight.sign().expand_as(images))
    assert (made - images).abs().max() <= 0.1 + 1e-6 and torch.equal(made, small.square(net, images, labels, eps=0.1, queries=600))


def test_square_leaves_network_and_inputs_as_they_were(table):
    before, images = [p.clone() for p in table.float.parameters()], table.images[:8].clone()
    made = small.square(pixel.Probabilities(table.float), images, table.labels[:8], eps=0.05, queries=5)
    assert torch.equal(images, table.images[:8]) and made.shape == images.shape and 0 <= made.min() and made.max() <= 1
    assert all(torch.equal(a, b) for a, b in zip(before, table.float.parameters()))
    with pytest.raises(InputError, match="probabilities"):
        small.square(table.float, images, table.labels[:8], eps=0.05, queries=5)


# Files ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["int8", "int16"])
def test_files_are_bit_for_bit_those_of_tflite_micro(bench, precision):
    file = bench.files[precision]
    emulator = tflite.network(file)
    assert torch.equal(tflite.twin(file)(bench.images), emulator.logits(bench.images))
    if not tflite.installed("tflm"):
        pytest.skip("TFLite Micro is not installed here")
    for features in beyond.FEATURES:
        images = bench.features(features)
        assert torch.equal(emulator.codes(images), tflite.network(file, "tflm").codes(images))


def test_features_as_bytes_lie_on_the_lattice(bench):
    stored = bench.features("as bytes")
    assert torch.equal(stored, (stored * 255).round() / 255) and (stored - bench.images).abs().max() <= 0.5 / 255 + 1e-6
    assert torch.equal(tflite.network(bench.files["int8"]).received(bench.images).mul(255).round(), stored.mul(255).round())
    with pytest.raises(ParameterError, match="as bytes"):
        bench.features("as byte")


def test_the_maker_is_the_float_network(bench):
    assert torch.allclose(bench.maker(bench.images), bench.float(bench.images), atol=1e-3)
    assert (bench.float(bench.images).argmax(1) == bench.labels).float().mean() > 0.9


def test_answers_have_a_row_for_every_condition_of_the_rule(table):
    from qpatch.report import claims, verdict

    (claim,) = [claim for claim in claims.load() if claim.id == "C-OQ3"]
    noise = beyond.noise_rows(table, (0.45, 0.55), "as bytes")
    square, distance = beyond.square_rows(table, 16, 5), beyond.distance_rows(table, 4)
    answers = beyond.answers(beyond.clean_rows(table), noise, square, distance)
    assert not answers[["value", "low", "high", "n"]].isna().any().any()
    results = [result for result in verdict.outcomes_on(claim.rule, answers) if result.case["task"] == "tumours"]
    missing = [result.condition.say for result in results if result.status == verdict.MISSING]
    assert len(results) == 8 and missing == [say for say in missing if "as measured" in say] and len(missing) == 2
