"""The loss that a zoo entry is trained with, and the networks that this loss needs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from qpatch import data
from qpatch.defenses import (
    CURRICULUM, PBAT, PBCAT, QADTR, AdversarialTraining, Distillation, DoubleWinQuant, EnsembleAdversarialTraining, OnlinePatches,
    PatchPool, PatchTraining, QuantizationShiftTraining, SinkhornTraining, TriQDef,
)  # fmt: skip
from qpatch.errors import one_of
from qpatch.quant import WIDTHS, MultiBit
from qpatch.training import CrossEntropy, Loss
from qpatch.zoo.calibration import calibration_images
from qpatch.zoo.pool import PLACE, load_pool
from qpatch.zoo.recipes import Entry

# Paper B, its controls and PBCAT: against patches, on all widths of a joint network.
PATCH_LOSSES = {
    "patch-one": partial(PatchTraining, made_at="float"),
    "patch-all": partial(PatchTraining, made_at="random"),
    "pbat-random": partial(PBAT, location="random"),
    "pbat-full": partial(PBAT, location="full"),
    "dwq": DoubleWinQuant,
    "dwq-mild": partial(DoubleWinQuant, eps=2 / 255, step=0.5 / 255),  # the published noise is too much for 78 k parameters
    "qadtr": QADTR,
    "qadtr-without-aqapa": partial(QADTR, made_at="float"),
    "qadtr-without-dbwt": partial(QADTR, trained="random"),
    "qadtr-without-gir": partial(QADTR, gir="none"),
    "qadtr-gir-activations": partial(QADTR, gir="activations"),
    "qadtr-gir-agreement": partial(QADTR, gir="agreement"),
    "pbcat": PBCAT,
}
# Paper A: TriQDef whole, without each of its parts, and on patches that are made on the spot.
_NEITHER = {"fdp": 0.0, "gpdp": 0.0}
TRIQDEF_LOSSES = {
    "triqdef": {}, "triqdef-without-fdp": {"fdp": 0.0}, "triqdef-without-gpdp": {"gpdp": 0.0},
    "triqdef-without-both": _NEITHER, "triqdef-without-bact": {"stages": (WIDTHS,), "starts": (0,)},
    "triqdef-online": {"patches": OnlinePatches()}, "triqdef-online-without-both": {"patches": OnlinePatches(), **_NEITHER},
}  # fmt: skip
_BEGINS = (0, 1 / 6, 1 / 3, 1 / 2)  # of the training, where the stages of BACT begin
LOSSES = ("none", "pgd", "sinkhorn", "ensemble", "distilled", "shift", *PATCH_LOSSES, *TRIQDEF_LOSSES)
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
    if kind in PATCH_LOSSES:
        fewer = {"iterations": 2} if wanted.dataset == "shapes" else {}  # a smoke run shows that everything works
        return PATCH_LOSSES[kind](bf16=recipe.bf16, seed=recipe.seed, widths=wanted.trained, **fewer)
    if kind in TRIQDEF_LOSSES:
        return _triqdef(wanted, load)
    if kind == "ensemble":
        static = tuple(load(name).at(32) for name in _STATIC[wanted.dataset])
        return EnsembleAdversarialTraining(static, bf16=recipe.bf16, seed=recipe.seed)
    if kind == "distilled":
        return Distillation(load(_UNDEFENDED[wanted.dataset]).at(32), bf16=recipe.bf16)
    return CrossEntropy(wanted.trained, recipe.label_smoothing, recipe.bf16)


def _triqdef(wanted: Entry, load: Callable[[str], MultiBit]) -> TriQDef:
    train, recipe = data.load(wanted.dataset, "train"), wanted.recipe
    steps = recipe.epochs * (len(train) // recipe.batch_size)
    options = {"stages": CURRICULUM, "starts": tuple(round(share * steps) for share in _BEGINS)} | TRIQDEF_LOSSES[wanted.defense]
    if "patches" not in options:
        options["patches"] = PatchPool(load_pool(load("float").at(32), wanted.dataset), PLACE)
    return TriQDef(calibration=calibration_images(train), bf16=recipe.bf16, seed=recipe.seed, **options)
