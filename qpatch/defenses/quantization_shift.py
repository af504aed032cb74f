"""Adversarial training aimed at the quantization shift: our answer to paper C's open question C-OQ2."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from qpatch.defenses.adversarial_training import AdversarialTraining
from qpatch.quant import MultiBit
from qpatch.training import Batch, logits_of


@dataclass(frozen=True)
class QuantizationShiftTraining(AdversarialTraining):
    """CE(f_b(x′), y), where x′ is made on the *float* view and b is drawn anew at every step.

    This is the attacker of paper C inside the training: he has the float network and attacks a quantized one. It differs
    from `AdversarialTraining` in nothing but the view that learns from the attack, and from Double-Win Quant's random
    precision training (Fu et al. 2021) in that attack and update see different widths. Source: this project.

    Attributes:
        widths: the widths that are drawn from; 32 is the float view, on which every attack is made.
    """

    widths: tuple[int, ...] = (32, 8, 4)

    def __call__(self, net: MultiBit, batch: Batch, step: int) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        width = self.widths[int(torch.randint(len(self.widths), (), generator=generator))]
        adversarial = self.attack(net.at(32), batch, step)
        return F.cross_entropy(logits_of(net.at(width), adversarial, self.bf16 and width == 32), batch.labels)
