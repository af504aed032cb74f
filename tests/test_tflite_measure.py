"""Comparing engines layer by layer and networks on the same images."""

import math

import pandas as pd
import pytest
import torch
from torch import nn

from qpatch.measure import deployed_rows, proof_rows
from qpatch.quant import tflite
from qpatch.quant.tflite import compare, write
from qpatch.report import integers
from tests.tflite_cases import Builder


@pytest.fixture(scope="module")
def file() -> bytes:
    builder = Builder("int8", (8, 8, 3), seed=3).conv(6, activation="RELU").conv(8, stride=(2, 2)).pool("AVERAGE")
    builder.tensors[0] = tflite.graph.Tensor("image", (1, 8, 8, 3), "int8", builder.tensors[0].scale * 0 + 1 / 255,
                                             builder.tensors[0].zero * 0 - 128)  # fmt: skip
    return write(builder.flatten().linear(4).graph)


IMAGES = torch.rand(12, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def test_twin_is_the_emulator_in_every_layer_and_the_simulation_is_close(file):
    rows = pd.DataFrame(compare.layer_differences(file, IMAGES, ("twin", "simulation"), "emulator"))
    assert (rows[rows["engine"] == "twin"]["share"] == 0).all()
    simulated = rows[rows["engine"] == "simulation"]
    assert simulated["share"].max() > 0 and simulated["largest"].max() <= 2
    assert rows["kind"].tolist()[:3] == ["CONV_2D", "CONV_2D", "AVERAGE_POOL_2D"]


def test_interpreters_are_compared_after_every_operation(file):
    if not tflite.installed("tflm"):
        pytest.skip("tflite-micro exists for Linux on x86-64 only")
    rows = pd.DataFrame(compare.layer_differences(file, IMAGES[:3], ("emulator",)))
    assert len(rows) == 5 and not rows["share"].any()


def test_simulation_rounds_once():
    """A single layer: what the simulation computes is float32's rounding of accumulator · factor."""
    builder = Builder("int8", (1, 1, 3)).flatten().linear(5)
    (layer,) = [part for part in compare.Integers(builder.graph).layers if hasattr(part, "steps")]
    x = torch.arange(-30.0, 30.0).view(-1, 1).expand(-1, 3).contiguous()
    total = layer.accumulate(x).double() + layer.steps.bias
    expected = (total * layer.steps.factor).round().clamp(layer.steps.low, layer.steps.high)
    assert (compare.simulate(layer, x) - expected).abs().max() <= 1


class Fixed(nn.Module):
    """Gives class 1 to the images whose first pixel is above a bound."""

    def __init__(self, bound: float):
        super().__init__()
        self.bound = bound

    def forward(self, x):
        above = (x[:, 0, 0, 0] > self.bound).float()
        return torch.stack([1 - above, above], 1)


def test_deployed_rows_count_pairs():
    images = torch.linspace(0, 0.99, 100).view(-1, 1, 1, 1).expand(-1, 3, 4, 4).contiguous()
    labels = (images[:, 0, 0, 0] > 0.495).long()
    rows = deployed_rows({"float": Fixed(0.495).eval(), "int8": Fixed(0.595).eval()}, images, labels).set_index("view")
    assert rows["value"].tolist() == [1.0, 0.9] and rows["change"].tolist() == pytest.approx([0.0, -0.1])
    assert rows.loc["int8", "agree"] == pytest.approx(0.9) and rows.loc["int8", "n"] == 100
    half = 1.96 * math.sqrt(0.1 * 0.9 * 100 / 99) / 10
    assert rows.loc["int8", "change_low"] == pytest.approx(-0.1 - half)


def test_proof_rows(file):
    rows = proof_rows({"net": file}, IMAGES)
    assert rows.loc[0, "scores"] == 48 and rows.loc[0, "twin"] == 0 and rows.loc[0, "same_class"] == 1
    assert rows.loc[0, "emulator"] == 0 if tflite.installed("tflm") else math.isnan(rows.loc[0, "emulator"])


def test_figures_are_drawn(file):
    rows = pd.DataFrame(compare.layer_differences(file, IMAGES[:2], ("twin", "simulation"), "emulator"))
    assert len(integers.differences(rows).axes[0].lines) == 3  # two engines and the zero line
    figure = integers.staircase(range(4), {"integers": [0, 0, 1, 1], "other": [0, 1, 1, 1]})
    assert "differs at 1 of 4" in figure.legends[0].get_texts()[1].get_text()
    table = pd.DataFrame({"name": ["a", "a"], "precision": ["int8", "int16"], "low": [0.0, -1.0], "high": [1.0, 1.0],
                          "least": [0.0, 0.0], "most": [1.0, 1.0], "step": [1e-2, 1e-4]})  # fmt: skip
    assert len(integers.resolution(table).axes) == 2
