"""TriQDef: its two penalties against their definitions, its curriculum, its patches, and what each part does."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from qpatch import maps as m
from qpatch import zoo
from qpatch.defenses import Likeness, OnlinePatches, PatchPool, TriQDef
from qpatch.defenses.input_gradient import input_gradients
from qpatch.defenses.triqdef import outputs
from qpatch.errors import InputError, ParameterError
from qpatch.quant import MultiBit, Policy, calibrate
from qpatch.training import Batch
from qpatch.zoo import pool as zoo_pool
from qpatch.zoo.losses import TRIQDEF_LOSSES
from qpatch.zoo.recipes import TRIQDEF_DEFENSES
from qpatch.zoo.scenarios import SETTINGS

WIDTHS = (32, 8, 4)
STAGES = ((32, 8), WIDTHS)


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.fc = nn.Conv2d(3, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.Linear(6 * 64, 4)
        self.num_classes = 4

    def forward(self, x):
        return self.fc(torch.relu(self.bn(self.conv(x))).flatten(1))


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    return Batch(torch.rand(12, 3, 16, 16, generator=generator), torch.arange(12) % 4)


@pytest.fixture
def net(batch):
    torch.manual_seed(0)
    made = MultiBit(Small(), WIDTHS, Policy(learned=True, first_last=None)).eval()
    return calibrate(made, batch.images).train()


@pytest.fixture
def defense(batch):
    pool = PatchPool([torch.rand(5, 3, 4, 4, generator=torch.Generator().manual_seed(2))])
    return TriQDef(pool, (WIDTHS,), layers=("bn",), feature_images=4, gradient_images=3)


def values(widths=3, n=4, side=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, 5, side, side, generator=generator, dtype=torch.float64).float() for _ in range(widths)]


# The penalty -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pairs", ["mean", "sum"])
def test_likeness_is_its_definition_pair_by_pair(pairs):
    given = values()
    maps = [m.normalized(m.to_maps(v)) for v in given]
    dice, cosine = [], []
    for i, j in ((0, 1), (0, 2), (1, 2)):
        masks = [m.soft_edges(maps[k], 0.85, 100.0) for k in (i, j)]
        dice.append(m.soft_dice(*masks, 1.0).mean())
        cosine.append(m.cosine(*(m.soft_hog(maps[k], 4, norm="L2") for k in (i, j))).mean())
    combine = torch.sum if pairs == "sum" else torch.mean
    expected = 0.5 * combine(torch.stack(dice)) + 1.0 * combine(torch.stack(cosine))
    assert Likeness(pairs=pairs)(given).item() == pytest.approx(expected.item(), rel=1e-5)


def test_likeness_of_equal_maps_is_the_largest_and_of_one_width_zero():
    (one,) = values(1)
    equal, other = Likeness()([one, one * 3]), Likeness()([one, values(1, seed=5)[0]])
    hard = Likeness(k=5000.0)([one, one * 3])  # soft masks are not quite ones and zeros, so SoftDice with itself is below 1
    assert hard.item() == pytest.approx(1.5, abs=0.02) and other < equal <= hard
    assert Likeness()([one]).item() == 0


def test_likeness_of_flat_maps_has_finite_second_derivatives():
    weight = torch.ones((), requires_grad=True)
    x = torch.zeros(2, 3, 8, 8, requires_grad=True)
    (g,) = torch.autograd.grad((weight * (x * 0)).sum(), x, create_graph=True)
    Likeness(cells=2)([g, g + weight * 0]).backward()
    assert weight.grad.isfinite()


def test_likeness_passes_gradgradcheck(monkeypatch):
    a, b = (v[:, :2].double().requires_grad_(True) for v in values(2, n=1, side=8))
    monkeypatch.setattr(m, "threshold", lambda edges, quantile: 0.5)  # τ is a constant of the penalty by definition

    def penalty(a, b):
        cast = [m.normalized(m.to_maps(v, "l2")) for v in (a, b)]
        masks, histograms = [m.soft_edges(v, k=5.0) for v in cast], [m.soft_hog(v, 4) for v in cast]
        return 0.5 * m.soft_dice(*masks).mean() + m.cosine(*histograms).mean()

    assert torch.autograd.gradcheck(penalty, (a, b))
    assert torch.autograd.gradgradcheck(penalty, (a, b))


def test_likeness_refuses_what_it_cannot_measure():
    with pytest.raises(InputError, match="too small"):
        Likeness(cells=8)(values(2, side=4))
    with pytest.raises(InputError, match="differ in shape"):
        Likeness()([torch.rand(2, 3, 8, 8), torch.rand(2, 3, 16, 16)])
    for wrong in ({"pairs": "max"}, {"norm": "L3"}, {"cells": 0}, {"reduction": "max"}):
        with pytest.raises(ParameterError):
            Likeness(**wrong)


# The loss ------------------------------------------------------------------------------------------------------------


def test_loss_without_penalties_is_clean_plus_patched(net, batch, defense):
    plain = replace(defense, fdp=0.0, gpdp=0.0, adv=2.0)
    reference = copy.deepcopy(net)
    generator = torch.Generator().manual_seed(7)
    patched = plain.patches(reference, batch.images[:6], batch.labels[:6], WIDTHS, generator)
    clean, adversarial = [], []
    for width in WIDTHS:
        logits = reference.at(width)(torch.cat([patched, batch.images[6:]]))
        adversarial.append(F.cross_entropy(logits[:6], batch.labels[:6]))
        clean.append(F.cross_entropy(logits[6:], batch.labels[6:]))
    expected = (torch.stack(clean).mean() + 2 * torch.stack(adversarial).mean()) / 3
    assert plain(net, batch, 7).item() == pytest.approx(expected.item(), rel=1e-5)


def test_each_penalty_adds_its_weighted_likeness(net, batch, defense):
    nets = [copy.deepcopy(net) for _ in range(3)]
    base = replace(defense, fdp=0.0, gpdp=0.0)(nets[0], batch, 3)
    with_features = replace(defense, gpdp=0.0)(nets[1], batch, 3)
    with_gradients = replace(defense, fdp=0.0)(nets[2], batch, 3)
    patched = defense.patches(net, batch.images[:6], batch.labels[:6], WIDTHS, torch.Generator().manual_seed(3))
    maps = []
    for width in WIDTHS:
        with outputs(net.at(width), ("bn",)) as kept:
            net.at(width)(torch.cat([patched, batch.images[6:]]))
        maps.append(kept[0][:4])
    assert (with_features - base).item() == pytest.approx(0.8 / 2 * Likeness()(maps).item(), rel=1e-3)
    # the gradients are those of the networks before their running statistics took this batch in; compare the size only
    assert 0 < (with_gradients - base).item() <= 0.5 / 2 * 1.5


def test_gradient_penalty_reaches_the_weights_and_leaves_the_statistics(net, batch):
    before = copy.deepcopy(net.state_dict())
    Likeness()([input_gradients(net.at(b), batch.images[:3], batch.labels[:3]) for b in WIDTHS]).backward()
    assert net.at(32).conv.weight.grad.abs().sum() > 0 and all(net.at(b).bn.training for b in WIDTHS)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_descent_on_the_penalties_lowers_them(net, batch, defense):
    loss = replace(defense, fdp=0.0, gpdp=50.0)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    measure = lambda: float(  # noqa: E731
        Likeness()([input_gradients(net.at(b), batch.images[:3], batch.labels[:3]) for b in WIDTHS]).detach()
    )
    before = measure()
    for step in range(20):
        optimizer.zero_grad()
        loss(net, batch, step).backward()
        optimizer.step()
    assert measure() < before - 0.02


# The curriculum ---------------------------------------------------------------------------------------------------


def test_input_gradients_are_those_of_the_view_in_eval_mode(net, batch):
    """BatchNorm's shortcut: the gradient and what a penalty on it does to the weights, against torch's own."""
    net.double()
    images, labels = batch.images[:5].double(), batch.labels[:5]
    for view in (net.at(32), net.at(4)):
        norm = view.bn
        kept = norm.running_mean.clone()
        with torch.no_grad():
            norm.weight.uniform_(0.5, 2), norm.bias.uniform_(-1, 1)
        short = input_gradients(view, images, labels)
        parameters = [p for p in view.parameters() if p.requires_grad]
        ours = torch.autograd.grad(short.pow(2).sum(), parameters, allow_unused=True)
        assert norm.training and torch.equal(norm.running_mean, kept) and "forward" not in vars(norm)
        points = images.clone().requires_grad_(True)
        norm.eval()
        loss = torch.nn.functional.cross_entropy(view(points), labels, reduction="sum")
        norm.train()
        plain = torch.autograd.grad(loss, points, create_graph=True)[0]
        theirs = torch.autograd.grad(plain.pow(2).sum(), parameters, allow_unused=True)
        assert torch.allclose(short, plain, rtol=1e-5, atol=1e-8)  # the loss itself is taken in float32
        assert [a is None for a in ours] == [b is None for b in theirs]
        assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-8) for a, b in zip(ours, theirs) if a is not None)


def test_curriculum_trains_only_active_widths_and_initialises_new_ones(net, batch, defense):
    bact = replace(defense, stages=STAGES, starts=(0, 5), calibration=batch.images)
    assert [bact.active(step) for step in (0, 4, 5, 99)] == [(32, 8), (32, 8), WIDTHS, WIDTHS]
    bact(net, batch, 0).backward()
    assert net.at(4).bn.weight.grad is None and net.at(8).bn.weight.grad is not None
    with torch.no_grad():
        net.at(8).bn.weight.fill_(3.0)
        net.at(4).conv.input_quantizer.scale.fill_(77.0)
    bact(net, batch, 5)
    assert torch.equal(net.at(4).bn.weight, net.at(8).bn.weight)
    assert net.at(4).conv.input_quantizer.scale.item() < 1
    with torch.no_grad():
        fresh = net.at(4).conv(batch.images).mean(dim=(0, 2, 3))
    # one pass over the calibration images, then one training step of momentum 0.1 on this batch
    assert torch.allclose(net.at(4).bn.running_mean, fresh, atol=0.05)
    assert net.at(4).bn.momentum == pytest.approx(0.1)


def test_bad_parameters_are_refused(net, batch, defense):
    for wrong in ({"stages": STAGES, "starts": (0,)}, {"stages": STAGES, "starts": (1, 5), "calibration": batch.images},
                  {"stages": STAGES[::-1], "starts": (0, 5), "calibration": batch.images},
                  {"stages": STAGES, "starts": (0, 5)}, {"share": 1.0}, {"fdp": -1.0}):  # fmt: skip
        with pytest.raises(ParameterError):
            replace(defense, **wrong)
    with pytest.raises(ParameterError, match="no layer 'blocks.9'"):
        replace(defense, layers=("blocks.9",))(net, batch, 0)


# Patches --------------------------------------------------------------------------------------------------------------


def test_pool_pastes_its_own_patches_only(batch):
    stacks = [torch.full((2, 3, size, size), size / 10) for size in (3, 5)]
    seen = set()
    for seed in range(12):
        patched = PatchPool(stacks, "random")(None, batch.images, batch.labels, WIDTHS, torch.Generator().manual_seed(seed))
        changed = (patched != batch.images).any(dim=1).flatten(1).sum(dim=1)
        side = 3 if changed[0] == 9 else 5
        assert (changed == side**2).all() and (patched == side / 10).any()
        seen.add(side)
    assert seen == {3, 5}
    with pytest.raises(InputError, match="at least one stack"):
        PatchPool([])
    with pytest.raises(InputError, match=r"\[0, 1\]"):
        PatchPool([torch.full((1, 3, 4, 4), 2.0)])


def test_online_patches_raise_the_loss_and_use_active_widths_only(net, batch):
    met = []
    for width in WIDTHS:
        net.at(width).register_forward_hook(lambda *_, width=width: met.append(width))
    before = copy.deepcopy(net.state_dict())
    patched = OnlinePatches(5, "center", iterations=8)(net, batch.images, batch.labels, (8, 4), torch.Generator().manual_seed(0))
    assert set(met) == {8, 4} and net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    noise = OnlinePatches(5, "center", iterations=1, step=1e-9)(
        net, batch.images, batch.labels, (8, 4), torch.Generator().manual_seed(0)
    )
    net.eval()
    loss = lambda images: sum(F.cross_entropy(net.at(b)(images), batch.labels) for b in (8, 4)).item()  # noqa: E731
    assert loss(patched) > loss(noise)


def test_pool_of_the_zoo_stays_inside_the_seen_setting():
    assert zoo_pool.PLACE == SETTINGS["seen"].place and zoo_pool.HELD_OUT == SETTINGS["target"].target
    assert max(zoo_pool.SIZES) == SETTINGS["seen"].size
    assert set(TRIQDEF_LOSSES) == set(TRIQDEF_DEFENSES)


def test_the_pool_of_the_shipped_float_network_ships(monkeypatch):
    made = []
    monkeypatch.setattr(zoo_pool, "_fetch", lambda view, *_: made.append(view) or ({}, {}))
    stacks = zoo_pool.load_pool(zoo.load("float").at(32), "cifar10")
    assert not made and [tuple(stack.shape) for stack in stacks] == [(15, 3, size, size) for size in zoo_pool.SIZES]
    assert all(torch.equal((stack * 255).round() / 255, stack) and stack.unique().numel() > 100 for stack in stacks)
    with pytest.raises(KeyError):  # any other network gets a pool of its own; the stand-in makes an empty one
        zoo_pool.load_pool(zoo.load("float-s1").at(32), "cifar10")
    assert made
