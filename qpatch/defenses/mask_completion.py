"""Jedi's second step: a sparse autoencoder that turns a few suspicious pixels into the shape of a patch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from qpatch.attacks.patch import make_mask, paste
from qpatch.attacks.places import sample_places
from qpatch.checks import check_eval
from qpatch.errors import InputError, ParameterError


class MaskCompletion(nn.Module):
    """Mask → one hidden layer of logistic units → mask: what it has learned to draw are squares.

    Architecture and constants of the released script (MATLAB's `trainAutoencoder`): 100 hidden units, logistic at both
    ends, and a pixel belongs to the mask above 0.33.

    Args:
        image_size: height and width of the masks in pixels.
        hidden: number of hidden units.
        threshold: on the output, between 0 and 1.

    Raises:
        ParameterError: a size that is not positive, or a threshold outside (0, 1).

    Source:
        Tarchoun et al. 2023, "Jedi: Entropy-based localization and removal of adversarial patches", section 3.2.
    """

    def __init__(self, image_size: int = 32, hidden: int = 100, threshold: float = 0.33):
        super().__init__()
        if image_size < 1 or hidden < 1 or not 0 < threshold < 1:
            raise ParameterError("sizes must be positive and the threshold between 0 and 1.")
        self.image_size, self.threshold = image_size, threshold
        self.encode, self.decode = nn.Linear(image_size**2, hidden), nn.Linear(hidden, image_size**2)

    def forward(self, masks: Tensor) -> tuple[Tensor, Tensor]:
        """Float masks (N, H·W) → drawn masks (N, H·W) and hidden activations (N, hidden), both in (0, 1)."""
        hidden = torch.sigmoid(self.encode(masks))
        return torch.sigmoid(self.decode(hidden)), hidden

    @torch.no_grad()
    def complete(self, masks: Tensor) -> Tensor:
        """bool (N, H, W) → bool (N, H, W).

        Raises:
            InputError: masks of another size, or train mode.
        """
        if masks.shape[1:] != (self.image_size, self.image_size) or masks.dtype != torch.bool:
            raise InputError(f"masks must be bool (N, {self.image_size}, {self.image_size}), got {tuple(masks.shape)}.")
        check_eval(self)
        return (self(masks.flatten(1).float())[0] > self.threshold).view_as(masks)


def square_masks(n: int, image_size: int, sizes: Sequence[int], generator: torch.Generator) -> Tensor:
    """`n` masks per size, each with one square anywhere in the image: bool (n · sizes, H, W)."""
    found = []
    for size in sizes:
        places = sample_places("random", n, image_size, size, generator)
        empty = torch.zeros(n, 1, image_size, image_size)
        found.append(paste(empty, torch.ones(1, size, size), make_mask("square", size), places)[:, 0].bool())
    return torch.cat(found)


def train_completion(
    image_size: int = 32, sizes: Sequence[int] = (4, 5, 6, 7, 8, 9, 10), *, per_size: int = 300, steps: int = 600,
    batch: int = 128, lr: float = 0.02, l2: float = 0.004, sparsity: float = 4.0, proportion: float = 0.15,
    seed: int = 0,
) -> MaskCompletion:  # fmt: skip
    """Train the autoencoder to repeat masks of patches; no image and no patch is needed.

    Minimises mean ‖x̂ − x‖² + l2 · ½‖W‖² + sparsity · Σ KL(proportion ‖ mean activation of a unit), the source's loss
    with its weights. The optimizer is Adam (there scaled conjugate gradient).

    Args:
        image_size: height and width in pixels.
        sizes: sides of the squares in pixels: the patches to expect.
        per_size: masks per side.
        steps, batch, lr: of Adam; the step size falls to zero as half a cosine.
        l2, sparsity, proportion: the source's regularisation.
        seed: of weights, masks and their order.

    Returns:
        the autoencoder in eval mode.

    Raises:
        InputError: a square that does not fit. ParameterError: a proportion outside (0, 1), or no steps.
    """
    if not 0 < proportion < 1 or steps < 1:
        raise ParameterError(f"proportion must lie in (0, 1) and steps be positive, got {proportion}, {steps}.")
    generator = torch.Generator().manual_seed(seed)
    masks = square_masks(per_size, image_size, sizes, generator).flatten(1).float()
    net = MaskCompletion(image_size)
    with torch.no_grad():
        for weight in net.parameters():
            spread = 1 / math.sqrt(weight.shape[-1]) if weight.dim() > 1 else 0.0
            weight.copy_(spread * torch.randn(weight.shape, generator=generator))
        net.decode.bias.fill_(-3.0)  # most pixels are not patch
    optimizer = torch.optim.Adam(net.parameters(), lr)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = lr * 0.5 * (1 + math.cos(math.pi * step / steps))
        part = masks[torch.randint(len(masks), (batch,), generator=generator)]
        drawn, hidden = net(part)
        active = hidden.mean(0).clamp(1e-6, 1 - 1e-6)
        rest = (1 - proportion) * torch.log((1 - proportion) / (1 - active))
        sparse = (proportion * torch.log(proportion / active) + rest).sum()
        weights = sum(layer.weight.square().sum() for layer in (net.encode, net.decode)) / 2
        loss = (drawn - part).square().sum(1).mean() + l2 * weights + sparsity * sparse
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net.eval()
