"""PGD adversarial training (Madry et al. 2018), as David and Goliath uses it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from qpatch.defenses.inner import linf_pgd
from qpatch.quant import MultiBit
from qpatch.training import Batch, logits_of


@dataclass(frozen=True)
class AdversarialTraining:
    """min_θ E max_{‖δ‖∞ ≤ ε} CE(f_θ(x + δ), y): every image of a batch is replaced by its PGD example (ratio 1).

    Source: the authors' code (ART's AdversarialTrainer), dossier 4.5.

    Attributes:
        eps: radius, in units of the [0, 1] range.
        step: step size.
        iterations: PGD steps, from one random start.
        bits: the width of the trained view.
        bf16: bfloat16 autocast.
        seed: of the random starts.
    """

    eps: float = 0.008
    step: float = 0.0008
    iterations: int = 10
    bits: int = 32
    bf16: bool = False
    seed: int = 0

    def __call__(self, net: MultiBit, batch: Batch, step: int) -> Tensor:
        view = net.at(self.bits)
        return F.cross_entropy(logits_of(view, self.attack(view, batch, step), self.bf16), batch.labels)

    def attack(self, view, batch: Batch, step: int) -> Tensor:
        """The adversarial images of this step; the random start depends on seed and step only."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        return linf_pgd(
            view, *batch, eps=self.eps, step=self.step, iterations=self.iterations, generator=generator, bf16=self.bf16
        )
