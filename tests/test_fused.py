"""A fused view is the same function: in double precision to the last digits, at every width and with both estimators."""

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

import qpatch.models  # noqa: F401
from qpatch import data
from qpatch.attacks.expectation import other_estimator
from qpatch.errors import InputError
from qpatch.quant import QUANTIZERS, WIDTHS, MultiBit, Policy, calibrate, fused
from qpatch.quant.fused import Rectified
from qpatch.quant.quantizers import Quantizer


@pytest.fixture(scope="module")
def images():
    return data.load("shapes", "test").floats(slice(0, 12)).double()


def untrained(seed, policy=Policy(), bits=WIDTHS):
    """A ResNet-8 with random layers. BatchNorm is random, too: else many sums are exactly zero, where a ReLU has a kink."""
    torch.manual_seed(seed)
    model = timm.create_model("qpatch_resnet8").eval()
    for norm in [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]:
        for values in (norm.weight, norm.running_var):
            nn.init.uniform_(values, 0.5, 1.5)
        for values in (norm.bias, norm.running_mean):
            nn.init.normal_(values, 0, 0.3)
    net = MultiBit(model, bits, policy).eval()
    calibrate(net, data.load("shapes", "train").floats(slice(0, 64)))
    return net


def gradient(net, images):
    points = images.clone().requires_grad_()
    return torch.autograd.grad(F.cross_entropy(net(points), torch.arange(len(images)) % 4, reduction="sum"), points)[0]


def same(view, images):
    quick = fused(view)
    with torch.no_grad():
        assert torch.allclose(quick(images), view(images), atol=1e-9)
    assert torch.allclose(gradient(quick, images), gradient(view, images), atol=1e-9)
    return quick


@pytest.mark.parametrize("bits", [32, 8, 4, 2])
def test_scores_and_gradients_are_the_views(images, bits):
    view = untrained(0).double().at(bits)
    quick = same(view, images)
    assert gradient(view, images).abs().max() > 1e-4
    assert not [module for module in quick.modules() if isinstance(module, nn.BatchNorm2d)]
    assert not [weight for weight in quick.parameters() if weight.requires_grad]
    if bits != 32:
        # ten layers; two shortcuts share the quantizer of the convolution beside them where the two scales agree
        counts = [sum(isinstance(module, kind) for module in quick.modules()) for kind in (Quantizer, Rectified)]
        assert counts == [8, 5] if bits == 2 else counts[0] <= 10 and counts[1] >= 5
        same(other_estimator(view), images)
        quicker = other_estimator(quick)
        assert torch.allclose(gradient(quicker, images), gradient(other_estimator(view), images), atol=1e-9)
        assert not torch.allclose(gradient(quicker, images), gradient(view, images), atol=1e-9)


@pytest.mark.parametrize("name", QUANTIZERS)
def test_every_quantizer(images, name):
    same(untrained(1, Policy(name), (4,)).double().at(4), images)


@pytest.mark.parametrize("bits", [32, 5])
def test_a_network_of_timm(bits):
    torch.manual_seed(0)
    model, images = timm.create_model("tf_efficientnet_lite0", num_classes=10), torch.rand(8, 3, 64, 64)
    model.train()(images)
    net = MultiBit(model.eval(), (bits,)).eval()
    calibrate(net, images)
    same(net.double().at(bits), images[:4].double())


def test_what_is_no_view_of_ours(images):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(3600, 4))
    model.train()(torch.rand(20, 3, 32, 32))
    same(model.double().eval(), images)  # the ReLU stands between, so this BatchNorm has to stay


def test_a_layer_used_twice(images):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.first, self.second = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)

        def forward(self, x):
            return self.second(self.conv(self.first(self.conv(x)))).flatten(1)

    torch.manual_seed(0)
    model = Twice()
    model.train()(torch.rand(20, 3, 32, 32))
    same(model.double().eval(), images)


def test_the_view_stays_as_it_was(images):
    net = untrained(2)
    view = net.at(4)
    before = {name: value.clone() for name, value in view.state_dict().items()}
    quick = fused(view)
    assert all(torch.equal(value, before[name]) for name, value in view.state_dict().items())
    assert all(weight.requires_grad for weight in view.parameters())
    with torch.no_grad():
        old = quick(images.float())
        net.at(32).conv.weight.mul_(2)
        assert torch.equal(quick(images.float()), old)
    with pytest.raises(InputError, match="train mode"):
        fused(view.train())


def test_a_network_that_looks_at_its_input_is_refused():
    class Looks(nn.Module):
        def forward(self, x):
            return -x if x.mean() > 0 else x

    with pytest.raises(InputError, match="Looks cannot be fused.*use it as it is"):
        fused(Looks().eval())
