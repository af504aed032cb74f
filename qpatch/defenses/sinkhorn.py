"""Sinkhorn adversarial training (Bouniot et al. 2021), as David and Goliath uses it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from qpatch.defenses.adversarial_training import AdversarialTraining
from qpatch.errors import InputError
from qpatch.quant import MultiBit
from qpatch.training import Batch, logits_of


@dataclass(frozen=True)
class SinkhornTraining(AdversarialTraining):
    """CE(f(x′), y) + S_ε(P, P′): the batch of softmax outputs on PGD examples is drawn towards the clean batch.

    S_ε(a, b) = W_ε(a, b) − ½·W_ε(a, a) − ½·W_ε(b, b) is the Sinkhorn divergence of two point clouds, here P = softmax
    f(x) and P′ = softmax f(x′). Source: the authors' code, dossier 4.5.

    Attributes:
        blur: ε of the entropic regularisation, in units of the squared distance.
        sinkhorn_iterations: largest number of iterations.
    """

    blur: float = 1.0
    sinkhorn_iterations: int = 50

    def __call__(self, net: MultiBit, batch: Batch, step: int) -> Tensor:
        view = net.at(self.bits)
        adversarial = self.attack(view, batch, step)
        both = logits_of(view, torch.cat([batch.images, adversarial]), self.bf16)
        clean, attacked = both.split(len(batch.images))
        divergence = sinkhorn_divergence(clean.softmax(1), attacked.softmax(1), self.blur, self.sinkhorn_iterations)
        return F.cross_entropy(attacked, batch.labels) + divergence


def sinkhorn_divergence(a: Tensor, b: Tensor, blur: float = 1.0, iterations: int = 50) -> Tensor:
    """W(a, b) − ½·W(a, a) − ½·W(b, b) of two equally weighted point clouds; 0 if they are equal.

    Args:
        a, b: float (N, D) and (M, D).
        blur: ε > 0 of the entropic regularisation; the cost is the squared Euclidean distance.
        iterations: largest number of iterations; it stops when the potentials rest.

    Returns:
        A scalar. Gradients flow through the cost only, with the plan held fixed (the envelope theorem).

    Raises:
        InputError: clouds of different dimension.
    """
    if a.dim() != 2 or b.dim() != 2 or a.shape[1] != b.shape[1]:
        raise InputError(f"two point clouds (N, D) and (M, D) are needed, got {tuple(a.shape)} and {tuple(b.shape)}.")
    cross = _transport(a, b, blur, iterations)
    return cross - 0.5 * _transport(a, a, blur, iterations) - 0.5 * _transport(b, b, blur, iterations)


def _transport(a: Tensor, b: Tensor, blur: float, iterations: int, tolerance: float = 1e-3) -> Tensor:
    """⟨plan, cost⟩ of the entropic optimal plan, by Sinkhorn's iterations in the log domain."""
    cost = (a[:, None, :] - b[None, :, :]).square().sum(2)
    kernel = -cost.detach() / blur
    log_a, log_b = -torch.tensor(float(len(a))).log(), -torch.tensor(float(len(b))).log()
    f, g = kernel.new_zeros(len(a)), kernel.new_zeros(len(b))
    for _ in range(iterations):
        previous = f
        f = log_a - torch.logsumexp(kernel + g[None, :], dim=1)
        g = log_b - torch.logsumexp(kernel + f[:, None], dim=0)
        if (f - previous).abs().sum() < tolerance:
            break
    plan = (kernel + f[:, None] + g[None, :]).exp()
    return (plan * cost).sum()

