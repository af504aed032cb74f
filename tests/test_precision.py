"""Rows of a network at several precisions, on images whose outcome is known."""

import pytest
import torch
from torch import nn

from qpatch.errors import InputError
from qpatch.measure.precision import precision_rows


class Mean(nn.Module):
    """Class 1 where the mean of the (rounded) image exceeds a half."""

    def __init__(self, steps: int | None = None):
        super().__init__()
        self.steps = steps

    def forward(self, x):
        if self.steps:
            x = torch.floor(x * self.steps + 0.5) / self.steps
        mean = x.mean((1, 2, 3))
        return torch.stack([0.5 - mean, mean - 0.5], dim=1)


def test_rows_count_what_rounding_takes_away():
    images = torch.full((4, 3, 8, 8), 0.4)
    images[2:] = 0.6
    labels = torch.tensor([0, 0, 1, 0])  # the last one is wrong when clean
    pushed = images + torch.tensor([0.15, 0.02, -0.15, 0.0]).view(4, 1, 1, 1)
    rows = precision_rows({"float": Mean().eval(), "coarse": Mean(2).eval()}, {("here", 0.02): pushed}, images, labels)
    rows = rows.set_index("precision")
    assert rows.n["float"] == 3 and rows.asr["float"] == pytest.approx(2 / 3)
    assert rows.accuracy["float"] == pytest.approx(1 / 4) and rows.images["float"] == 4
    # on a grid of 0, ½, 1 the images 0.4 and 0.6 are both ½: class 0 wins the tie before and after
    assert rows.clean_accuracy["coarse"] == pytest.approx(3 / 4) and rows.asr["coarse"] == 0
    assert (rows.asr_noise == 0).all()
    assert rows.acc_low["float"] < rows.accuracy["float"] < rows.acc_high["float"]


def test_the_noise_control_has_the_size_of_the_attack():
    images = torch.full((2, 3, 8, 8), 0.5)
    rows = precision_rows({"float": Mean().eval()}, {("here", 0.3): images}, images, torch.zeros(2, dtype=torch.long))
    again = precision_rows({"float": Mean().eval()}, {("here", 0.3): images}, images, torch.zeros(2, dtype=torch.long))
    assert rows.equals(again) and rows.asr.item() == 0


def test_other_shapes_are_refused():
    images, labels = torch.rand(2, 3, 8, 8), torch.zeros(2, dtype=torch.long)
    with pytest.raises(InputError, match="attacked on twin"):
        precision_rows({"float": Mean().eval()}, {("twin", 0.1): images[:1]}, images, labels)
