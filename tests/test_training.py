"""The training loop learns, resumes bit for bit after an interruption, and stops at a diverging loss."""

from dataclasses import replace

import pytest
import timm
import torch
from torch import nn

import qpatch.models  # noqa: F401
from qpatch.data import load
from qpatch.errors import ParameterError, StoreError
from qpatch.quant import MultiBit, Policy, calibrate
from qpatch.training import (
    CrossEntropy, Recipe, learning_rate_factor, load_network_tensors, network_tensors, train,
)  # fmt: skip

RECIPE = Recipe(epochs=3, batch_size=32, lr=0.05)


@pytest.fixture(scope="module")
def shapes():
    return load("shapes", "train", n=192)


def network(bits=(4,), policy=Policy(learned=True)):
    torch.manual_seed(0)
    return calibrate(MultiBit(timm.create_model("qpatch_resnet8"), bits, policy), torch.rand(16, 3, 32, 32))


def same(a: MultiBit, b: MultiBit) -> bool:
    left, right = network_tensors(a), network_tensors(b)
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


class Interrupted(Exception):
    pass


def test_joint_training_learns_at_every_width(shapes):
    net = network(bits=(8, 2))
    history = train(net, CrossEntropy((32, 8, 2)), shapes, RECIPE, report=lambda line: None)
    assert history[-1]["loss"] < history[0]["loss"] and not net.training


@pytest.mark.parametrize("stop_after", [1, 2])
def test_resumed_training_equals_an_undisturbed_one(shapes, tmp_path, stop_after):
    undisturbed, path = network(), tmp_path / "state.safetensors"
    train(undisturbed, CrossEntropy((4,)), shapes, RECIPE, report=lambda line: None)

    def stop(line):
        # the state of an epoch is written after its line, so the last line seen here is trained again
        if line.startswith(f"epoch {stop_after + 1}/"):
            raise Interrupted

    with pytest.raises(Interrupted):
        train(network(), CrossEntropy((4,)), shapes, RECIPE, state_path=path, report=stop)
    lines = []
    resumed = network()
    train(resumed, CrossEntropy((4,)), shapes, RECIPE, state_path=path, report=lines.append)
    assert len(lines) == RECIPE.epochs - stop_after
    assert same(undisturbed, resumed)


def test_a_damaged_or_foreign_state_is_not_resumed(shapes, tmp_path):
    path = tmp_path / "state.safetensors"
    train(network(), CrossEntropy((4,)), shapes, replace(RECIPE, epochs=1), state_path=path, report=lambda line: None)
    for spoil in (False, True):
        if spoil:
            path.write_bytes(path.read_bytes()[:100])
        lines = []
        recipe = replace(RECIPE, epochs=1, lr=0.01)
        train(network(), CrossEntropy((4,)), shapes, recipe, state_path=path, report=lines.append)
        assert len(lines) == 1


def test_network_tensors_keep_shared_weights_once_and_load_back(shapes):
    net = network(bits=(8, 4))
    tensors = {name: tensor.clone() for name, tensor in network_tensors(net).items()}
    assert "views.32.conv.weight" in tensors and "views.4.conv.weight" not in tensors
    other = network(bits=(8, 4))
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1)
    load_network_tensors(other, tensors)
    x = torch.rand(4, 3, 32, 32)
    assert all(torch.equal(net.eval().at(bits)(x), other.eval().at(bits)(x)) for bits in net.bits)
    del tensors["views.32.fc.bias"]
    with pytest.raises(StoreError, match="views.32.fc.bias"):
        load_network_tensors(other, tensors)


def test_diverging_training_says_so_and_keeps_the_stored_state(shapes, tmp_path):
    class Diverging(CrossEntropy):
        def __call__(self, net, batch, step):
            value = super().__call__(net, batch, step)
            return value * float("nan") if step >= 6 else value

    path = tmp_path / "state.safetensors"
    with pytest.raises(StoreError, match="lower the learning rate"):
        train(network(), Diverging((4,)), shapes, RECIPE, state_path=path, report=lambda line: None)
    assert path.exists()


def test_recipe_without_epochs_is_refused(shapes):
    with pytest.raises(ParameterError):
        train(network(), CrossEntropy((4,)), shapes, replace(RECIPE, epochs=0))


def test_learning_rate_warms_up_and_falls_to_zero():
    assert learning_rate_factor(0, 10, 1) < 0.01
    assert learning_rate_factor(1, 10, 1) == pytest.approx(1)
    assert learning_rate_factor(5.5, 10, 1) == pytest.approx(0.5)
    assert learning_rate_factor(10, 10, 1) == pytest.approx(0)


def test_crops_and_flips_are_pixels_of_the_padded_image(shapes):
    """Every augmented image must be found in its padded original, at one of the offsets, flipped or not."""
    from qpatch.training import _Batches

    batch = next(iter(_Batches(shapes, replace(RECIPE, batch_size=8), "cpu").epoch(0)))
    order = torch.randperm(len(shapes), generator=torch.Generator().manual_seed(0))[:8]
    padded = nn.functional.pad(shapes.floats(order), (4,) * 4)
    assert torch.equal(batch.labels, shapes.labels[order])
    for image, original in zip(batch.images, padded, strict=True):
        crops = original.unfold(1, 32, 1).unfold(2, 32, 1)
        found = [torch.equal(crops[:, r, c], x) for r in range(9) for c in range(9) for x in (image, image.flip(2))]
        assert any(found)
