"""What a training step costs: time, and the memory that it keeps for its backward pass; all kinds of steps by turns."""

from __future__ import annotations

import time
from collections.abc import Mapping
from statistics import median, quantiles

import pandas as pd
import torch
from torch import Tensor, nn

from qpatch.errors import ParameterError
from qpatch.quant import MultiBit
from qpatch.training import Batch, Loss


def step_costs(net: MultiBit, losses: Mapping[str, Loss], batch: Batch, rounds: int = 5) -> pd.DataFrame:
    """Forward and backward of one training step under each loss; no weight is changed.

    The losses take turns, round after round, so that whatever slows the machine down meets them alike; the first round
    warms up and does not count.

    Args:
        net: any multi-bit network; it is in train mode meanwhile and in its mode afterwards.
        losses: name → loss; the first is what the others are compared with.
        batch: images and labels of a step.
        rounds: that count.

    Returns:
        one row per round and loss: step, round, seconds, time_ratio (to the first loss in the same round), megabytes
        (of distinct tensors kept for backward), memory_ratio.

    Raises:
        ParameterError: no loss, or fewer than one round.
    """
    if not losses or rounds < 1:
        raise ParameterError("costs need at least one loss and one round.")
    was_training, found = net.training, []
    statistics = {name: value.clone() for name, value in net.state_dict().items()}
    net.train()
    for number in range(-1, rounds):
        costs = {name: _one(net, loss, batch) for name, loss in losses.items()}
        first_seconds, first_bytes = next(iter(costs.values()))
        for name, (seconds, size) in costs.items():
            found.append({"step": name, "round": number, "seconds": seconds, "time_ratio": seconds / first_seconds,
                          "megabytes": size / 1e6, "memory_ratio": size / first_bytes})  # fmt: skip
    net.zero_grad(set_to_none=True)
    net.load_state_dict(statistics)
    net.train(was_training)
    return pd.DataFrame([row for row in found if row["round"] >= 0])


def cost_rows(costs: pd.DataFrame) -> pd.DataFrame:
    """The median over rounds of each ratio, with the lowest and the highest round: step, what, value, low, high, n."""
    found = []
    for name, rows in costs.groupby("step", sort=False):
        for what in ("time_ratio", "memory_ratio"):
            values = list(rows[what])
            found.append({"step": name, "what": what, "value": median(values), "low": min(values), "high": max(values),
                          "n": len(values)})  # fmt: skip
    return pd.DataFrame(found)


def inference_rows(defended: nn.Module, plain: nn.Module, images: Tensor, rounds: int = 5) -> pd.DataFrame:
    """Time of a forward pass of one network relative to another, taken in turns.

    Returns:
        one row as of `cost_rows`; low and high are the quartiles over the rounds.
    """
    ratios = []
    with torch.inference_mode():
        for number in range(-1, rounds):
            spent = []
            for net in (defended, plain) if number % 2 else (plain, defended):
                started = time.perf_counter()
                net(images)
                if images.is_cuda:
                    torch.cuda.synchronize()
                spent.append(time.perf_counter() - started)
            first, second = spent if number % 2 else spent[::-1]
            ratios += [first / second] if number >= 0 else []
    quartiles = quantiles(ratios, n=4)
    return pd.DataFrame([{"step": "inference", "what": "time_ratio", "value": median(ratios), "low": quartiles[0],
                          "high": quartiles[2], "n": rounds}])  # fmt: skip


def _one(net: MultiBit, loss: Loss, batch: Batch) -> tuple[float, int]:
    """Seconds and bytes of a step; measured apart, because counting takes time."""
    if batch.images.is_cuda:
        torch.cuda.synchronize()
    started = time.perf_counter()
    net.zero_grad(set_to_none=True)
    loss(net, batch, 0).backward()
    if batch.images.is_cuda:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    kept: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = max(kept.get(storage.data_ptr(), 0), storage.nbytes())
        return tensor.detach()  # the tensor itself would hold its own graph, and nothing would ever free it

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        loss(net, batch, 0)
    return seconds, sum(kept.values())
