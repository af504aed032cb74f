"""Measuring: accuracy, attack success, and transfer between bit-widths."""

from qpatch.measure.pixel import pixel_rows
from qpatch.measure.precision import precision_rows
from qpatch.measure.stats import student, wilson
from qpatch.measure.success import Success, accuracy, attack_success, predict, success_of
from qpatch.measure.transfer import over_seeds, specific_rows, transfer_rows
from qpatch.measure.weights import weight_distance

__all__ = [
    "Success",
    "accuracy",
    "attack_success",
    "over_seeds",
    "pixel_rows",
    "precision_rows",
    "predict",
    "specific_rows",
    "student",
    "success_of",
    "transfer_rows",
    "weight_distance",
    "wilson",
]
