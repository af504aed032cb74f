"""Quantizers against integer arithmetic and torch's own fake quantization; views share weights and stay apart."""

import pytest
import timm
import torch
from torch import nn

import qpatch.models  # noqa: F401
from qpatch.errors import InputError, ParameterError
from qpatch.quant import (
    QUANTIZERS, MultiBit, Policy, calibrate, fake_quantize, isolate, post_training_quantize, to_integers,
)  # fmt: skip
from qpatch.quant.quantizers import LSQ, Asymmetric, BinaryConnectWeight, DoReFaWeight, PACTActivation, Symmetric


@pytest.fixture
def images():
    return torch.rand(16, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model():
    torch.manual_seed(0)
    net = timm.create_model("qpatch_resnet8")
    net(torch.rand(64, 3, 32, 32))  # gives BatchNorm statistics that are not the defaults
    return net.eval()


def values(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("low, high, zero", [(-7, 7, 0), (0, 15, 0), (0, 255, 97), (-128, 127, 0)])
def test_forward_and_gradient_equal_torch_fake_quantize(low, high, zero):
    ours, theirs = values(4, 3, 5, 5).requires_grad_(), values(4, 3, 5, 5).requires_grad_()
    scale = torch.tensor([0.0731])
    mine = fake_quantize(ours, scale, low, high, zero=torch.tensor([float(zero)]) if zero else 0)
    reference = torch.fake_quantize_per_tensor_affine(theirs, float(scale), zero, low, high)
    weight = values(4, 3, 5, 5, seed=1)
    (mine * weight).sum().backward()
    (reference * weight).sum().backward()
    # torch multiplies by 1/scale where we divide: one code may differ at a tie, values by rounding only
    assert torch.allclose(mine, reference, atol=1e-6)
    assert torch.equal(ours.grad, theirs.grad)
    assert ours.grad.eq(0).any() or high == 255 or high == 127, "nothing was clipped: the test is empty"


def test_per_channel_equals_torch_fake_quantize():
    x = values(6, 3, 3, 3)
    scale = x.flatten(1).abs().amax(1) / 7 * 0.7
    reference = torch.fake_quantize_per_channel_affine(x, scale, torch.zeros(6, dtype=torch.int32), 0, -7, 7)
    assert torch.allclose(fake_quantize(x, scale.view(-1, 1, 1, 1), -7, 7), reference, atol=1e-6)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("kind", [Symmetric, LSQ, Asymmetric])
def test_fake_quantization_is_integers_times_scale(kind, bits):
    weight = values(8, 3, 3, 3)
    quantizer = kind(bits, channels=8)
    quantizer.calibrate(weight)
    codes = quantizer.integers(weight)
    low, high = quantizer.limits
    assert codes.min() >= low and codes.max() <= high
    zero = quantizer.zero.view(-1, 1, 1, 1)
    assert torch.allclose(quantizer(weight), (codes - zero) * quantizer.scale.view(-1, 1, 1, 1), atol=1e-6)
    assert quantizer(weight).unique().numel() <= 8 * (high - low + 1)


def test_two_bit_codes_are_what_the_docstring_says():
    weights, activations, stepped = Symmetric(2, channels=1), Symmetric(2, channels=None), LSQ(2, channels=1)
    weights.calibrate(values(1, 50))
    activations.calibrate(values(50).abs())
    stepped.calibrate(values(1, 50))
    assert weights.limits == (-1, 1) and activations.limits == (0, 3) and stepped.limits == (-2, 1)


def test_convolution_of_codes_is_exact_integer_arithmetic():
    """The point of fake quantization: the float convolution equals the integer one, times both scales."""
    x, w = values(2, 3, 8, 8).abs(), values(4, 3, 3, 3)
    activation, weight = Symmetric(4, channels=None), Symmetric(4, channels=4)
    activation.calibrate(x)
    weight.calibrate(w)
    fake = nn.functional.conv2d(activation(x), weight(w))
    exact = nn.functional.conv2d(activation.integers(x).double(), weight.integers(w).double())
    assert torch.equal(exact, exact.round())
    scaled = exact * activation.scale.double() * weight.scale.double().view(1, -1, 1, 1)
    assert torch.allclose(fake.double(), scaled, atol=1e-4)


def test_identity_estimator_passes_what_the_clipped_one_stops():
    x = torch.tensor([0.1, 5.0], requires_grad=True)
    for ste, expected in (("clipped", [1.0, 0.0]), ("identity", [1.0, 1.0])):
        (gradient,) = torch.autograd.grad(fake_quantize(x, torch.tensor([0.1]), 0, 15, ste=ste).sum(), x)
        assert gradient.tolist() == expected


def test_learned_scale_gradient_is_equation_3_of_lsq():
    x, scale = torch.tensor([0.26, 9.0, -9.0]), torch.tensor([0.1], requires_grad=True)
    fake_quantize(x, scale, -7, 7, scale_gradient_factor=0.5).sum().backward()
    expected = 0.5 * ((3 - 2.6) + 7 + (-7))  # inside: code − x/scale; clipped: the code itself
    assert scale.grad.item() == pytest.approx(expected, abs=1e-5)


def test_gradient_of_the_gradient_exists():
    """Penalties on input gradients differentiate twice through the estimator."""
    x = values(2, 3, 6, 6).requires_grad_()
    conv = nn.Conv2d(3, 2, 3)
    y = fake_quantize(conv(x), torch.tensor([0.1]), -7, 7).square().sum()
    (gradient,) = torch.autograd.grad(y, x, create_graph=True)
    gradient.square().sum().backward()
    assert conv.weight.grad.abs().sum() > 0


def test_least_squares_range_loses_less_than_the_largest_magnitude():
    weight = values(4, 200)
    errors = {}
    for kind in ("max", "mse"):
        quantizer = Symmetric(3, channels=4, range=kind)
        quantizer.calibrate(weight)
        errors[kind] = (quantizer(weight) - weight).square().sum().item()
    assert errors["mse"] < 0.8 * errors["max"]


def test_dorefa_weight_is_equation_9():
    w = values(3, 4)
    got = DoReFaWeight(2, channels=3)(w)
    unit = torch.tanh(w) / (2 * torch.tanh(w).abs().max()) + 0.5
    assert torch.allclose(got, (2 * torch.round(3 * unit) / 3 - 1) * w.abs().mean(), atol=1e-6)


def test_pact_gradient_of_alpha_counts_clipped_values():
    quantizer = PACTActivation(4, channels=None)
    quantizer.calibrate(torch.tensor([0.0, 1.0]))
    quantizer.scale.data.fill_(0.1)  # α = 1.5
    quantizer(torch.tensor([0.4, 2.0, 3.0])).sum().backward()
    assert quantizer.scale.grad.item() == pytest.approx(2 / 15)  # two values are clipped; a step of scale is 1/15 of α's


def test_binaryconnect_has_two_values_and_a_clipped_gradient():
    w = torch.tensor([[0.3, -0.2, 2.0]], requires_grad=True)
    y = BinaryConnectWeight(1, channels=1)(w)
    assert y.detach().abs().unique().numel() == 1 and y.detach().sign().tolist() == [[1.0, -1.0, 1.0]]
    y.sum().backward()
    assert w.grad[0, 2] == 0 and w.grad[0, 0] > 0


def test_float_view_is_bit_exact_and_the_model_is_not_touched(model, images):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    net = post_training_quantize(model, images)
    assert torch.equal(net.at(32)(images), model(images))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_views_share_weights_but_not_batchnorm(model, images):
    net = calibrate(MultiBit(model, (8, 2)), images)
    assert net.at(8).conv._parameters["weight"] is net.at(32).conv.weight
    assert net.at(8).fc.bias is net.at(2).fc.bias
    assert net.at(8).bn.weight is not net.at(2).bn.weight
    shared = MultiBit(model, (8, 2), Policy(batchnorm="shared"))
    assert shared.at(8).bn is shared.at(2).bn
    counts = [sum(p.numel() for p in n.parameters()) for n in (net, shared)]
    assert counts[0] > counts[1] == sum(p.numel() for p in model.parameters())


def test_more_bits_are_closer_to_float(model, images):
    net = post_training_quantize(model, images)
    distance = {bits: (net.at(bits)(images) - model(images)).norm().item() for bits in (8, 5, 4, 2)}
    assert 0 < distance[8] < distance[5] < distance[4] < distance[2]


def test_eval_view_keeps_its_weights_until_they_change(model, images):
    net = post_training_quantize(model, images, bits=(4,))
    view = net.at(4)
    assert view.blocks[0].conv1.weight is view.blocks[0].conv1.weight
    before = view(images)
    with torch.no_grad():
        net.at(32).blocks[0].conv1.weight.mul_(-1)
    assert not torch.equal(view(images), before)


def test_train_mode_gives_gradients_to_the_latent_weight(model, images):
    net = calibrate(MultiBit(model, (4,), Policy(learned=True)), images)
    net.at(4).train()(images).sum().backward()
    layer = net.at(4).blocks[1].conv1
    assert net.at(32).blocks[1].conv1.weight.grad.abs().sum() > 0
    assert layer.input_quantizer.scale.grad.abs().sum() > 0


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_every_quantizer_trains_a_step(quantizer, model, images):
    net = calibrate(MultiBit(model, (4,), Policy(quantizer=quantizer)), images)
    view = net.at(4).train()
    optimizer = torch.optim.SGD(view.parameters(), lr=0.01)
    labels = torch.arange(16) % 10
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(view(images), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_first_and_last_layer_policy(model):
    for policy, expected in ((8, 8), (None, 2), (32, None)):
        view = MultiBit(model, (2,), Policy(first_last=policy)).at(2)
        for layer in (view.conv, view.fc):
            assert getattr(getattr(layer, "weight_quantizer", None), "bits", None) == expected
        assert view.blocks[0].conv1.weight_quantizer.bits == 2


@pytest.mark.parametrize("name", ["mobilenetv2_050", "resnet18", "tf_efficientnet_lite0"])
def test_works_on_timm_networks(name):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=5).eval()
    x = torch.rand(2, 3, 64, 64)
    net = post_training_quantize(model, x, bits=(8, 4))
    assert torch.equal(net.at(32)(x), model(x))
    far, near = ((net.at(bits)(x) - model(x)).norm() for bits in (4, 8))
    assert 0 < near < far


def test_errors_say_what_to_do(model, images):
    net = MultiBit(model, (8,))
    with pytest.raises(ParameterError, match="unknown bit-width 3; choose one of 32, 8"):
        net.at(3)
    with pytest.raises(ParameterError, match="whole number from 1 to 16"):
        MultiBit(model, (64,))
    with pytest.raises(ParameterError, match="symmetric"):
        Policy(quantizer="symetric")
    with pytest.raises(ParameterError, match="no scale to learn"):
        Policy(quantizer="dorefa", learned=True)
    with pytest.raises(InputError, match="divide by 255"):
        calibrate(net, images * 255)
    with pytest.raises(InputError, match="every calibration value"):
        Symmetric(8, channels=None).calibrate(torch.zeros(10))
    with pytest.raises(InputError, match="NaN"):
        Symmetric(8, channels=None).calibrate(torch.tensor([float("nan")]))
    with pytest.raises(InputError, match="no convolution"):
        MultiBit(nn.ReLU())


def test_to_integers_rounds_half_to_even():
    codes = to_integers(torch.tensor([0.5, 1.5, 2.5, 99.0]), torch.tensor([1.0]), 0, 15)
    assert codes.tolist() == [0, 2, 2, 15]


def test_isolated_parts_are_what_they_say(model, images):
    view = post_training_quantize(model, images, bits=(4,)).at(4)
    assert torch.equal(isolate(view, "everything")(images), view(images))
    weights, clipping = isolate(view, "weights"), isolate(view, "clipping")
    assert torch.equal(weights.conv.weight, view.conv.weight) and torch.equal(clipping.conv.weight, model.conv.weight)
    layer, x = view.blocks[1].conv1, torch.linspace(-1, 50, 500).view(1, 1, 1, -1)
    assert torch.equal(weights.blocks[1].conv1.input_quantizer(x), x)
    clipped, quantized = clipping.blocks[1].conv1.input_quantizer(x), layer.input_quantizer(x)
    assert clipped.max() == quantized.max() and clipped.min() == quantized.min() == 0
    assert clipped.unique().numel() > 16 >= quantized.unique().numel()
    with pytest.raises(ParameterError, match="unknown part 'bias'"):
        isolate(view, "bias")
