"""TriQDef: disrupting the semantic and gradient alignment of bit-widths (Guesmi, Ouni, Shafique 2026)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qpatch.checks import device_of
from qpatch.defenses.input_gradient import input_gradients
from qpatch.defenses.likeness import Likeness
from qpatch.errors import ParameterError
from qpatch.quant import WIDTHS, MultiBit, calibrate
from qpatch.training import Batch, logits_of

CURRICULUM = ((32, 8), (32, 8, 5), (32, 8, 5, 4), WIDTHS)


class Patcher(Protocol):
    """Puts a patch into every image: `PatchPool` (offline) or `OnlinePatches`."""

    def __call__(
        self, net: MultiBit, images: Tensor, labels: Tensor, widths: tuple[int, ...], generator: torch.Generator
    ) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class TriQDef:
    """L = (L_clean + λ_adv·L_adv + λ_FDP·L_FDP + λ_GPDP·L_GPDP) / (1 + λ_adv) over all active widths B_t at once.

    L_clean and L_adv are the mean cross-entropies over B_t of the clean and of the patched part of the batch. On
    patched images, FDP lowers the `Likeness` of the widths' features and GPDP that of their input gradients. The
    division leaves the optimum where it is, and a training without penalties at the scale of other patch trainings.
    BACT is the curriculum: widths become active from high to low. A *reconstruction*: the paper has no public code.

    Attributes:
        patches: puts patches into images.
        stages: the active widths of each stage, and starts: the training step at which each begins. One stage with all
            widths is a training without BACT. calibration: images (N, C, H, W) that a new width is initialised on.
        adv, fdp, gpdp: the λ. Without fdp and gpdp this is *multi-bit patch training*, the control of both penalties.
        layers: names of the modules whose output FDP looks at; the paper: early and middle ones.
        share: of each batch that is patched.
        feature_images, gradient_images: patched images of a batch that FDP and GPDP look at.
        features, gradients: their measures.
        bf16: bfloat16 autocast for float views. seed: of all draws, which depend on seed and step only.

    Raises:
        ParameterError: stages that do not begin at step 0, do not grow, or cannot be initialised; a share outside
            (0, 1); a negative weight; a layer that the network does not have.
    """

    patches: Patcher
    stages: tuple[tuple[int, ...], ...] = (WIDTHS,)
    starts: tuple[int, ...] = (0,)
    calibration: Tensor | None = None
    adv: float = 1.0
    fdp: float = 0.8
    gpdp: float = 0.5
    layers: tuple[str, ...] = ("blocks.0", "blocks.1", "blocks.2")
    share: float = 0.5
    feature_images: int = 32
    gradient_images: int = 16
    features: Likeness = field(default_factory=Likeness)
    gradients: Likeness = field(default_factory=Likeness)
    bf16: bool = False
    seed: int = 0

    def __post_init__(self):
        grows = all(set(low) < set(high) for low, high in zip(self.stages, self.stages[1:]))
        rises = self.starts[:1] == (0,) and list(self.starts) == sorted(set(self.starts))
        if len(self.stages) != len(self.starts) or not (grows and rises):
            raise ParameterError(f"stages must grow and start at 0 and later steps, got {self.stages} at {self.starts}.")
        if len(self.stages) > 1 and self.calibration is None:
            raise ParameterError("a curriculum needs calibration images for the widths that it adds.")
        if not 0 < self.share < 1 or min(self.adv, self.fdp, self.gpdp) < 0:
            raise ParameterError("share must lie in (0, 1), and no weight may be negative.")

    def __call__(self, net: MultiBit, batch: Batch, step: int) -> Tensor:
        return self.total(self.terms(net, batch, step))

    def total(self, terms: dict[str, Tensor]) -> Tensor:
        """L of its terms."""
        weights = {"clean": 1.0, "adversarial": self.adv, "features": self.fdp, "gradients": self.gpdp}
        return sum(weights[name] * term for name, term in terms.items()) / (1 + self.adv)

    def terms(self, net: MultiBit, batch: Batch, step: int) -> dict[str, Tensor]:
        """L_clean, L_adv, L_FDP and L_GPDP of one step, as scalars without their weights; penalties of weight 0 are left out."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        if step in self.starts[1:]:
            self._open(net, self.starts.index(step))
        widths = self.active(step)
        count = max(1, round(len(batch.labels) * self.share))
        labels = batch.labels[:count]
        patched = self.patches(net, batch.images[:count], labels, widths, generator)
        clean, adversarial, features = self._forward(net, patched, batch, widths)
        found = {"clean": clean, "adversarial": adversarial}
        if self.fdp:
            found["features"] = torch.stack([self.features(maps) for maps in features]).mean()
        if self.gpdp:
            part = slice(0, self.gradient_images)
            found["gradients"] = self.gradients([input_gradients(net.at(b), patched[part], labels[part]) for b in widths])
        return found

    def active(self, step: int) -> tuple[int, ...]:
        """B_t, the widths that are trained at this step."""
        return self.stages[sum(start <= step for start in self.starts) - 1]

    def _forward(self, net, patched, batch, widths) -> tuple[Tensor, Tensor, list[list[Tensor]]]:
        """L_clean, L_adv, and for each layer the features of every width on the first patched images."""
        count, images = len(patched), torch.cat([patched, batch.images[len(patched) :]])
        clean, adversarial, features = [], [], [[] for _ in self.layers]
        for width in widths:
            with outputs(net.at(width), self.layers if self.fdp else ()) as kept:
                logits = logits_of(net.at(width), images, self.bf16 and width == 32)
            losses = F.cross_entropy(logits, batch.labels, reduction="none")
            adversarial.append(losses[:count].mean())
            clean.append(losses[count:].mean())
            for layer, maps in zip(features, kept):
                layer.append(maps[: min(count, self.feature_images)])
        return torch.stack(clean).mean(), torch.stack(adversarial).mean(), features

    def _open(self, net: MultiBit, stage: int) -> None:
        """Initialise the widths that this stage adds: BatchNorm from the nearest active width, then ranges, then statistics."""
        known, images = self.stages[stage - 1], self.calibration.to(device_of(net))
        for width in sorted(set(self.stages[stage]) - set(known), reverse=True):
            nearest = min(known, key=lambda other: abs(other - width))
            _copy_norms(net.at(nearest), net.at(width))
            calibrate(net, images, (width,))
            _estimate_norms(net.at(width), images)


@contextmanager
def outputs(view: nn.Module, layers: tuple[str, ...]) -> Iterator[list[Tensor]]:
    """While this lasts, a forward pass of `view` leaves the outputs of these layers in the list, in their order.

    Raises:
        ParameterError: no such layer.
    """
    modules = dict(view.named_modules())
    for name in layers:
        if name not in modules:
            raise ParameterError(f"the network has no layer {name!r}; give names of its modules, such as {list(modules)[-1]!r}.")
    kept: list[Tensor | None] = [None] * len(layers)
    keep = lambda index: lambda module, inputs, output: kept.__setitem__(index, output)  # noqa: E731
    hooks = [modules[name].register_forward_hook(keep(index)) for index, name in enumerate(layers)]
    try:
        yield kept
    finally:
        for hook in hooks:
            hook.remove()


def _norms(view: nn.Module) -> list[nn.Module]:
    return [module for module in view.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


def _copy_norms(source: nn.Module, view: nn.Module) -> None:
    for old, new in zip(_norms(source), _norms(view)):
        if old is not new:  # a shared BatchNorm needs no copy
            new.load_state_dict(old.state_dict())


@torch.no_grad()
def _estimate_norms(view: nn.Module, images: Tensor) -> None:
    """BatchNorm's running statistics from one pass over these images."""
    norms = _norms(view)
    momenta, was_training = [norm.momentum for norm in norms], view.training
    for norm in norms:
        norm.momentum = 1.0
    view.train()
    view(images)
    view.train(was_training)
    for norm, momentum in zip(norms, momenta):
        norm.momentum = momentum
