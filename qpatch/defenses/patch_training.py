"""Adversarial patch training over several bit-widths: the frame that PBAT, QADT-R and their controls fill in."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qpatch.attacks.patch import make_mask, paste
from qpatch.defenses.inner_patch import LOCATIONS, patch_pgd
from qpatch.errors import ParameterError, one_of
from qpatch.quant import WIDTHS, MultiBit
from qpatch.training import Batch, logits_of

TRAINED = ("random", "cycle", "all")
MADE_AT = ("float", "own", "random", "adaptive")


@dataclass(frozen=True)
class PatchTraining:
    """mean over b of CE(f_b(x′), y), where the first part of the batch x′ carries patches made on these very weights.

    With half of the batch patched this is ½·L_clean + ½·L_adv, as in Rao, Stutz and Schiele (2020). With
    `made_at` "float" and `trained` "random" it is *patch training at one width*; with "random" and "random", *patch
    training at all widths*: the two controls that tell what the parts of QADT-R add. Source: this project.

    Attributes:
        widths: bit-widths that are trained.
        trained: which of them a step trains: one drawn at "random" (as Double-Win Quant's random precision training),
            the next of a "cycle" from high to low (QADT-R's dynamic bit-width training), or "all".
        made_at: where patches are made: on the "float" view, on the view that is trained ("own"), on a view drawn at
            "random" for every iteration, or, "adaptive", on every view once and then, at each iteration, on the one
            that the patches fooled least when they met it last.
        size: side of the patches in pixels. place: see `sample_places`.
        iterations, step: of the patches; step in units of the [0, 1] range.
        location: place search, one of `inner_patch.LOCATIONS`. stride: its moves, in pixels.
        share: of each batch that is patched.
        bf16: bfloat16 autocast for float views.
        seed: of all random draws, which depend on seed and step only.

    Raises:
        ParameterError: an unknown rule, or a share outside (0, 1].
    """

    widths: tuple[int, ...] = WIDTHS
    trained: str = "random"
    made_at: str = "float"
    size: int = 6
    place: str = "away"
    iterations: int = 10
    step: float = 0.1
    location: str = "fixed"
    stride: int = 2
    share: float = 0.5
    bf16: bool = False
    seed: int = 0

    def __post_init__(self):
        one_of(self.trained, TRAINED, "rule for trained widths")
        one_of(self.made_at, MADE_AT, "rule for the patches' width")
        one_of(self.location, LOCATIONS, "location rule")
        if not 0 < self.share <= 1:
            raise ParameterError(f"share must lie in (0, 1], got {self.share}.")

    def __call__(self, net: MultiBit, batch: Batch, step: int) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        widths = self.widths_of(step, generator)
        images = self.patched(net, batch, widths, generator)
        losses = [F.cross_entropy(self.logits(net.at(b), images, b, generator), batch.labels) for b in widths]
        return torch.stack(losses).mean()

    def widths_of(self, step: int, generator: torch.Generator) -> tuple[int, ...]:
        """The widths that this step trains."""
        if self.trained == "all":
            return self.widths
        if self.trained == "cycle":
            return (self.widths[step % len(self.widths)],)
        return (self.widths[int(torch.randint(len(self.widths), (), generator=generator))],)

    def logits(self, view: nn.Module, images: Tensor, width: int, generator: torch.Generator) -> Tensor:
        """What the loss is taken of."""
        return logits_of(view, images, self.bf16 and width == 32)

    def patched(self, net: MultiBit, batch: Batch, trained: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """The batch with patches in its first images. BatchNorm stays still while they are made."""
        count = max(1, round(len(batch.labels) * self.share))
        images, labels = batch.images[:count], batch.labels[:count]
        was_training = net.training
        net.eval()
        pixels, places = patch_pgd(
            _Widths(net, self, trained, generator), images, labels, size=self.size, place=self.place,
            iterations=self.iterations, step=self.step, location=self.location, stride=self.stride, generator=generator,
        )  # fmt: skip
        net.train(was_training)
        return torch.cat([paste(images, pixels, make_mask("square", self.size), places), batch.images[count:]])


class _Widths:
    """Which view an iteration of the inner attack meets."""

    def __init__(self, net: MultiBit, rule: PatchTraining, trained: tuple[int, ...], generator: torch.Generator):
        self.net, self.rule, self.trained, self.generator = net, rule, trained, generator
        self.met: dict[int, float] = {}
        self.last: int | None = None

    def __call__(self, iteration: int, before: Tensor | None) -> nn.Module:
        if before is not None:
            self.met[self.last] = float(before)
        self.last = self._width(iteration)
        return self.net.at(self.last)

    def _width(self, iteration: int) -> int:
        rule, widths = self.rule.made_at, self.rule.widths
        if rule == "float":
            return 32
        if rule == "own":
            return self.trained[iteration % len(self.trained)]
        if rule == "random":
            return widths[int(torch.randint(len(widths), (), generator=self.generator))]
        return widths[iteration] if iteration < len(widths) else min(widths, key=self.met.__getitem__)
