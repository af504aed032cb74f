"""Grad-CAM against a case that follows by hand, and what counts as looking at the same place."""

import pytest
import torch
from torch import nn

from qpatch.errors import InputError, ParameterError
from qpatch.measure import gradcam
from qpatch.measure.penalties import OTHER, SAME
from qpatch.quant import MultiBit, calibrate


class Two(nn.Module):
    """Two channels, x and 1 − x; the class's logit weighs their sums with +2 and −1 (class 0), or +1 and +3 (class 1)."""

    def __init__(self):
        super().__init__()
        self.conv, self.relu = nn.Conv2d(1, 2, 1), nn.ReLU()
        self.fc = nn.Linear(2, 2, bias=False)
        with torch.no_grad():
            self.conv.weight.copy_(torch.tensor([1.0, -1.0]).view(2, 1, 1, 1))
            self.conv.bias.copy_(torch.tensor([0.0, 1.0]))
            self.fc.weight.copy_(torch.tensor([[2.0, -1.0], [1.0, 3.0]]))

    def forward(self, x):
        return self.fc(self.relu(self.conv(x)).sum((2, 3)))


@pytest.fixture
def images():
    return torch.rand(12, 1, 6, 6, generator=torch.Generator().manual_seed(0))


def test_grad_cam_is_what_its_equation_says(images):
    labels = torch.arange(12) % 2
    maps, classes = gradcam.grad_cam(Two().eval(), images, labels, "relu", batch=5)
    x = images[:, 0]
    expected = torch.where(labels.view(-1, 1, 1) == 0, (2 * x - (1 - x)).relu(), x + 3 * (1 - x))
    assert torch.allclose(maps, expected, atol=1e-6)
    assert torch.equal(classes, Two()(images).argmax(1))


def test_widths_that_are_alike_look_alike_and_other_images_do_not(images):
    net = calibrate(MultiBit(Two().eval(), bits=(8,)).eval(), images)
    labels = net.at(32)(images).argmax(1)
    rows = gradcam.gaze_rows({"two": net}, {"clean": images}, labels, "relu", [8]).set_index(["measure", "compared"])
    assert rows.loc[("correlation", SAME), "value"] > 0.99 and rows.loc[("same place", SAME), "value"] > 0.9
    assert rows.loc[("correlation", OTHER), "value"] < 0.5 and rows["n"].max() <= 12
    gap = rows["value"]["correlation", SAME] - rows["value"]["correlation", OTHER]
    assert rows.loc[("correlation", gradcam.GAP), "value"] == pytest.approx(gap, abs=1e-6)


def test_the_network_is_left_as_it_was(images):
    view = Two().eval()
    gradcam.grad_cam(view, images, torch.zeros(12, dtype=torch.long), "relu")
    assert all(weight.requires_grad and weight.grad is None for weight in view.parameters())
    assert not view.relu._forward_hooks


def test_bad_input_says_the_fix(images):
    labels = torch.zeros(12, dtype=torch.long)
    with pytest.raises(InputError, match="eval"):
        gradcam.grad_cam(Two().train(), images, labels, "relu")
    with pytest.raises(ParameterError, match="no layer"):
        gradcam.grad_cam(Two().eval(), images, labels, "attention")
