"""Trained networks and patches that ship with the package, each with a card: `zoo.load("joint").at(4)`."""

from qpatch.zoo.calibration import calibration_images
from qpatch.zoo.defense_runs import DefensePlan, distance_rows, load_defense_run, success_rows
from qpatch.zoo.deployed import PRECISIONS, deploy, twins
from qpatch.zoo.evaluation import CONTROLS, Evaluation, strongest_control
from qpatch.zoo.families import FAMILIES, INDEPENDENT_FLOATS, family, family_patches, family_specific, members
from qpatch.zoo.networks import card, load, shipped, train_entry
from qpatch.zoo.pairs import (
    FLOATS,
    KINDS,
    balanced_part,
    family_rows,
    float_rows,
    known_pairs,
    node,
    nodes,
    source_visibility,
)
from qpatch.zoo.patches import PatchEntry, evaluation_subset, load_patch, load_specific
from qpatch.zoo.recipes import DEFENDED_BY, ENTRIES, Entry
from qpatch.zoo.tasks import TASKS, Task, available

__all__ = [
    "CONTROLS",
    "DEFENDED_BY",
    "DefensePlan",
    "ENTRIES",
    "Entry",
    "Evaluation",
    "FAMILIES",
    "FLOATS",
    "INDEPENDENT_FLOATS",
    "KINDS",
    "PRECISIONS",
    "PatchEntry",
    "TASKS",
    "Task",
    "available",
    "balanced_part",
    "calibration_images",
    "card",
    "deploy",
    "distance_rows",
    "evaluation_subset",
    "family",
    "family_patches",
    "family_rows",
    "family_specific",
    "float_rows",
    "known_pairs",
    "load",
    "load_defense_run",
    "load_patch",
    "load_specific",
    "members",
    "node",
    "nodes",
    "shipped",
    "source_visibility",
    "strongest_control",
    "success_rows",
    "train_entry",
    "twins",
]
