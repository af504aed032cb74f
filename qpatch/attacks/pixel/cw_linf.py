"""C&W L∞ as ART has it: an L∞ bound that shrinks as long as an adversarial image is found below it. Run by our own code.

ART takes the images one by one and, for each bound, tries 21 constants; 500 images would take hours. But the gradient
that ART descends does not contain the constant: all constants walk along one path, and differ only in where they stop.
So one path per bound gives what 21 do, and all images walk side by side. A test compares with ART image by image.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from qpatch.attacks.pixel.base import PixelAttack

CONVERGED = 1e-3  # ART stops where the loss falls below this
FINEST = 1 / 256  # the bound at which ART gives up
SMOOTHER = 0.999999  # keeps arctanh finite at black and white


def cw_linf(net: nn.Module, images: Tensor, labels: Tensor, *, steps: int, lr: float, decrease: float,
            smallest_const: float, largest_const: float, confidence: float) -> Tensor:  # fmt: skip
    """Shrink the bound τ by `decrease` after every success, starting from 1; the smallest adversarial image is kept.

    For each bound: `steps` steps of Adam on margin + Σ max(0, |δ| − τ), in arctanh space; a constant c ends its path
    where c · margin + Σ max(0, |δ| − τ) falls below 0.001.
    """
    consts = [smallest_const]
    while 2 * consts[-1] < largest_const:
        consts.append(2 * consts[-1])
    consts = torch.tensor(consts, device=images.device)[:, None]  # a row per constant, a column per image
    found, smallest = images.clone(), torch.ones(len(images), device=images.device)
    tau, alive = smallest.clone(), torch.arange(len(images), device=images.device)
    while len(alive):
        better = torch.zeros(len(alive), dtype=torch.bool, device=images.device)
        running = torch.ones(len(consts), len(alive), dtype=torch.bool, device=images.device)
        path = _path(net, images[alive], labels[alive], tau[alive], steps, lr, confidence)
        for step, (point, margin, excess, fooled) in enumerate(path, start=1):
            ends = running & ((consts * margin + excess < CONVERGED) | (step == steps))
            running &= ~ends
            size = (point - images[alive]).abs().flatten(1).amax(1)
            wins = ends.any(0) & fooled & (size < smallest[alive])
            found[alive[wins]], smallest[alive[wins]] = point[wins], size[wins]
            better |= wins
            if not running.any():
                break
        actual = (found[alive] - images[alive]).abs().flatten(1).amax(1)
        tau[alive] = torch.minimum(tau[alive], actual) * decrease
        alive = alive[better & (tau[alive] > FINEST)]
    return found


def _path(net: nn.Module, images: Tensor, labels: Tensor, tau: Tensor, steps: int, lr: float, confidence: float
          ) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:  # fmt: skip
    """After each step of Adam: the images, their margins (≥ 0), how far they are outside τ in sum, and who is fooled."""
    bound = tau.view(-1, *[1] * (images.dim() - 1))
    position = torch.atanh((2 * images - 1) * SMOOTHER)
    mean, square = torch.zeros_like(images), torch.zeros_like(images)
    _, slope, _ = _margin(net, (torch.tanh(position) + 1) / 2, labels, confidence)
    for step in range(1, steps + 1):
        now = (torch.tanh(position) + 1) / 2
        offset = now - images
        slope = slope + (offset.abs() > bound) * offset.sign()
        slope = slope * (1 - torch.tanh(position) ** 2) / (2 * SMOOTHER)
        mean, square = 0.9 * mean + 0.1 * slope, 0.999 * square + 0.001 * slope**2
        position = position - lr * (mean / (1 - 0.9**step)) / ((square / (1 - 0.999**step)).sqrt() + 1e-8)
        now = (torch.tanh(position) + 1) / 2
        margin, slope, fooled = _margin(net, now, labels, confidence)
        yield now, margin, ((now - images).abs() - bound).clamp_min(0).flatten(1).sum(1), fooled


def _margin(net: nn.Module, images: Tensor, labels: Tensor, confidence: float) -> tuple[Tensor, Tensor, Tensor]:
    """max(0, true logit − best other + confidence), the gradient of the difference, and who is misclassified."""
    images = images.requires_grad_()
    logits = net(images)
    true = logits.gather(1, labels[:, None])[:, 0]
    other = logits.scatter(1, labels[:, None], -torch.inf).amax(1)
    gap = true - other
    slope = torch.autograd.grad(gap.sum(), images)[0]
    images.requires_grad_(False)
    return (gap.detach() + confidence).clamp_min(0), slope, logits.argmax(1) != labels


ATTACK = PixelAttack("CW-Linf", "C&W", "Linf", "gradient", "gradients", "qpatch, after ART", cw_linf)
