"""Defensive distillation (Papernot et al. 2016) in the form of David and Goliath's code."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qpatch.quant import MultiBit
from qpatch.training import Batch, logits_of


@dataclass(frozen=True)
class Distillation:
    """α·CE(f(x), y) + (1 − α)·T²·KL( softmax(t(x) / T) ‖ softmax(f(x) / T) ), deployed at temperature 1.

    Source: the authors' code, dossier 4.5: Hinton's mixed loss with T = 20 and α = 0.1. There the teacher runs at
    temperature 1 by mistake while the student runs at T; `teacher_temperature` = 1 gives that, our default is T.

    Attributes:
        teacher: the trained network, in eval mode.
        temperature: T of the student.
        teacher_temperature: T of the teacher; None takes the student's.
        alpha: weight of the hard labels.
        bits: the width of the trained view.
        bf16: bfloat16 autocast.
    """

    teacher: nn.Module
    temperature: float = 20.0
    teacher_temperature: float | None = None
    alpha: float = 0.1
    bits: int = 32
    bf16: bool = False

    def __call__(self, net: MultiBit, batch: Batch, step: int) -> Tensor:
        logits = logits_of(net.at(self.bits), batch.images, self.bf16)
        with torch.no_grad():
            teacher = logits_of(self.teacher, batch.images, self.bf16)
        soft = F.softmax(teacher / (self.teacher_temperature or self.temperature), dim=1)
        divergence = F.kl_div(F.log_softmax(logits / self.temperature, dim=1), soft, reduction="batchmean")
        hard = F.cross_entropy(logits, batch.labels)
        return self.alpha * hard + (1 - self.alpha) * self.temperature**2 * divergence
