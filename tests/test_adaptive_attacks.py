"""Attacks that know the defense: means over lots, the other gradient through the same network, and matched widths."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from qpatch import data
from qpatch.attacks import LaVAN
from qpatch.attacks.aligned import AlignedLaVAN
from qpatch.attacks.expectation import Expectation, other_estimator, with_estimator
from qpatch.defenses import Likeness, RandomPrecision
from qpatch.errors import InputError, ParameterError
from qpatch.quant import MultiBit, Policy, calibrate
from untrained import untrained


@pytest.fixture(scope="module")
def net():
    return untrained(0)


@pytest.fixture(scope="module")
def shapes():
    return data.load("shapes", "test").take(torch.arange(6))


def gradient(view, images, labels):
    images = images.clone().requires_grad_()
    return torch.autograd.grad(F.cross_entropy(view(images), labels), images)[0]


def test_the_expectation_is_the_mean_over_draws(net, shapes):
    images, _ = shapes
    views = {bits: net.at(bits) for bits in (32, 2)}
    draws = RandomPrecision(views, seed=3)
    wanted = torch.stack([draws(images) for _ in range(3)]).mean(0)
    assert torch.allclose(Expectation(RandomPrecision(views, seed=3), 3)(images), wanted)
    assert torch.allclose(Expectation(net.at(4), 2)(images), net.at(4)(images), atol=1e-6)
    with pytest.raises(ParameterError):
        Expectation(net.at(4), 0)


def test_the_other_estimator_changes_the_gradient_and_nothing_else(net, shapes):
    view, twin = net.at(2), other_estimator(net.at(2))
    assert torch.equal(view(shapes[0]), twin(shapes[0]))
    assert not torch.allclose(gradient(view, *shapes), gradient(twin, *shapes))
    assert torch.equal(gradient(view, *shapes), gradient(other_estimator(twin), *shapes))
    assert torch.equal(gradient(net.at(32), *shapes), gradient(other_estimator(net.at(32)), *shapes))


def test_identity_passes_where_clipped_stops():
    """One quantizer with codes 0…3 and scale ¼: 0.9 is clipped, so only the identity lets its gradient through."""
    layer = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.ReLU(), nn.Conv2d(1, 1, 1, bias=False))
    net = MultiBit(layer, (2,), Policy(first_last=None)).eval()
    view = net.at(2)
    for module in (view[0], view[2]):
        module._parameters["weight"].data.fill_(1.0)
    calibrate(net, torch.rand(8, 1, 4, 4))
    for module in (view[0], view[2]):
        module.input_quantizer.scale.data.fill_(0.25)
        module.weight_quantizer.scale.data.fill_(1.0)
    x = torch.tensor([[[[0.5, 0.9]]]], requires_grad=True)
    slopes = [torch.autograd.grad(each(x).sum(), x)[0].flatten().tolist() for each in (view, with_estimator(view, "identity"))]
    assert slopes == [[1.0, 0.0], [1.0, 1.0]]


def test_pact_and_unknown_estimators_are_refused(net):
    pact = MultiBit(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1)), (4,), Policy("pact", learned=True))
    with pytest.raises(InputError, match="PACT"):
        with_estimator(pact.at(4), "identity")
    with pytest.raises(ParameterError):
        with_estimator(net.at(4), "soft")


def test_one_view_without_penalties_is_lavan(net, shapes):
    options = {"steps": 4, "place": "away", "seed": 5}
    plain = LaVAN(net.at(4), 6, **options)(*shapes)
    assert torch.equal(AlignedLaVAN({4: net.at(4)}, 6, features=0, gradients=0, **options)(*shapes), plain)


def test_the_objective_descends_along_its_gradient():
    """On a smooth network the gradient of all three terms equals difference quotients."""
    torch.manual_seed(0)
    views = {b: nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Tanh(), nn.AdaptiveAvgPool2d(4), nn.Flatten(),
                              nn.Linear(64, 3)).double().eval() for b in (32, 2)}  # fmt: skip
    likeness = Likeness(k=5.0, alpha=1.0)
    attack = AlignedLaVAN(views, 4, likeness=likeness, features=2.0, gradients=3.0, layers=("1",))
    labels = torch.tensor([0, 1])

    def value(x):
        return attack.objective(attack.net(x), labels, False)

    images = torch.rand(2, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    slope = torch.autograd.grad(value(images).sum(), images)[0]
    along = torch.randn_like(images).detach()
    step = 1e-4
    high, low = (value((images + sign * step * along).detach().requires_grad_()).sum() for sign in (1, -1))
    quotient = float((high - low).detach()) / (2 * step)
    # the quantile of an edge mask is a constant of the gradient, as in the defense: it makes the small rest
    assert float((slope * along).sum()) == pytest.approx(quotient, rel=0.2, abs=2e-2)


def test_matching_raises_the_likeness_and_leaves_the_network_alone(net, shapes):
    views, likeness = {bits: net.at(bits) for bits in (32, 2)}, Likeness()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    scores = {}
    for weight in (0.0, 50.0):
        attack = AlignedLaVAN(views, 12, likeness=likeness, features=weight, gradients=0.0, steps=12, lr=0.1)
        patched = attack(*shapes)
        watched = AlignedLaVAN(views, 12, likeness=likeness, features=1.0, gradients=0.0)
        with torch.no_grad():
            watched.net(patched)
            scores[weight] = float(torch.stack([watched._alike(maps) for maps in watched.net.features]).mean())
    assert scores[50.0] > scores[0.0]
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert all(weight.requires_grad for weight in net.at(32).parameters())
    assert not any(module._forward_hooks for module in net.modules())


def test_gradient_matching_runs_on_quantized_views(net, shapes):
    views = {bits: net.at(bits) for bits in (32, 2)}
    attack = AlignedLaVAN(views, 6, likeness=Likeness(), steps=2)
    assert attack(*shapes).shape == shapes[0].shape
    assert attack.made_on()["features"] == 0.8


def test_wrong_parameters_are_refused(net, shapes):
    with pytest.raises(ParameterError, match="likeness"):
        AlignedLaVAN({2: net.at(2)}, 6)
    with pytest.raises(ParameterError, match="no layer"):
        AlignedLaVAN({2: net.at(2)}, 6, likeness=Likeness(), layers=("nowhere",), steps=1)(*shapes)
