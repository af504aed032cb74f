"""Trained networks and patches that ship with the package, each with a card: `zoo.load("joint").at(4)`."""

from qpatch.zoo.evaluation import CONTROLS, Evaluation, strongest_control
from qpatch.zoo.families import FAMILIES, INDEPENDENT_FLOATS, family, family_patches, family_specific, members
from qpatch.zoo.networks import card, load, shipped, train_entry
from qpatch.zoo.patches import PatchEntry, evaluation_subset, load_patch, load_specific
from qpatch.zoo.recipes import ENTRIES, Entry

__all__ = [
    "CONTROLS",
    "ENTRIES",
    "Entry",
    "Evaluation",
    "FAMILIES",
    "INDEPENDENT_FLOATS",
    "PatchEntry",
    "card",
    "evaluation_subset",
    "family",
    "family_patches",
    "family_specific",
    "load",
    "load_patch",
    "load_specific",
    "members",
    "shipped",
    "strongest_control",
    "train_entry",
]
