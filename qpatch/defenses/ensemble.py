"""Ensemble adversarial training (Tramèr et al. 2018) in the form of David and Goliath's code."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qpatch.defenses.inner import linf_pgd
from qpatch.quant import MultiBit
from qpatch.training import Batch, logits_of


@dataclass(frozen=True)
class EnsembleAdversarialTraining:
    """CE(f(x′), y), where x′ is made on *another*, static network, by FGSM or PGD-10: the network learns to stand
    attacks that were not made on itself, which is exactly the float-to-integer attacker of paper C.

    Source: the authors' code, dossier 4.5. There both attacks are computed once for every training image on two
    auxiliary networks; here each batch draws one network and one attack, so that every epoch meets fresh crops.

    Attributes:
        static: the auxiliary networks, in eval mode.
        eps, step, iterations: of PGD; FGSM makes one step of `eps`.
        bits: the width of the trained view.
        bf16: bfloat16 autocast.
        seed: of the draws.
    """

    static: tuple[nn.Module, ...]
    eps: float = 0.008
    step: float = 0.0008
    iterations: int = 10
    bits: int = 32
    bf16: bool = False
    seed: int = 0

    def __call__(self, net: MultiBit, batch: Batch, step: int) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        source = self.static[int(torch.randint(len(self.static), (), generator=generator))]
        fast = bool(torch.rand((), generator=generator) < 0.5)
        size, steps = (self.eps, 1) if fast else (self.step, self.iterations)
        adversarial = linf_pgd(source, *batch, eps=self.eps, step=size, iterations=steps, bf16=self.bf16)
        return F.cross_entropy(logits_of(net.at(self.bits), adversarial, self.bf16), batch.labels)
