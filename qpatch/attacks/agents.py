"""REINFORCE (Williams 1992) for many agents at once, one per image: who asks a network and sees no gradient of it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

_MEMORY = 0.9  # how much of its past the baseline keeps from query to query


class Agents:
    """One agent per image: a product of categorical choices, each moved by REINFORCE after every query.

    Args:
        n: number of agents.
        choices: of each factor: a table (T, K) of prior logits, the row of the table that each agent uses, int64 (N,)
            or None for the one that the choice before has drawn, and the width in options over which neighbours learn
            together, 0 for none. An agent that has learnt nothing draws from the prior.
        lr: step size. entropy: its weight.
    """

    def __init__(
        self, n: int, choices: Sequence[tuple[Tensor, Tensor | None, float]], lr: float, entropy: float
    ) -> None:
        self.tables, self.keys, widths = zip(*choices)
        self.logits = [torch.zeros(n, table.shape[1]) for table in self.tables]
        self.kernels = [_kernel(table.shape[1], width) for table, width in zip(self.tables, widths)]
        self.lr, self.entropy, self.factors = lr, entropy, len(choices)
        self.mean, self.variance, self.seen = torch.zeros(n), torch.zeros(n), torch.zeros(n)

    def draw(self, alive: Tensor, generator: torch.Generator) -> Tensor:
        """One choice per factor for the agents `alive`: int64 (n, factors)."""
        drawn: list[Tensor] = []
        for factor, logits in enumerate(self.logits):
            race = torch.empty_like(logits).exponential_(generator=generator)  # for all: no draw depends on who is left
            drawn.append((self._chances(factor, alive, drawn) / race[alive]).argmax(dim=1))
        return torch.stack(drawn, dim=1)

    def learn(self, alive: Tensor, drawn: Tensor, reward: Tensor) -> None:
        """Make what was drawn more likely by as many deviations as its reward lies above the mean of the past."""
        advantage = self._advantage(alive, reward)[:, None]
        columns = list(drawn.unbind(dim=1))
        steps = []
        for factor, chosen in enumerate(columns):
            chances = self._chances(factor, alive, columns)
            step = advantage * (F.one_hot(chosen, chances.shape[1]) - chances)
            if self.entropy:
                surprise = torch.xlogy(chances, chances)
                step -= self.entropy * (surprise - chances * surprise.sum(dim=1, keepdim=True))
            steps.append(step)
        for logits, kernel, step in zip(self.logits, self.kernels, steps):
            logits[alive] += self.lr * (step @ kernel)

    def forget(self) -> None:
        """Draw from the prior again; the mean reward of the past stays."""
        for logits in self.logits:
            logits.zero_()

    def _chances(self, factor: int, alive: Tensor, drawn: Sequence[Tensor]) -> Tensor:
        key = self.keys[factor]
        prior = self.tables[factor][drawn[factor - 1] if key is None else key[alive]]
        return (self.logits[factor][alive] + prior).softmax(dim=1)

    def _advantage(self, alive: Tensor, reward: Tensor) -> Tensor:
        self.seen[alive] += 1
        weight = (1 / self.seen[alive]).clamp_min(1 - _MEMORY)
        surplus = reward - self.mean[alive]
        self.mean[alive] += weight * surplus
        variance = (1 - weight) * (self.variance[alive] + weight * surplus**2)
        self.variance[alive] = variance
        return torch.where(variance > 0, surplus / variance.sqrt(), 0.0)


def _kernel(options: int, width: float) -> Tensor:
    """How much each option learns from each other: the identity, or a bell of this standard deviation."""
    at = torch.arange(options).float()
    return torch.exp(-((at[:, None] - at) ** 2) / (2 * width**2)) if width else torch.eye(options)
