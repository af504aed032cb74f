"""Data sets, their subsets, and shapes that need a convolutional network."""

import hashlib

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn
from torch.nn import functional as F

from qpatch.data import balanced_subset, load
from qpatch.data.shapes import SHAPES
from qpatch.errors import InputError, ParameterError


def test_bad_arguments_are_answered():
    with pytest.raises(ParameterError, match="cifar10"):
        load("cifar", "train")
    with pytest.raises(ParameterError, match="train, test"):
        load("shapes", "val")
    with pytest.raises(InputError, match="balanced_subset"):
        load("cifar10", "train", n=10)
    with pytest.raises(InputError, match="at least 1"):
        load("shapes", "train", n=0)


# ------------------------------------------------------------------------------------------------ Dataset and subsets


def test_floats_and_take():
    data = load("shapes", "test", n=20)
    images, labels = data.take(torch.tensor([3, 0]))
    assert images.dtype == torch.float32 and labels.tolist() == [3, 0]
    assert torch.equal(images, data.floats()[[3, 0]])
    assert torch.equal((images * 255).round().byte(), data.images[[3, 0]])
    assert 0 <= images.min() and images.max() <= 1


def test_fingerprint_is_the_sha256_of_images_then_labels():
    data = load("shapes", "test", n=20)
    content = data.images.numpy().tobytes() + data.labels.numpy().tobytes()
    assert data.fingerprint == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("n", [10, 100, 23])
def test_balanced_subset(n):
    data = load("shapes", "test", n=200)
    index = balanced_subset(data, n, seed=3)
    assert index.dtype == torch.int64 and len(index.unique()) == n and torch.equal(index, index.sort().values)
    counts = torch.bincount(data.labels[index], minlength=10)
    assert counts.tolist() == [n // 10 + (label < n % 10) for label in range(10)]
    assert torch.equal(index, balanced_subset(data, n, seed=3))
    assert not torch.equal(index, balanced_subset(data, n, seed=4))


def test_balanced_subset_of_too_many():
    data = load("shapes", "test", n=20)
    with pytest.raises(InputError, match="at most 20"):
        balanced_subset(data, 21)
    with pytest.raises(InputError, match="at least 1"):
        balanced_subset(data, 0)


# ------------------------------------------------------------------------------------------------ shapes


def test_shapes_come_from_the_seed_alone():
    torch.manual_seed(1)
    first, state = load("shapes", "train", n=50, seed=5), torch.get_rng_state()
    torch.manual_seed(2)
    assert load("shapes", "train", n=50, seed=5).fingerprint == first.fingerprint
    assert torch.equal(load("shapes", "train", n=30, seed=5).images, first.images[:30])
    others = [("train", 6), ("train", 10), ("test", 5), ("test", 4)]
    assert all(load("shapes", split, n=50, seed=seed).fingerprint != first.fingerprint for split, seed in others)
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)


def test_shapes_are_balanced_colour_images():
    data = load("shapes", "train")
    assert data.images.shape == (2000, 3, 32, 32) and len(load("shapes", "test")) == 500
    assert torch.bincount(data.labels).tolist() == [200] * 10 and len(data.classes) == 10
    assert data.images.float().std((2, 3)).min() > 0  # every channel of every image has something to see


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_lies_in_the_unit_circle(shape):
    # so that it is never cut off by the edge of the image
    axis = torch.linspace(-1.5, 1.5, 601)
    v, u = torch.meshgrid(axis, axis, indexing="ij")
    inside = SHAPES[shape](u, v) < 0
    assert 0.2 < inside.float().mean() * 9 < 2.5  # area, in squares of the radius
    assert torch.hypot(u, v)[inside].max() < 1.05


@pytest.mark.parametrize(("shape", "area"), [("disc", 2.270), ("square", 1.96), ("cross", 1.65), ("bars", 1.344)])
def test_areas_known_in_closed_form(shape, area):
    # π·0.85²; 1.4²; two arms 1.9×0.5 less the square 0.5² they share; three bars 1.4×0.32
    axis = torch.linspace(-1.2, 1.2, 1201)
    v, u = torch.meshgrid(axis, axis, indexing="ij")
    assert (SHAPES[shape](u, v) < 0).float().mean().item() * 2.4**2 == pytest.approx(area, abs=0.03)


def test_shapes_need_a_convolutional_network():
    train, test = load("shapes", "train", n=1000), load("shapes", "test", n=300)
    linear = LogisticRegression(C=1e-3, max_iter=200).fit(train.floats().flatten(1).numpy(), train.labels.numpy())
    linear_accuracy = linear.score(test.floats().flatten(1).numpy(), test.labels.numpy())

    def block(i, o):
        return [nn.Conv2d(i, o, 5, stride=2, padding=2, bias=False), nn.BatchNorm2d(o), nn.ReLU()]

    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(*block(3, 16), *block(16, 32), *block(32, 64), nn.Flatten(), nn.Linear(1024, 10))
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(8):
        for index in torch.randperm(len(train), generator=generator).split(50):
            images, labels = train.take(index)
            loss = F.cross_entropy(net(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    net.eval()
    accuracy = (net(test.floats()).argmax(1) == test.labels).float().mean().item()
    assert linear_accuracy < 0.3 and accuracy > 0.55
