"""QADT-R: quantization-aware patches, cycling bit-widths, inconsistent gradients (Guesmi, Ouni, Shafique 2025)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qpatch.defenses.input_gradient import input_gradients
from qpatch.defenses.patch_training import PatchTraining
from qpatch.errors import one_of
from qpatch.quant import MultiBit
from qpatch.quant.multibit import quantizable_layers
from qpatch.training import Batch

READINGS = ("weights", "activations", "agreement", "none")


@dataclass(frozen=True)
class QADTR(PatchTraining):
    """Quantization-aware defense training with randomization; a *reconstruction*, arXiv 2503.07058 has no public code.

    Only the abstract is at hand. It names three parts; each can be switched off:

    - A-QAPA, patches made inside the quantized network, adaptively over the widths: `made_at` "adaptive" (off: "float").
    - DBWT, bit-width cycling: `trained` "cycle" (off: "random", which is Double-Win Quant's uniform draw).
    - GIR, "controlled gradient perturbations", in three readings (off: "none"):
        weights       every weight gradient g gets noise: g + γ·rms(g)·ξ, ξ ~ N(0, 1);
        activations   every quantized layer's input a gets noise: a + γ·rms(a)·ξ, in training and at inference, so that
                      input gradients differ from pass to pass (`NoisyActivations` is the deployed network);
        agreement     + γ·mean cos(∇ₓL_b, ∇ₓL_b′) over patched images, b′ another width drawn at random: gradients of
                      two widths are pushed apart (needs double backward).

    Attributes (beyond PatchTraining's):
        gir: which reading.
        strength: γ of the reading.
        agreement_images: patched images of each batch that the third reading looks at; all would double the cost.
    """

    trained: str = "cycle"
    made_at: str = "adaptive"
    gir: str = "weights"
    strength: float = 0.3
    agreement_images: int = 16

    def __post_init__(self):
        super().__post_init__()
        one_of(self.gir, READINGS, "reading of GIR")

    def __call__(self, net: MultiBit, batch: Batch, step: int) -> Tensor:
        if self.gir != "agreement":
            return super().__call__(net, batch, step)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        widths = self.widths_of(step, generator)
        images = self.patched(net, batch, widths, generator)
        losses = [F.cross_entropy(self.logits(net.at(b), images, b, generator), batch.labels) for b in widths]
        others = [width for width in self.widths if width != widths[0]]
        other = others[int(torch.randint(len(others), (), generator=generator))]
        part = slice(0, min(self.agreement_images, round(len(batch.labels) * self.share)))
        penalty = gradient_agreement(net.at(widths[0]), net.at(other), images[part], batch.labels[part])
        return torch.stack(losses).mean() + self.strength * penalty

    def logits(self, view: nn.Module, images: Tensor, width: int, generator: torch.Generator) -> Tensor:
        if self.gir != "activations":
            return super().logits(view, images, width, generator)
        with noisy_activations(view, self.strength, generator):
            return super().logits(view, images, width, generator)

    def adjust_gradients(self, net: MultiBit, step: int) -> None:
        """Called by the training loop between backward and the optimizer's step; does the first reading."""
        if self.gir != "weights":
            return
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step + 500_009)
        for weight in net.parameters():
            if weight.grad is not None and weight.dim() > 1:
                noise = torch.randn(weight.shape, generator=generator).to(weight.grad)
                weight.grad.add_(noise * (self.strength * weight.grad.square().mean().sqrt()))


def gradient_agreement(view: nn.Module, other: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Mean over images of cos(∇ₓCE(f_b(x), y), ∇ₓCE(f_b′(x), y)); differentiable in the weights. A scalar."""
    gradients = [input_gradients(net, images, labels).flatten(1) for net in (view, other)]
    return F.cosine_similarity(*gradients, dim=1, eps=1e-12).mean()


@contextmanager
def noisy_activations(view: nn.Module, strength: float, generator: torch.Generator) -> Iterator[nn.Module]:
    """While this lasts, every convolution and linear layer of `view` gets a + strength·rms(a)·ξ instead of a.

    The root mean square is taken over each image's own values.
    """

    def disturb(_, inputs):
        (a,) = inputs
        noise = torch.randn(a.shape, generator=generator, dtype=torch.float32).to(a)
        return (a + noise * strength * a.detach().square().mean(dim=tuple(range(1, a.dim())), keepdim=True).sqrt(),)

    hooks = [layer.register_forward_pre_hook(disturb) for _, layer in quantizable_layers(view)]
    try:
        yield view
    finally:
        for hook in hooks:
            hook.remove()


class NoisyActivations(nn.Module):
    """A network deployed with GIR's second reading: two calls with the same image differ.

    An attack on this very module meets new noise at every step: it ascends on the expectation over the noise.

    Args:
        view: in eval mode.
        strength: γ, as it was trained.
        seed: of the noise, which goes on from call to call.

    Shapes: images (N, C, H, W) in [0, 1] → logits (N, classes), with a gradient.
    """

    def __init__(self, view: nn.Module, strength: float = 0.3, seed: int = 0):
        super().__init__()
        self.view, self.strength = view, strength
        self.generator = torch.Generator().manual_seed(seed)
        self.train(view.training)

    def forward(self, images: Tensor) -> Tensor:
        with noisy_activations(self.view, self.strength, self.generator):
            return self.view(images)
