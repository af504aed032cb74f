"""The loss that a zoo entry is trained with, and the networks that this loss needs."""

from __future__ import annotations

from collections.abc import Callable

from qpatch.defenses import (
    AdversarialTraining, Distillation, EnsembleAdversarialTraining, QuantizationShiftTraining, SinkhornTraining,
)  # fmt: skip
from qpatch.errors import one_of
from qpatch.quant import MultiBit
from qpatch.training import CrossEntropy, Loss
from qpatch.zoo.recipes import Entry

LOSSES = ("none", "pgd", "sinkhorn", "ensemble", "distilled", "shift")
_UNDEFENDED = {"cifar10": "tiny", "shapes": "tiny", "coffee": "coffee-cnn"}
_STATIC = {"cifar10": ("aux-vgg", "float-s1"), "shapes": ("float-s1",), "coffee": ("coffee-dscnn",)}


def make_loss(wanted: Entry, load: Callable[[str], MultiBit]) -> Loss:
    """The loss of this entry.

    Args:
        wanted: the zoo entry.
        load: gives another zoo network on the same data, for the losses that lean on one.
    """
    recipe = wanted.recipe
    kind = one_of(wanted.defense, LOSSES, "defense")
    if kind == "pgd":
        return AdversarialTraining(bf16=recipe.bf16, seed=recipe.seed)
    if kind == "sinkhorn":
        return SinkhornTraining(bf16=recipe.bf16, seed=recipe.seed)
    if kind == "shift":
        return QuantizationShiftTraining(bf16=recipe.bf16, seed=recipe.seed, widths=wanted.trained)
    if kind == "ensemble":
        static = tuple(load(name).at(32) for name in _STATIC[wanted.dataset])
        return EnsembleAdversarialTraining(static, bf16=recipe.bf16, seed=recipe.seed)
    if kind == "distilled":
        return Distillation(load(_UNDEFENDED[wanted.dataset]).at(32), bf16=recipe.bf16)
    return CrossEntropy(wanted.trained, recipe.label_smoothing, recipe.bf16)
