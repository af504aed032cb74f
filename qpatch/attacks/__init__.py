"""Patch attacks: one attack per file, in the calling style of torchattacks."""

from qpatch.attacks.controls import grey_patch, noise_patch, photo_patch
from qpatch.attacks.equiluminant import Equiluminant
from qpatch.attacks.gap import GAP, transformed
from qpatch.attacks.lavan import LaVAN
from qpatch.attacks.patch import Patch, apply_patch, make_mask, paste
from qpatch.attacks.patch_attack import Queried, QueryPatchAttack
from qpatch.attacks.places import sample_places
from qpatch.attacks.textures import texture_dictionary

__all__ = [
    "Equiluminant",
    "GAP",
    "LaVAN",
    "Patch",
    "Queried",
    "QueryPatchAttack",
    "apply_patch",
    "grey_patch",
    "make_mask",
    "noise_patch",
    "paste",
    "photo_patch",
    "sample_places",
    "texture_dictionary",
    "transformed",
]
