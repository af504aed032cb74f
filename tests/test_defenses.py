"""Train-time defenses: each loss against a value computed by other means, and the attack inside them."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchattacks
from scipy.optimize import linprog
from torch import nn

from qpatch import data
from qpatch.defenses import (
    AdversarialTraining, Distillation, EnsembleAdversarialTraining, QuantizationShiftTraining, SinkhornTraining, linf_pgd,
    sinkhorn_divergence,
)  # fmt: skip
from qpatch.errors import InputError, ParameterError
from qpatch.quant import MultiBit, calibrate
from qpatch.training import Batch, Recipe, train
from qpatch.zoo.losses import LOSSES, make_loss
from qpatch.zoo.recipes import entry


class Small(nn.Module):
    def __init__(self, classes: int = 4):
        super().__init__()
        self.conv, self.bn, self.fc = nn.Conv2d(3, 6, 3, 2), nn.BatchNorm2d(6), nn.Linear(6, classes)
        self.num_classes = classes

    def forward(self, x):
        return self.fc(torch.relu(self.bn(self.conv(x))).mean((2, 3)))


@pytest.fixture
def net():
    torch.manual_seed(0)
    return MultiBit(Small(), (32,)).eval()


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    return Batch(torch.rand(12, 3, 10, 10, generator=generator), torch.arange(12) % 4)


def test_inner_attack_is_torchattacks_pgd(net, batch):
    ours = linf_pgd(net.at(32), *batch, eps=0.02, step=0.005, iterations=6)
    theirs = torchattacks.PGD(net.at(32), eps=0.02, alpha=0.005, steps=6, random_start=False)(*batch)
    assert torch.allclose(ours, theirs, atol=1e-6)


def test_one_step_is_fgsm(net, batch):
    ours = linf_pgd(net.at(32), *batch, eps=0.02, step=0.02, iterations=1)
    assert torch.allclose(ours, torchattacks.FGSM(net.at(32), eps=0.02)(*batch), atol=1e-6)


def test_inner_attack_leaves_the_network_as_it_was(net, batch):
    net.train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    linf_pgd(net.at(32), *batch, eps=0.02, step=0.01, iterations=2, generator=torch.Generator())
    assert net.at(32).training
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert all(weight.requires_grad and weight.grad is None for weight in net.parameters())


def test_inner_attack_stays_in_the_ball_and_in_the_image_range(net, batch):
    start = torch.Generator().manual_seed(3)
    attacked = linf_pgd(net.at(32), *batch, eps=0.05, step=0.04, iterations=3, generator=start)
    assert float((attacked - batch.images).abs().max()) <= 0.05 + 1e-6
    assert float(attacked.min()) >= 0 and float(attacked.max()) <= 1


@pytest.mark.parametrize("sizes", [{"eps": 0.0}, {"step": -1.0}, {"iterations": 0}])
def test_inner_attack_refuses_sizes_that_are_not_positive(net, batch, sizes):
    with pytest.raises(ParameterError, match="positive"):
        linf_pgd(net.at(32), *batch, **({"eps": 0.1, "step": 0.1, "iterations": 1} | sizes))


def test_adversarial_training_is_the_loss_on_the_attacked_batch(net, batch):
    defense = AdversarialTraining(eps=0.03, step=0.01, iterations=3)
    attacked = defense.attack(net.at(32), batch, 7)
    expected = F.cross_entropy(net.at(32)(attacked), batch.labels).detach()
    assert torch.allclose(defense(net, batch, 7), expected)
    assert float(expected) > float(F.cross_entropy(net.at(32)(batch.images), batch.labels))


def test_distillation_by_hand(batch):
    torch.manual_seed(0)
    student, teacher = MultiBit(Small(), (32,)).eval(), Small().eval()
    value = Distillation(teacher, temperature=20, alpha=0.1)(student, batch, 0)
    logits, targets = student.at(32)(batch.images).detach().numpy(), teacher(batch.images).detach().numpy()
    soft = lambda z: np.exp(z) / np.exp(z).sum(1, keepdims=True)  # noqa: E731
    p, q = soft(targets / 20), soft(logits / 20)
    hard = -np.log(soft(logits)[np.arange(12), batch.labels.numpy()]).mean()
    assert float(value) == pytest.approx(0.1 * hard + 0.9 * 400 * (p * np.log(p / q)).sum(1).mean(), rel=1e-3)


def test_distillation_from_itself_is_the_hard_part_alone(net, batch):
    value = Distillation(net.at(32), alpha=0.25)(net, batch, 0)
    assert float(value) == pytest.approx(0.25 * float(F.cross_entropy(net.at(32)(batch.images), batch.labels)), rel=1e-4)


def test_distillation_takes_the_teacher_at_another_temperature(net, batch):
    ours, published = Distillation(net.at(32)), Distillation(net.at(32), teacher_temperature=1.0)
    assert float(published(net, batch, 0)) > float(ours(net, batch, 0))


def test_ensemble_attacks_the_static_networks_and_not_the_trained_one(net, batch):
    static = Small().eval()
    calls = []
    static.register_forward_hook(lambda *_: calls.append(1))
    defense = EnsembleAdversarialTraining((static,), iterations=4)
    for step in range(8):
        defense(net, batch, step)
    assert set(np.diff([0, *np.cumsum([1] * len(calls))])) == {1} and 8 < len(calls) < 32  # some FGSM, some PGD
    attacked = net.at(32)(batch.images)
    attacked.sum().backward()
    assert all(weight.grad is None for weight in static.parameters())


def test_sinkhorn_divergence_of_a_cloud_with_itself_is_zero():
    cloud = torch.rand(9, 4, generator=torch.Generator().manual_seed(0))
    assert float(sinkhorn_divergence(cloud, cloud)) == pytest.approx(0, abs=1e-5)


def test_sinkhorn_divergence_of_two_points_is_their_squared_distance():
    a, b = torch.tensor([[0.0, 0.0]]), torch.tensor([[3.0, 4.0]])
    assert float(sinkhorn_divergence(a, b)) == pytest.approx(25, rel=1e-5)


def test_sinkhorn_divergence_with_little_blur_is_optimal_transport():
    generator = torch.Generator().manual_seed(2)
    a, b = torch.rand(5, 2, generator=generator), torch.rand(5, 2, generator=generator)
    cost = ((a[:, None] - b[None]) ** 2).sum(2).double().numpy()
    rows = [np.kron(np.eye(5)[i], np.ones(5)) for i in range(5)] + [np.kron(np.ones(5), np.eye(5)[i]) for i in range(5)]
    best = linprog(cost.ravel(), A_eq=np.array(rows), b_eq=np.full(10, 0.2)).fun
    assert float(sinkhorn_divergence(a, b, blur=1e-3, iterations=3000)) == pytest.approx(best, rel=0.02)


def test_sinkhorn_gradient_pulls_the_clouds_together():
    generator = torch.Generator().manual_seed(4)
    a, b = torch.rand(8, 3, generator=generator), (torch.rand(8, 3, generator=generator) + 2).requires_grad_()
    value = sinkhorn_divergence(a, b)
    value.backward()
    value = value.detach()
    assert float(sinkhorn_divergence(a, (b - 0.5 * b.grad).detach())) < float(value)
    assert float(b.grad.sum()) > 0  # b lies above a, so b has to come down


def test_sinkhorn_divergence_refuses_other_shapes():
    with pytest.raises(InputError, match="point clouds"):
        sinkhorn_divergence(torch.rand(3, 2), torch.rand(3, 4))


def test_sinkhorn_training_adds_the_divergence(net, batch):
    defense = SinkhornTraining(eps=0.03, step=0.01, iterations=3)
    attacked = defense.attack(net.at(32), batch, 2)
    clean, hard = net.at(32)(batch.images), net.at(32)(attacked)
    expected = F.cross_entropy(hard, batch.labels) + sinkhorn_divergence(clean.softmax(1), hard.softmax(1))
    assert torch.allclose(defense(net, batch, 2), expected, rtol=1e-4)


def test_shift_training_attacks_the_float_view_and_trains_another(batch):
    torch.manual_seed(0)
    net = calibrate(MultiBit(Small(), (32, 3)).eval(), batch.images)
    defense = QuantizationShiftTraining(eps=0.03, step=0.01, iterations=3, widths=(3,))
    attacked = AdversarialTraining(eps=0.03, step=0.01, iterations=3).attack(net.at(32), batch, 5)
    assert torch.allclose(defense(net, batch, 5), F.cross_entropy(net.at(3)(attacked), batch.labels))
    drawn = {float(QuantizationShiftTraining(eps=0.03, widths=(32, 3))(net, batch, step).detach()) for step in range(12)}
    assert len(drawn) > 2


@pytest.mark.parametrize("name", ["tiny-pgd", "tiny-sinkhorn", "tiny-ensemble", "tiny-distilled"])
def test_every_defense_trains(name, net):
    shapes = data.load("shapes", "train", n=128)
    wanted = entry(name, "shapes")
    torch.manual_seed(5)
    student = MultiBit(Small(10), (32,))
    history = train(student, make_loss(wanted, lambda _: MultiBit(Small(10), (32,)).eval()), shapes,
                    Recipe(epochs=3, batch_size=32, lr=0.05), report=lambda _: None)  # fmt: skip
    assert history[-1]["loss"] < history[0]["loss"]
    assert wanted.defense in LOSSES
