"""What a training step costs: ratios to the first loss, and nothing left behind."""

import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from qpatch.errors import ParameterError
from qpatch.measure.step_cost import cost_rows, inference_rows, step_costs
from qpatch.quant import MultiBit, Policy, calibrate
from qpatch.training import Batch

BATCH = Batch(torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 4)


@pytest.fixture
def net():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 6, 3, 1, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 64, 4)]
    return calibrate(MultiBit(nn.Sequential(*layers), (32, 4), Policy(first_last=None)).eval(), BATCH.images)


def at(*widths):
    return lambda net, batch, step: sum(F.cross_entropy(net.at(width)(batch.images), batch.labels) for width in widths)


def test_twice_the_widths_keep_about_twice_the_memory_and_the_network_stays(net):
    before = {name: value.clone() for name, value in net.state_dict().items()}
    costs = step_costs(net, {"once": at(32), "twice": at(32, 32)}, BATCH, 3)
    rows = cost_rows(costs).set_index(["step", "what"])
    assert list(costs["round"].unique()) == [0, 1, 2] and (costs["seconds"] > 0).all()
    assert rows.loc[("once", "time_ratio"), "value"] == rows.loc[("once", "memory_ratio"), "value"] == 1
    assert 1.5 < rows.loc[("twice", "memory_ratio"), "value"] <= 2
    assert not net.training and all(p.grad is None for p in net.parameters())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


class _Exponential(torch.autograd.Function):
    """It keeps its own result for the backward pass, and a token that lives as long as the graph."""

    tokens = weakref.WeakSet()

    @staticmethod
    def forward(ctx, x):
        ctx.token = torch.nn.Identity()
        _Exponential.tokens.add(ctx.token)
        result = x.exp()
        ctx.save_for_backward(result)
        return result

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.saved_tensors[0]


def test_a_measured_step_is_freed(net):
    loss = lambda net, batch, step: F.cross_entropy(_Exponential.apply(net.at(32)(batch.images)).exp(), batch.labels)  # noqa: E731
    step_costs(net, {"a": loss}, BATCH, 1)
    gc.collect()
    assert len(_Exponential.tokens) == 0


def test_inference_is_compared_in_turns(net):
    row = inference_rows(net.at(4), net.at(32), BATCH.images, 4).iloc[0]
    assert row["low"] <= row["value"] <= row["high"] and row["n"] == 4 and row["value"] > 0


def test_what_cannot_be_measured(net):
    for losses, rounds in (({}, 1), ({"a": at(32)}, 0)):
        with pytest.raises(ParameterError, match="at least one loss and one round"):
            step_costs(net, losses, BATCH, rounds)
