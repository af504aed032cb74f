"""The attack inside adversarial training: PGD and FGSM on the weights of this very step."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qpatch.attacks.base import frozen
from qpatch.checks import check_images
from qpatch.errors import ParameterError
from qpatch.training import logits_of


def linf_pgd(
    view: nn.Module, images: Tensor, labels: Tensor, *, eps: float, step: float, iterations: int,
    generator: torch.Generator | None = None, bf16: bool = False,
) -> Tensor:  # fmt: skip
    """Untargeted L∞ PGD (Madry et al. 2018) on the cross-entropy; with one iteration of `step = eps`, FGSM.

    BatchNorm stays still while the attack runs: the view is in eval mode meanwhile, and back in its mode afterwards.

    Args:
        view: the attacked network.
        images, labels: float32 (N, C, H, W) in [0, 1], and int64 (N,).
        eps, step: largest change and step size, in units of the [0, 1] range.
        iterations: number of gradient steps.
        generator: gives the random start; None starts at the image itself.
        bf16: run the network under bfloat16 autocast.

    Returns:
        Adversarial images in [0, 1], within `eps` of `images`.

    Raises:
        ParameterError: a size that is not positive.
        InputError: malformed images.
    """
    if not (eps > 0 and step > 0 and iterations > 0):
        raise ParameterError(f"eps, step and iterations must be positive, got {eps}, {step}, {iterations}.")
    check_images(images, view)
    was_training = view.training
    view.eval()
    low, high = (images - eps).clamp_(min=0), (images + eps).clamp_(max=1)
    adversarial = images.clone()
    if generator is not None:
        start = torch.rand(images.shape, generator=generator, dtype=images.dtype).to(images.device)
        adversarial = torch.minimum(torch.maximum(images + eps * (2 * start - 1), low), high)
    with frozen(view):
        for _ in range(iterations):
            adversarial.requires_grad_(True)
            logits = logits_of(view, adversarial, bf16)
            (gradient,) = torch.autograd.grad(F.cross_entropy(logits, labels, reduction="sum"), adversarial)
            adversarial = adversarial.detach() + step * gradient.sign()
            adversarial = torch.minimum(torch.maximum(adversarial, low), high)
    view.train(was_training)
    return adversarial.detach()

