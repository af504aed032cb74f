"""LaVAN that knows TriQDef: it fools several widths at once and pulls together what the defense pushes apart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qpatch.attacks.lavan import LaVAN
from qpatch.errors import ParameterError


class Alike(Protocol):
    """How alike maps of several widths are, such as `qpatch.defenses.Likeness`."""

    alpha: float
    beta: float

    def tables(self, values: Sequence[Tensor]) -> tuple[Tensor, Tensor]: ...


class AlignedLaVAN(LaVAN):
    """A patch for several widths at once, whose features and input gradients agree over the widths.

    TriQDef trains a network so that the widths' features (FDP) and input gradients (GPDP) differ on patched images, and
    expects that patches then no longer cross widths. This attacker looks for the patches on which they agree:

        mean_b margin_b − λ_F · mean over layers and pairs of likeness(features)
                        − λ_G · mean over pairs of likeness(∇ₓ CE_b)

    with the margin of LaVAN and the very likeness of the defense. With λ_F = λ_G = 0 it is the control: a patch for several
    widths at once. Between ReLU's kinks and the steps of the quantizers an input gradient depends on the pixels only
    through the softmax, so the third term has little to follow; the second has more. Source: this project.

    Of several restarts the one with the lowest margin of the mean score is kept, without the likeness.

    Args (beyond LaVAN's; `net` is replaced by `views`):
        views: bit-width → network at that width, in eval mode.
        likeness: of the defense; needed for a weight above zero.
        features, gradients: λ_F and λ_G, in score units; TriQDef's own weights by default.
        layers: names of the modules whose outputs are compared; the network's own name may stand behind a wrapper's.

    Raises:
        ParameterError: no views, a negative weight, a weight without a likeness, no such layer.

    Example:
        >>> attack = AlignedLaVAN({bits: net.at(bits) for bits in (32, 2)}, 6, likeness=Likeness(), steps=30)
        >>> adversarial = attack(images, labels)
    """

    def __init__(
        self,
        views: Mapping[int, nn.Module],
        patch_size: int | tuple[int, int] = 6,
        *,
        likeness: Alike | None = None,
        features: float = 0.8,
        gradients: float = 0.5,
        layers: tuple[str, ...] = ("blocks.0", "blocks.1", "blocks.2"),
        **options,
    ) -> None:
        if not views or min(features, gradients) < 0 or (likeness is None and max(features, gradients) > 0):
            raise ParameterError("AlignedLaVAN needs views, weights of at least 0, and a likeness for weights above 0.")
        super().__init__(_Together(views, layers if features else ()), patch_size, **options)
        self.likeness, self.features, self.gradients, self.layers = likeness, features, gradients, layers

    def objective(self, scores: Tensor, labels: Tensor, universal: bool) -> Tensor:
        if not torch.is_grad_enabled():  # the choice between restarts
            return super().objective(scores, labels, universal)
        seen = self.net
        loss = torch.stack([super(AlignedLaVAN, self).objective(each, labels, universal) for each in seen.scores]).mean(0)
        if self.features:
            loss = loss - self.features * torch.stack([self._alike(maps) for maps in seen.features]).mean(0)
        if self.gradients:
            costs = [F.cross_entropy(each, labels, reduction="sum") for each in seen.scores]
            slopes = [torch.autograd.grad(cost, seen.images, create_graph=True)[0] for cost in costs]
            loss = loss - self.gradients * self._alike(slopes)
        return loss

    def made_on(self) -> dict:
        return super().made_on() | {"features": self.features, "gradients": self.gradients, "layers": list(self.layers)}

    def _alike(self, values: Sequence[Tensor]) -> Tensor:
        """α·SoftDice + β·HOG cosine of every image, mean over the pairs of widths: (N,)."""
        dice, cosine = self.likeness.tables(values)
        table, widths = self.likeness.alpha * dice + self.likeness.beta * cosine, len(values)
        return (table.sum((0, 1)) - table.diagonal().sum(-1)) / max(widths * (widths - 1), 1)


class _Together(nn.Module):
    """Several views of the same images: the mean score, and what the last pass has shown of each view.

    Attributes:
        images: the input of the last pass. scores: the views' scores. features: layer by layer, the views' outputs.
    """

    def __init__(self, views: Mapping[int, nn.Module], layers: tuple[str, ...]):
        super().__init__()
        self.views, self.layers = nn.ModuleDict({str(bits): view for bits, view in views.items()}), layers
        self.train(any(view.training for view in views.values()))

    def forward(self, images: Tensor) -> Tensor:
        self.images, self.scores, self.features = images, [], [[] for _ in self.layers]
        for view in self.views.values():
            with _outputs(view, self.layers) as kept:
                self.scores.append(view(images))
            for layer, output in zip(self.features, kept):
                layer.append(output)
        return torch.stack(self.scores).mean(dim=0)


@contextmanager
def _outputs(view: nn.Module, layers: Sequence[str]) -> Iterator[list[Tensor | None]]:
    """While this lasts, a pass through `view` leaves the outputs of these layers in the list, in their order."""
    modules, kept = dict(view.named_modules()), [None] * len(layers)
    with ExitStack() as stack:
        for index, layer in enumerate(layers):
            found = [module for name, module in modules.items() if name == layer or name.endswith(f".{layer}")]
            if not found:
                raise ParameterError(f"the network has no layer {layer!r}; its last module is {list(modules)[-1]!r}.")
            keep = lambda module, inputs, output, index=index: kept.__setitem__(index, output)  # noqa: E731
            stack.callback(found[0].register_forward_hook(keep).remove)
        yield kept
