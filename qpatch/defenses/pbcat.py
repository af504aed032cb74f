"""PBCAT: patches where the gradient is steep, and a little noise everywhere else (Li et al. 2025)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qpatch.attacks.base import frozen
from qpatch.attacks.patch import make_mask, paste
from qpatch.attacks.places import sample_places
from qpatch.defenses.patch_training import PatchTraining, _Widths
from qpatch.errors import ParameterError
from qpatch.quant import MultiBit
from qpatch.training import Batch


@dataclass(frozen=True)
class PBCAT(PatchTraining):
    """CE(f(x + M ⊙ δ_p + (1 − M) ⊙ δ_g), y) with |δ_p| ≤ β and |δ_g| ≤ ε, M = the steep cells of a window.

    "Patch-based composite adversarial training against physically realizable attacks on object detection",
    arXiv 2506.23581. Each image gets a window at random. The window is cut into cells; the half with the largest mean
    gradient norm becomes the patch, and all that is left of the image gets noise of size ε. One gradient per iteration
    drives both. Patch and noise bounds, steps and the kept half are those of the released configuration.

    Deviations: a classifier and its cross-entropy in place of a detector; one window of 6×6 pixels in 9 cells, under
    the place rule of all our baselines (there 64 cells around every second object; both cover about 4 % of the object,
    half of it patch); 10 iterations from zero at every step (there "free" training: one iteration per weight step,
    eight steps on a batch, perturbations carried over); half of each batch stays clean (there none). The method knows
    no bit-widths: each step trains one view, drawn at random, on perturbations of the float view.

    Attributes (beyond PatchTraining's):
        step: of the patch. radius: β. noise: ε, and the step of the noise. All in units of the [0, 1] range.
        cell: side of a cell in pixels; it divides `size`.
        kept: share of the cells that become the patch, rounded up.

    Raises:
        ParameterError: a bound or step that is not positive, cells that do not tile the window, `kept` outside (0, 1].
    """

    step: float = 8 / 255
    radius: float = 64 / 255
    noise: float = 4 / 255
    cell: int = 2
    kept: float = 0.5

    def __post_init__(self):
        super().__post_init__()
        if not (self.step > 0 and self.radius > 0 and self.noise > 0):
            given = f"{self.step}, {self.radius}, {self.noise}"
            raise ParameterError(f"step, radius and noise must be positive, got {given}.")
        if self.cell < 1 or self.size % self.cell:
            raise ParameterError(f"cells of side {self.cell} do not tile a window of side {self.size}; use a divisor.")
        if not 0 < self.kept <= 1:
            raise ParameterError(f"kept must lie in (0, 1], got {self.kept}.")

    def patched(self, net: MultiBit, batch: Batch, trained: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """The batch with perturbed first images. BatchNorm stays still while they are made."""
        count = max(1, round(len(batch.labels) * self.share))
        images, labels = batch.images[:count], batch.labels[:count]
        was_training = net.training
        net.eval()
        perturbed = self._attacked(_Widths(net, self, trained, generator), images, labels, generator)
        net.train(was_training)
        return torch.cat([perturbed, batch.images[count:]])

    def _attacked(self, view_for: Callable, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        places = sample_places(self.place, len(images), images.shape[-2:], self.size, generator)
        gradient, _ = loss_gradient(view_for(0, None), images, labels)
        mask = steep_cells(gradient.norm(dim=1), places, self.size, self.cell, self.kept)
        patch, noise, before = torch.zeros_like(images), torch.zeros_like(images), None
        for iteration in range(self.iterations):
            gradient, before = loss_gradient(view_for(iteration, before), composite(images, patch, noise, mask), labels)
            patch = (patch + self.step * gradient.sign()).clamp_(-self.radius, self.radius)
            noise = (noise + self.noise * gradient.sign()).clamp_(-self.noise, self.noise)
        return composite(images, patch, noise, mask)


def composite(images: Tensor, patch: Tensor, noise: Tensor, mask: Tensor) -> Tensor:
    """x + M ⊙ δ_p + (1 − M) ⊙ δ_g, clipped to [0, 1]; all (N, C, H, W), the mask (N, 1, H, W)."""
    return (images + torch.where(mask, patch, noise)).clamp_(0, 1)


def loss_gradient(view: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """∇ₓCE(f(x), y), (N, C, H, W), and the mean loss; weights stay without gradient."""
    with frozen(view):
        points = images.detach().requires_grad_(True)
        losses = F.cross_entropy(view(points).float(), labels, reduction="none")
        (gradient,) = torch.autograd.grad(losses.sum(), points)
    return gradient, losses.detach().mean()


def steep_cells(steep: Tensor, places: Tensor, size: int, cell: int, kept: float) -> Tensor:
    """The cells of each image's window with the largest mean of `steep`.

    Args:
        steep: (N, H, W), for instance the norm of the input gradient over the channels.
        places: int64 (N, 2), top-left corners of the windows.
        size, cell: sides of window and cell in pixels. kept: share of the cells, rounded up.

    Returns:
        bool (N, 1, H, W).
    """
    offsets = torch.arange(size, device=steep.device)
    rows, columns = (places.to(steep.device)[:, axis, None] + offsets for axis in (0, 1))
    window = steep[torch.arange(len(steep))[:, None, None], rows[:, :, None], columns[:, None, :]]
    means = F.avg_pool2d(window[:, None], cell).flatten(1)
    chosen = means.topk(math.ceil(kept * means.shape[1]), dim=1).indices
    cells = torch.zeros_like(means).scatter_(1, chosen, 1.0).view(-1, 1, size // cell, size // cell)
    inside = F.interpolate(cells, scale_factor=cell, mode="nearest")
    return paste(torch.zeros_like(steep)[:, None], inside, make_mask("square", size), places).bool()
