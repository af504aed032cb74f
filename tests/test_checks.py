"""Every wrong batch or network gets one message that says the fix."""

import pytest
import torch
from torch import nn

from qpatch.checks import check_eval, check_images, check_labels
from qpatch.errors import InputError, ParameterError, QpatchError, one_of

GOOD = torch.rand(2, 3, 8, 8)


@pytest.mark.parametrize(
    "images, fix",
    [
        (GOOD.numpy(), "torch.from_numpy"),
        ((GOOD * 255).to(torch.uint8), r"images.float\(\) / 255"),
        (GOOD.double(), r"must be float32, got torch.float64; use images.float\(\)"),
        (GOOD[0], r"unsqueeze\(0\)"),
        (GOOD.permute(0, 2, 3, 1), r"look like NHWC: use images.permute\(0, 3, 1, 2\)"),
        (GOOD * 255, "divide by 255"),
        (GOOD - 0.5, "normalisation is the network's first layer"),
        (GOOD * float("nan"), r"must lie in \[0, 1\]"),
        (GOOD[:0], "empty"),
    ],
)
def test_bad_images_are_answered_with_the_fix(images, fix):
    with pytest.raises(InputError, match=fix):
        check_images(images)


def test_images_on_another_device_than_the_network():
    with pytest.raises(InputError, match=r"images are on meta but the network is on cpu; use images.to\('cpu'\)"):
        check_images(torch.empty(2, 3, 8, 8, device="meta"), nn.Conv2d(3, 1, 1))


def test_good_images_pass_unchanged():
    assert check_images(GOOD, nn.Conv2d(3, 1, 1)) is GOOD


@pytest.mark.parametrize("labels", [torch.tensor([0.0, 1.0]), torch.tensor([0]), [0, 1], torch.tensor([0, -1])])
def test_bad_labels(labels):
    with pytest.raises(InputError, match="labels must be"):
        check_labels(labels, 2)


def test_a_single_module_in_train_mode_is_found_and_named():
    net = nn.Sequential(nn.Conv2d(3, 1, 1), nn.BatchNorm2d(1)).eval()
    check_eval(net)
    net[1].train()
    with pytest.raises(InputError, match=r"module '1'.*net.eval\(\)"):
        check_eval(net)


def test_unknown_choices_list_the_choices_and_the_nearest():
    with pytest.raises(ParameterError, match="unknown fruit 'appel'; choose one of apple, pear. Did you mean 'apple'"):
        one_of("appel", ("apple", "pear"), "fruit")
    assert issubclass(ParameterError, QpatchError) and issubclass(QpatchError, ValueError)
