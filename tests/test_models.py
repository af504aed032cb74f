"""The networks have the published sizes and shapes, and normalisation is their first layer."""

import pytest
import timm
import torch
from torch import nn

import qpatch.models  # noqa: F401
from qpatch.errors import InputError

# Keras counts BatchNorm's moving statistics and a bias before each BatchNorm as parameters
KERAS_PARAMETERS = {"qpatch_resnet8": 78_666, "qpatch_mobilenetv1_025": 221_794, "qpatch_coffee_cnn": 250_436}
SIZES = {"qpatch_mobilenetv1_025": 96, "qpatch_coffee_cnn": 224, "qpatch_coffee_dscnn": 224}
NAMES = [f"qpatch_{name}" for name in ("resnet8", "resnet20", "resnet56", "vgg11", "vgg16", "mobilenetv1_025")]


@pytest.mark.parametrize("name", NAMES + ["qpatch_coffee_cnn", "qpatch_coffee_dscnn"])
def test_shapes(name):
    model = timm.create_model(name, num_classes=7).eval()
    size = SIZES.get(name, 32)
    assert model(torch.rand(2, 3, size, size)).shape == (2, 7)


@pytest.mark.parametrize("name", KERAS_PARAMETERS)
def test_published_parameter_counts(name):
    model = timm.create_model(name)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    extra = sum(3 * norm.num_features for norm in norms)  # running mean, running variance, convolution bias
    assert sum(p.numel() for p in model.parameters()) + extra == KERAS_PARAMETERS[name]


def test_resnet20_and_56_have_he_et_als_sizes():
    """He et al. 2016, table 6: 0.27 M and 0.85 M parameters."""
    counts = [sum(p.numel() for p in timm.create_model(f"qpatch_resnet{d}").parameters()) for d in (20, 56)]
    assert [round(count / 1e6, 2) for count in counts] == [0.27, 0.85]


def test_public_cifar_checkpoint_names():
    names = set(timm.create_model("qpatch_resnet20").state_dict())
    assert {"conv1.weight", "bn1.running_mean", "layer2.0.conv1.weight", "layer3.2.bn2.bias", "linear.weight"} <= names


def test_normalisation_is_layer_zero():
    model = timm.create_model("qpatch_resnet8")
    first = next(iter(model.children()))
    pixel = first.mean.expand(1, 3, 4, 4)
    assert torch.equal(first(pixel), torch.zeros(1, 3, 4, 4))
    assert torch.allclose(first(pixel + first.std), torch.ones(1, 3, 4, 4), atol=1e-6)


def test_stride_two_pads_bottom_and_right_like_tensorflow():
    block = timm.create_model("qpatch_resnet8").eval().blocks[1]
    block.conv1.weight.data.zero_()
    block.conv1.weight.data[:, :, 2, 2] = 1.0  # reads the bottom right neighbour only
    x = torch.zeros(1, 16, 8, 8)
    x[:, :, 0, 0] = 1.0  # an output at (0, 0) with symmetric padding would see row and column 1
    assert block.conv1(block.pad(x)).abs().sum() == 0
    x[:, :, 2, 2] = 1.0
    assert block.conv1(block.pad(x))[0, 0, 0, 0] == 16


def test_pretrained_says_where_the_weights_are():
    with pytest.raises(InputError, match="qpatch.zoo.load"):
        timm.create_model("qpatch_resnet8", pretrained=True)
