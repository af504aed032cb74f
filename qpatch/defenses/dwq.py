"""Double-Win Quant: training and inference at random precision (Fu et al. 2021)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qpatch.defenses.inner import linf_pgd
from qpatch.quant import WIDTHS, MultiBit
from qpatch.training import Batch, logits_of


@dataclass(frozen=True)
class DoubleWinQuant:
    """CE(f_b(x + δ_b), y), ‖δ_b‖∞ ≤ ε, where b is drawn anew at every step: random precision training (RPT).

    The *same* b makes the noise and is trained, and every width has its own BatchNorm. The defense never sees a patch.
    Source: Fu et al., "Double-Win Quant: Aggressively Winning Robustness of Quantized DNNs via Random Precision
    Training and Inference", ICML 2021, and its released code.

    Deviations: its widths are 4 to 16 and its quantizer is asymmetric; here the widths and the quantizer are those of all
    other networks of the zoo, so that rows differ in the defense alone. The budget is on the network's card.

    Attributes:
        eps, step, iterations: of PGD; eps and step in units of the [0, 1] range.
        widths: that are drawn from.
        bf16: bfloat16 autocast for the float view.
        seed: of the draws.
    """

    eps: float = 8 / 255
    step: float = 2 / 255
    iterations: int = 7
    widths: tuple[int, ...] = WIDTHS
    bf16: bool = False
    seed: int = 0

    def __call__(self, net: MultiBit, batch: Batch, step: int) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        width = self.widths[int(torch.randint(len(self.widths), (), generator=generator))]
        view, half = net.at(width), self.bf16 and width == 32
        adversarial = linf_pgd(
            view, *batch, eps=self.eps, step=self.step, iterations=self.iterations, generator=generator, bf16=half
        )
        return F.cross_entropy(logits_of(view, adversarial, half), batch.labels)


class RandomPrecision(nn.Module):
    """Random precision inference (RPI): every image of every call is seen at a width drawn from `widths`.

    The second half of Double-Win Quant. The draws go on from call to call, so two calls differ. An attack on this very
    module meets new draws at every step: it ascends on the expectation over the widths.

    Args:
        views: bit-width → network at that width, in eval mode; drawn from evenly.
        seed: of the draws.

    Shapes: images (N, C, H, W) in [0, 1] → logits (N, classes), with a gradient.
    """

    def __init__(self, views: Mapping[int, nn.Module], seed: int = 0):
        super().__init__()
        self.views = nn.ModuleDict({str(width): view for width, view in views.items()})
        self.generator = torch.Generator().manual_seed(seed)
        self.train(any(view.training for view in views.values()))

    def forward(self, images: Tensor) -> Tensor:
        drawn = torch.randint(len(self.views), (len(images),), generator=self.generator).to(images.device)
        parts, order = [], []
        for number, view in enumerate(self.views.values()):
            index = (drawn == number).nonzero()[:, 0]
            if len(index):
                parts.append(view(images[index]))
                order.append(index)
        return torch.cat(parts)[torch.cat(order).argsort()]
