"""Distances to the boundary: exact where they can be calculated by hand, upper bounds everywhere else."""

from __future__ import annotations

import math

import pytest
import torch
import torchattacks
from torch import nn

from qpatch.attacks.pixel.base import Anchored
from qpatch.errors import InputError, ParameterError
from qpatch.measure import boundary
from qpatch.measure.boundary import along, boundary_distance, minimal_change, nearest, pulled_back, random_changes

N, SHAPE = 12, (3, 4, 4)


class Plane(nn.Module):
    """Class 1 where weight · x > threshold, else class 0."""

    def __init__(self, seed: int = 0):
        super().__init__()
        drawn = torch.randn(math.prod(SHAPE), generator=torch.Generator().manual_seed(seed))
        self.weight, self.threshold = nn.Parameter(drawn), float(0.5 * drawn.sum()) + 0.03
        self.eval()

    def forward(self, images):
        score = images.flatten(1) @ self.weight - self.threshold
        return torch.stack([-score, score], dim=1)


class Steps(nn.Module):
    """`Plane` of the rounded image, with a straight-through gradient."""

    def __init__(self, net: nn.Module, steps: int = 10):
        super().__init__()
        self.net, self.steps = net, steps
        self.eval()

    def received(self, images):
        return (images * self.steps).round() / self.steps

    def forward(self, images):
        return self.net(images + (self.received(images) - images).detach())


@pytest.fixture
def images():
    return 0.5 + 0.02 * torch.randn(N, *SHAPE, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def net():
    return Plane()


def classes(net, images):
    with torch.no_grad():
        return net(images).argmax(1)


def exact(net, images, norm):
    gap = (images.flatten(1) @ net.weight - net.threshold).abs().detach()
    return gap / (net.weight.norm() if norm == "L2" else net.weight.abs().sum()).detach()


@pytest.mark.parametrize("norm", ["L2", "Linf"])
def test_distance_to_a_plane_is_exact(net, images, norm):
    found = boundary_distance(net, images, classes(net, images), norm=norm, steps=10)
    torch.testing.assert_close(found.distance, exact(net, images, norm), rtol=2e-3, atol=1e-6)
    assert (found.distance >= exact(net, images, norm) * (1 - 1e-5)).all(), "smaller than possible"
    assert torch.equal(found.distance, found.received)


@pytest.mark.parametrize("norm", ["L2", "Linf"])
def test_points_are_proof(net, images, norm):
    for judged in (net, Steps(net)):
        labels = classes(judged, images)
        found = boundary_distance(judged, images, labels, norm=norm, steps=10)
        assert (classes(judged, found.points) != labels).all()
        torch.testing.assert_close(boundary.size(found.points - images, norm), found.distance)
        assert found.points.min() >= 0 and found.points.max() <= 1


def test_a_ray_crosses_where_it_must(net, images):
    change = random_changes(images, seed=3)
    found = along(net, images, classes(net, images), change)
    gap, speed = net.threshold - images.flatten(1) @ net.weight, (change.flatten(1) @ net.weight)
    t = (gap / speed).detach()  # where the whole line crosses the plane; the pixel cube ends long before some of them
    inside = (t > 0) & ((images + t.view(-1, 1, 1, 1) * change - 0.5).abs().flatten(1).amax(1) < 0.5)
    assert 2 < inside.sum() < N
    torch.testing.assert_close(found.distance[inside], 0.1 * t[inside], rtol=2e-3, atol=4e-5)
    assert found.distance[t < 0].isinf().all()
    assert torch.equal(found.points[t < 0], images[t < 0])


def test_wrong_images_have_no_distance(net, images):
    labels = classes(net, images)
    labels[:3] = 1 - labels[:3]
    found = boundary_distance(net, images, labels, steps=4)
    assert found.distance[:3].isnan().all() and found.received[:3].isnan().all()
    assert found.distance[3:].isfinite().all()
    assert torch.equal(found.points[:3], images[:3])


class OneValue(nn.Module):
    """Class 1 where the first value rounds to at least 0.7, in steps of 0.1."""

    def received(self, images):
        return (images * 10).round() / 10

    def forward(self, images):
        received = images + (self.received(images) - images).detach()
        score = received[:, 0, 0, 0] - 0.65
        return torch.stack([-score, score], dim=1)


def test_rounded_input_costs_half_a_step_less_than_it_moves():
    net = OneValue().eval()
    images = torch.full((2, *SHAPE), 0.5)  # two steps below, so the value has to come to 0.65
    found = boundary_distance(net, images, torch.zeros(2, dtype=torch.int64), steps=20)
    torch.testing.assert_close(found.received, torch.full((2,), 0.2), rtol=1e-4, atol=0)
    torch.testing.assert_close(found.distance, torch.full((2,), 0.15), rtol=1e-3, atol=0)


def test_pulling_back_changes_nothing_that_is_received(net, images):
    judged = Steps(net)
    points = (images + 0.3 * torch.randn(images.shape, generator=torch.Generator().manual_seed(2))).clamp(0, 1)
    back = pulled_back(judged, images, points)
    assert torch.equal(judged.received(back), judged.received(points))
    assert (((back - images).abs()) <= (points - images).abs() + 1e-6).all()
    untouched = judged.received(images) == judged.received(points)
    assert untouched.any() and torch.equal(back[untouched], images[untouched])
    moved = (judged.received(back) - images).abs()[~untouched] - (back - images).abs()[~untouched]
    torch.testing.assert_close(moved, torch.full_like(moved, 0.05), rtol=0, atol=3e-4)
    assert pulled_back(net, images, points) is points, "a network that does not round receives the points themselves"


class Ball(nn.Module):
    """Class 0 inside a ball around mid-grey, class 1 outside: a curved boundary at a known distance."""

    def forward(self, images):
        score = (images - 0.5).flatten(1).square().sum(1) - 0.8**2
        return torch.stack([-score, score], dim=1)


def test_distance_to_a_curved_boundary(images):
    found = boundary_distance(Ball().eval(), images, torch.zeros(N, dtype=torch.int64), steps=20)
    exact = 0.8 - boundary.size(images - 0.5)
    torch.testing.assert_close(found.distance, exact, rtol=5e-3, atol=0)
    assert (found.distance >= exact * (1 - 1e-5)).all()


def test_ours_is_not_farther_than_deepfool(images):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(128, 4)).eval()
    labels = classes(net, images)
    tried = torchattacks.DeepFool(Anchored(net, images.device), steps=30)(images, labels)
    fooled = classes(net, tried) != labels
    assert fooled.sum() > N // 2
    ours, theirs = boundary_distance(net, images, labels, steps=30).distance, boundary.size(tried - images)
    assert (ours <= 1.01 * theirs)[fooled].all()


def test_added_directions_can_only_help(net, images):
    hidden = Steps(net, steps=4)
    labels = classes(hidden, images)
    alone = boundary_distance(hidden, images, labels, steps=4)
    made = minimal_change(net, images, labels, steps=20)
    helped = boundary_distance(hidden, images, labels, steps=4, directions=[made])
    assert (helped.distance <= alone.distance + 1e-6).sum() >= N - 1 and (alone.received >= alone.distance - 1e-6).all()


def test_nearest_takes_each_image_from_the_nearer_one(net, images):
    labels = classes(net, images)
    first, second = (along(net, images, labels, random_changes(images, seed=seed)) for seed in (3, 4))
    best = nearest([first, second])
    assert torch.equal(best.distance, first.distance.minimum(second.distance))
    win = second.distance < first.distance
    assert win.any() and torch.equal(best.points[win], second.points[win])


def test_random_changes_have_one_length_and_repeat(images):
    change = random_changes(images, seed=5)
    torch.testing.assert_close(boundary.size(change), torch.full((N,), 0.1))
    assert torch.equal(change, random_changes(images, seed=5))
    torch.testing.assert_close(random_changes(images, "Linf", seed=5).abs(), torch.full_like(images, 1 / 255))


def test_networks_and_images_stay_as_they_are(net, images):
    before, weight = images.clone(), net.weight.detach().clone()
    boundary_distance(net, images, classes(net, images), steps=4)
    assert torch.equal(images, before) and torch.equal(net.weight, weight)
    assert net.weight.requires_grad and net.weight.grad is None


def test_wrong_input_is_refused(net, images):
    labels = classes(net, images)
    with pytest.raises(ParameterError, match="norm"):
        boundary_distance(net, images, labels, norm="L1")
    with pytest.raises(ParameterError, match="at least 2 steps"):
        boundary_distance(net, images, labels, steps=1)
    with pytest.raises(InputError, match="images' shape"):
        along(net, images, labels, torch.zeros(1, *SHAPE))
    with pytest.raises(InputError, match="train mode"):
        boundary_distance(Plane().train(), images, labels)

    class Numb(Plane):
        def forward(self, images):
            return super().forward(images).detach()

    with pytest.raises(InputError, match="no gradient"):
        boundary_distance(Numb(), images, labels)
    assert boundary_distance(Numb(), images, labels, gradient=net, steps=4).distance.isfinite().all()
