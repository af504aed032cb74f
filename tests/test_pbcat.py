"""PBCAT: where its patches lie, how far its perturbations go, and that they raise the loss."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from qpatch.attacks.places import sample_places
from qpatch.defenses.pbcat import PBCAT, composite, loss_gradient, steep_cells
from qpatch.errors import ParameterError
from qpatch.quant import MultiBit, Policy, calibrate
from qpatch.training import Batch

WIDTHS = (32, 8, 4)


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.fc = nn.Conv2d(3, 6, 3, 2), nn.BatchNorm2d(6), nn.Linear(6 * 49, 4)
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
    calibrate(made, batch.images)
    return made.train()


def test_the_steepest_cells_of_the_window_are_the_patch():
    steep = torch.zeros(2, 8, 8)
    steep[0, 2, 3] = 9.0  # cell (0, 1) of the window at (2, 1)
    steep[0, 4, 1] = steep[0, 5, 2] = 3.0  # cell (1, 0)
    steep[0, 0, 0] = 99.0  # outside
    steep[1, 7, 7] = 1.0
    mask = steep_cells(steep, torch.tensor([[2, 1], [4, 4]]), size=4, cell=2, kept=0.5)
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[2:4, 3:5] = expected[4:6, 1:3] = True
    assert mask.shape == (2, 1, 8, 8) and torch.equal(mask[0, 0], expected)
    assert mask[1, 0, 6:8, 6:8].all() and int(mask[1].sum()) == 8
    assert not mask[1, 0, :4].any() and not mask[1, 0, :, :4].any()


@pytest.mark.parametrize("cell, kept, pixels", [(2, 0.5, 20), (3, 0.5, 18), (1, 0.25, 9), (6, 0.5, 36), (2, 1.0, 36)])
def test_the_patch_covers_the_kept_share_of_the_cells_rounded_up(cell, kept, pixels):
    steep = torch.rand(5, 16, 16, generator=torch.Generator().manual_seed(0))
    mask = steep_cells(steep, sample_places("random", 5, 16, 6), 6, cell, kept)
    assert mask.flatten(1).sum(1).tolist() == [pixels] * 5


def test_patch_and_noise_do_not_mix_and_the_image_stays_an_image():
    images, mask = torch.full((1, 3, 4, 4), 0.9), torch.zeros(1, 1, 4, 4, dtype=torch.bool)
    mask[..., :2] = True
    shown = composite(images, torch.full_like(images, -0.4), torch.full_like(images, 0.3), mask)
    assert torch.allclose(shown[..., :2], torch.tensor(0.5)) and torch.equal(shown[..., 2:], torch.ones(1, 3, 4, 2))


def test_the_loss_gradient_is_autograds(net, batch):
    view = net.at(8).eval()
    gradient, loss = loss_gradient(view, *batch)
    points = batch.images.clone().requires_grad_()
    F.cross_entropy(view(points), batch.labels, reduction="sum").backward()
    assert torch.allclose(gradient, points.grad) and float(loss) == pytest.approx(
        float(F.cross_entropy(view(batch.images), batch.labels).detach()), rel=1e-5
    )
    net.zero_grad()


def test_half_of_the_batch_is_perturbed_within_both_bounds(net, batch):
    defense = PBCAT(widths=WIDTHS, size=6, place="random", iterations=12)
    change = (defense.patched(net, batch, (32,), torch.Generator().manual_seed(0)) - batch.images).abs()
    assert not change[6:].any()
    large = (change[:6] > 4 / 255 + 1e-6).any(dim=1).flatten(1).sum(dim=1)
    assert large.gt(0).all() and large.le(20).all()  # 5 of 9 cells of 4 pixels
    assert float(change.max()) <= 64 / 255 + 1e-6 and float(change.max()) > 60 / 255
    reached = change[:6, :, :15, :15]  # by this network: the last row and column are not
    assert reached.gt(0).float().mean() > 0.8


def test_patch_and_noise_each_raise_the_loss(net, batch):
    part = Batch(batch.images[:6], batch.labels[:6])
    losses = []
    for options in ({}, {"radius": 1e-9, "step": 1e-9}, {"noise": 1e-9}, {"radius": 1e-9, "step": 1e-9, "noise": 1e-9}):
        defense = PBCAT(widths=WIDTHS, size=6, place="random", share=1.0, **options)
        images = defense.patched(net, part, (32,), torch.Generator().manual_seed(0))
        losses.append(float(F.cross_entropy(net.at(32).eval()(images), part.labels).detach()))
    both, noise, patch, nothing = losses
    assert both > max(noise, patch) and min(noise, patch) > nothing + 0.02


def test_the_float_view_is_attacked_and_one_drawn_width_is_trained(net, batch):
    seen = []
    for width in WIDTHS:
        net.at(width).register_forward_hook(lambda view, *_, width=width: seen.append((width, view.training)))
    defense, trained = PBCAT(widths=WIDTHS, size=4, iterations=3), set()
    for step in range(12):
        seen.clear()
        value = defense(net, batch, step)
        assert seen[:-1] == [(32, False)] * 4 and seen[-1][1]  # the first gradient finds the cells
        trained.add(seen[-1][0])
    assert trained == set(WIDTHS) and net.training
    value.backward()
    assert any(weight.grad is not None and weight.grad.any() for weight in net.parameters())


def test_a_step_depends_on_seed_and_step_only(net, batch):
    net.eval()
    values = [float(PBCAT(widths=WIDTHS, size=4, iterations=2, seed=seed)(net, batch, step).detach())
              for seed, step in ((0, 4), (0, 5), (0, 4), (1, 4))]  # fmt: skip
    assert values[0] == values[2] and len(set(values)) == 3


def test_defaults_are_the_released_ones_and_the_frame_is_the_baselines():
    defense = PBCAT()
    assert (defense.radius * 255, defense.noise * 255, defense.step * 255, defense.kept) == (64, 4, 8, 0.5)
    assert (defense.size, defense.iterations, defense.share) == (6, 10, 0.5)
    assert (defense.made_at, defense.trained) == ("float", "random")


WRONG = [{"radius": 0.0}, {"noise": -1.0}, {"step": 0.0}, {"cell": 4}, {"cell": 0}, {"kept": 0.0}, {"kept": 1.5}]


@pytest.mark.parametrize("options", [*WRONG, {"trained": "some"}])
def test_unknown_settings_are_refused(options):
    with pytest.raises(ParameterError):
        PBCAT(**options)
